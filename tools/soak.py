"""Train and infer for a long time with changing shapes; memory and speed must stay as they are.

    python tools/soak.py --minutes 20 --calls 100000

Prints a row per twentieth: resident memory, and the time of a fixed piece of work, the median of
some.  The exit code is 1 if in the last quarter memory is 3 %, or time 20 %, above the second.
"""

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

import colorseg
from colorseg import ops
from colorseg.models import NETWORKS, UNet

Done = Callable[[int, int], bool]
ROWS = 20
QUARTERS = ((5, 10), (15, 20))  # rows that are compared
GROWTH, SLOWER = 1.03, 1.2


def resident() -> float:
    """MB of memory that this process has."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def seconds(work: Callable[[], object]) -> float:
    """The median of five."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def soak(name: str, one: Callable[[], object], fixed: Callable[[], object], done: Done) -> bool:
    """Rows of ``one`` until ``done(row, calls)``; whether memory and speed stayed."""
    rows, calls = [], 0
    for row in range(1, ROWS + 1):
        while not done(row, calls):
            one()
            calls += 1
        rows.append((resident(), seconds(fixed) * 1e3))
        print(f"{name} {calls:>8} calls {rows[-1][0]:>8.1f} MB {rows[-1][1]:>8.3f} ms", flush=True)
    memory, speed = zip(*rows, strict=True)
    before, after = ([statistics.median(x[a:b]) for x in (memory, speed)] for a, b in QUARTERS)
    return after[0] <= before[0] * GROWTH and after[1] <= before[1] * SLOWER


def training(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Callable[..., None]:
    """A step of training on random pictures of a number and size."""
    palette = colorseg.palette.Palette.horse24().colors

    def step(n: int, height: int, width: int) -> None:
        rgb = torch.rand(n, 3, height, width)
        optimizer.zero_grad()
        logits = model(rgb.mean(1, keepdim=True))
        loss = ops.color_cross_entropy(logits, rgb, palette)
        masks = ops.soft_iou_loss(logits, rgb.argmax(1), per="image")
        (loss + masks).backward()
        optimizer.step()

    return step


def main() -> int:
    """Both soaks; 0 if memory and speed stayed as they were."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=20, help="of training")
    parser.add_argument("--calls", type=int, default=100_000, help="of inference")
    args = parser.parse_args()
    torch.manual_seed(0)
    choose = random.Random(0)

    model = UNet(num_filters=16)
    step = training(model, torch.optim.Adam(model.parameters(), fused=True))
    start, share = time.monotonic(), args.minutes * 60 / ROWS
    stayed = soak(
        "training",
        lambda: step(choose.randint(1, 40), 4 * choose.randint(2, 12), 4 * choose.randint(2, 12)),
        lambda: step(32, 32, 32),
        lambda row, _: time.monotonic() - start >= row * share,
    )

    networks = [colorseg.optimize_for_inference(net().eval()) for net in NETWORKS.values()]

    def infer(n: int, height: int, width: int) -> None:
        with torch.inference_mode():
            choose.choice(networks)(torch.rand(n, 1, height, width))

    stayed &= soak(
        "inference",
        lambda: infer(choose.randint(1, 3), choose.randint(4, 40), choose.randint(4, 40)),
        lambda: infer(1, 32, 32),
        lambda row, calls: calls >= row * args.calls / ROWS,
    )
    print("memory and speed stayed" if stayed else "memory or speed changed")
    return 0 if stayed else 1


if __name__ == "__main__":
    sys.exit(main())
