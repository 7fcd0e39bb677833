"""``nearest_color``: 24 palette colors, pixels in 8 bits and in float32."""

import sys
from collections.abc import Iterator

import torch
from torch import Tensor

from colorseg import ops, reference
from colorseg.benchmark import TIES, Case, main
from colorseg.benchmark.peers import operator_case
from colorseg.palette import Palette

SHAPES = [(100, 3, 32, 32), (16, 3, 224, 224)]


def plain(rgb: Tensor, palette: Tensor) -> Tensor:
    """All distances at once; ``nearest_color`` divides bytes by 256 too."""
    if rgb.dtype == torch.uint8:
        rgb = rgb / 256
    return (
        torch.cdist(rgb.permute(0, 2, 3, 1).flatten(0, 2), palette)
        .argmin(1)
        .view(rgb.shape[0], *rgb.shape[2:])
    )


def cases() -> Iterator[Case]:
    for shape in SHAPES:
        torch.manual_seed(0)
        bytes_ = torch.randint(256, shape, dtype=torch.uint8)
        for name, rgb in (("uint8", bytes_), ("float32", bytes_ / 256)):
            inputs = [rgb, Palette.horse24().colors]
            size = rgb.nbytes + 8 * rgb[:, 0].numel()
            yield operator_case(
                ("nearest_color", name, "forward"), ops.nearest_color, reference.nearest_color,
                inputs, plain=plain, allowed=TIES, bytes=size,
            )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(cases()))
