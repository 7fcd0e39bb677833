"""A network of your own, built from plain modules, on the fused operators.

``colorseg.fuse`` keeps parameters, their names and the result, and says what it could fuse.
"""

import copy
import logging
import statistics
import time

import torch
from torch import nn

import colorseg
from colorseg.data import load
from colorseg.nn import ColorCrossEntropyLoss
from colorseg.palette import Palette


def conv(inputs: int, outputs: int, *resample: nn.Module) -> list[nn.Module]:
    """A convolution, an optional change of size, batch norm and ReLU."""
    layer = nn.Conv2d(inputs, outputs, 3, padding=1)
    return [layer, *resample, nn.BatchNorm2d(outputs), nn.ReLU()]


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: tuple) -> float:
    """One step; returns the seconds it took."""
    grey, rgb = batch
    start = time.perf_counter()
    optimizer.zero_grad()
    criterion(model(grey), rgb).backward()
    optimizer.step()
    return time.perf_counter() - start


logging.basicConfig(level=logging.INFO, format="%(message)s")
torch.manual_seed(0)
palette = Palette.horse24()
criterion = ColorCrossEntropyLoss(palette)
pictures, _ = load("sample")

plain = nn.Sequential(
    *conv(1, 32, nn.MaxPool2d(2)),
    *conv(32, 64),
    *conv(64, 32, nn.Upsample(scale_factor=2)),
    nn.Conv2d(32, len(palette), 3, padding=1),
)
fused = colorseg.fuse(copy.deepcopy(plain), verbose=True)

grey = pictures.grey(slice(100))
with torch.no_grad():
    print(f"largest difference of the outputs: {(plain(grey) - fused(grey)).abs().max():.1e}")

optimizers = {model: torch.optim.SGD(model.parameters(), lr=0.1) for model in (plain, fused)}
seconds: dict[nn.Module, list[float]] = {plain: [], fused: []}
for number in range(12):  # in turns, so that both meet the same moods of the machine
    chosen = torch.arange(number * 50, number * 50 + 50) % len(pictures)
    for model, times in seconds.items():
        times.append(
            train_step(model, optimizers[model], (pictures.grey(chosen), pictures.images[chosen]))
        )

for name, model in ("plain", plain), ("fused", fused):
    loss = criterion(model(grey), pictures.images[:100])
    middle = statistics.median(seconds[model][2:])
    print(f"{name}: loss {loss.item():.4f}, {1000 * middle:.1f} ms per training step")
