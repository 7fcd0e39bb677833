"""``conv2d``: layers of the three networks without what surrounds them, batch 100."""

import sys
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from layers import TRANSPOSED, Layer
from torch import Tensor

from colorseg import ops, reference
from colorseg.benchmark import Case, main
from colorseg.benchmark.peers import operator_case

LAYERS = [
    Layer("64->32", 64, 32, 8),
    Layer("32->64", 32, 64, 16),
    Layer("24->24", 24, 24, 32),
    Layer("24+1->24", 24, 24, 32, skip=1),
    Layer("kernel 5 24->24", 24, 24, 32, kernel=5),
    Layer("1->32", 1, 32, 32),
    Layer("stride 2 32->64", 32, 64, 16, {"stride": 2}),
    Layer("transposed 64->24", 64, 24, 16, TRANSPOSED),
    Layer("upsampled 32->24", 32, 24, 8, upsampled=True),
    Layer("upsampled 24->24", 24, 24, 16, upsampled=True),
]


def upsampled_conv2d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The operator with its prologue, which blocks use among themselves."""
    prologue = (None, None, False, True)
    options = ([1, 1], [1, 1, 1, 1], [1, 1], 1, False, [0, 0])
    return torch.ops.colorseg.conv2d.default(x, weight, bias, None, *prologue, *options)


def upsampled_reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(F.interpolate(x, scale_factor=2), weight, bias, padding=1)


def convolve(conv2d: Callable[..., Tensor], layer: Layer) -> Callable[..., Tensor]:
    """``conv2d`` with the layer's options, of the tensors in the layer's order."""
    return lambda x, w, b, skip=None: conv2d(x, w, b, skip=skip, **layer.settings())


def cases() -> Iterator[Case]:
    for layer in LAYERS:
        pair = (convolve(ops.conv2d, layer), convolve(reference.conv2d, layer))
        if layer.upsampled:
            pair = (upsampled_conv2d, upsampled_reference)
        for direction, gradients in layer.directions("forward"):
            labels = ("conv2d", layer.name, direction)
            yield operator_case(
                labels, *pair, layer.tensors(), gradients=gradients, compiles=False,
                **layer.work(backward=bool(gradients)),
            )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(cases()))
