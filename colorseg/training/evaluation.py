"""Loss and accuracy of a network on a set of pictures."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from colorseg.data import ImageSet
from colorseg.palette import Palette
from colorseg.training.task import Task, palette_of, usable_device


def evaluate(
    model: nn.Module,
    data: ImageSet,
    palette: Palette | None = None,
    batch_size: int = 500,
    device: str = "cpu",
) -> dict[str, float]:
    """Measure a network on all pictures of a set, in eval mode and without gradients.

    Args:
        model: takes grey pictures ``(N, 1, H, W)`` float32 in [0, 1), gives one logit per palette
            color, ``(N, K, H, W)``; it is moved to ``device`` and keeps its mode.
        data: the pictures.
        palette: the K colors; None takes ``model.palette``, or horse24 where that is missing.
        batch_size: pictures at a time; the result depends on it only by rounding.
        device: where to compute.

    Returns:
        ``loss``: cross-entropy, mean over all pixels; ``accuracy``: fraction of pixels with the
        right color; ``pixels``: how many there are.

    Raises:
        ValueError: the set is empty, or the device cannot be used.
    """
    place = usable_device(device)
    task = Task(data, palette_of(model) if palette is None else palette, place)
    return measure(model.to(place), task, batch_size)


def measure(model: nn.Module, task: Task, batch_size: int) -> dict[str, float]:
    """``evaluate`` on a task that exists already."""
    loss, correct, pixels = 0.0, 0, 0
    with torch.no_grad(), eval_mode(model):
        for index in torch.arange(len(task)).split(batch_size):
            grey, targets = task.batch(index)
            mean, _, right, valid = task.loss(model(grey), targets, return_stats=True)
            loss += mean.item() * valid.item()  # weighted, because the last batch is smaller
            correct += right.item()
            pixels += valid.item()
    return {"loss": loss / pixels, "accuracy": correct / pixels, "pixels": pixels}


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode inside the block; afterwards each module has its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
