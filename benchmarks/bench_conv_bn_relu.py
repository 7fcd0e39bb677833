"""``conv_bn_relu``: the blocks of the three networks, batch 100; inference is that of eval mode."""

import sys
from collections.abc import Callable, Iterator

import torch
from layers import TRANSPOSED, Layer
from torch import Tensor

from colorseg import ops, reference
from colorseg.benchmark import EXACT, TIES, Case, main
from colorseg.benchmark.peers import operator_case

LAYERS = [
    Layer("64->32 up", 64, 32, 8, {"resample": "upsample2"}),
    Layer("32->24 up", 32, 24, 16, {"resample": "upsample2"}),
    Layer("1->32 pool", 1, 32, 32, {"resample": "maxpool2"}),
    Layer("32->64 pool", 32, 64, 16, {"resample": "maxpool2"}),
    Layer("stride 2 1->32", 1, 32, 32, {"stride": 2}),
    Layer("stride 2 32->64", 32, 64, 16, {"stride": 2}),
    Layer("transposed 64->32", 64, 32, 8, TRANSPOSED),
    Layer("transposed 32->24", 32, 24, 16, TRANSPOSED),
    Layer("transposed 32+32->24", 32, 24, 16, TRANSPOSED, skip=32),
]


def tensors(layer: Layer) -> list[Tensor]:
    """x, weight, bias, skip; batch norm's weight, bias, running mean and variance."""
    first = layer.tensors()
    c = layer.filters
    return [*first, torch.rand(c) + 0.5, torch.randn(c), torch.randn(c), torch.rand(c) + 0.5]


def block(
    conv_bn_relu: Callable[..., Tensor], layer: Layer, training: bool
) -> Callable[..., Tensor]:
    """``conv_bn_relu`` with the layer's options, of the tensors above."""

    def call(x: Tensor, weight: Tensor, bias: Tensor, *rest: Tensor) -> Tensor:
        *skip, gamma, beta, mean, var = rest
        options = {**layer.settings(), "skip": skip[0] if skip else None, "training": training}
        return conv_bn_relu(x, weight, bias, gamma, beta, mean, var, **options)

    return call


def cases() -> Iterator[Case]:
    for layer in LAYERS:
        for direction, conv in layer.directions("inference"):
            pair = (block(f, layer, bool(conv)) for f in (ops.conv_bn_relu, reference.conv_bn_relu))
            after = 3 + bool(layer.skip)
            gradients = (*conv, after, after + 1) if conv else ()
            labels = ("conv_bn_relu", layer.name, direction)
            yield operator_case(
                labels, *pair, tensors(layer), gradients=gradients,
                allowed=TIES if conv else EXACT, **layer.work(backward=bool(conv)),
            )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(cases()))
