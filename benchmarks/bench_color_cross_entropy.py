"""``color_cross_entropy``: 24 colors, batch 100, against ready labels and against RGB pixels.

The backward pass is that of ``loss.backward()``; in the case "scaled" the loss has a factor.
"""

import sys
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from bench_nearest_color import plain as nearest_color
from torch import Tensor

from colorseg import ops, reference
from colorseg.benchmark import EXACT, TIES, Case, main
from colorseg.benchmark.peers import operator_case
from colorseg.palette import Palette

SHAPE = (100, 24, 32, 32)


def plain(logits: Tensor, target: Tensor, palette: Tensor | None = None) -> Tensor:
    """Palette assignment if the target is RGB, then the cross-entropy."""
    return F.cross_entropy(logits, target if palette is None else nearest_color(target, palette))


def targets() -> Iterator[tuple[str, list[Tensor]]]:
    pixels = (SHAPE[0], *SHAPE[2:])
    rgb = torch.randint(256, (SHAPE[0], 3, *SHAPE[2:]), dtype=torch.uint8)
    palette = Palette.horse24().colors
    yield "labels", [torch.randint(SHAPE[1], pixels)]
    yield "RGB uint8", [rgb, palette]
    yield "RGB float32", [rgb / 256, palette]


def cases() -> Iterator[Case]:
    torch.manual_seed(0)
    logits = torch.randn(SHAPE)
    for kind, target in targets():
        directions = [(kind, "forward", ()), (kind, "forward+backward", (0,))]
        if kind == "labels":
            directions.append((f"{kind} scaled", "forward+backward", (0,)))
        for name, direction, gradients in directions:
            # logits and target are read, the gradient is written
            size = logits.nbytes * (1 + len(gradients)) + target[0].nbytes
            yield operator_case(
                ("color_cross_entropy", name, direction),
                ops.color_cross_entropy, reference.color_cross_entropy, [logits, *target],
                gradients=gradients, plain=plain, scaled=name.endswith("scaled"),
                allowed=EXACT if kind == "labels" else TIES, bytes=size,
            )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(cases()))
