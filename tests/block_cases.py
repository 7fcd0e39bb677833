"""Inputs of the conv_bn_relu tests, and cotangents that stay clear of its kinks."""

import torch
from parity import lay_out
from torch import Tensor

from colorseg import reference

IN, SKIP, OUT = 4, 2, 6
SHAPES = {
    "plain": (2, 8, 10),
    "odd": (3, 9, 7),
    "small": (4, 2, 4),
    "large": (1, 92, 94),
    "empty": (0, 8, 8),
}
CASES = {
    "3x3": {"padding": 1},
    "stride 2, skip": {"stride": 2, "padding": 1, "skip": True},
    "groups, no relu": {"padding": 1, "groups": 2, "relu": False},
    "same, even, no bias": {"kernel": 4, "padding": "same", "bias": False},
    "maxpool2": {"padding": 1, "resample": "maxpool2"},
    "maxpool2, no relu": {"padding": 1, "resample": "maxpool2", "relu": False},
    "upsample2": {"padding": 1, "resample": "upsample2"},
    "upsample2, skip": {"padding": 1, "resample": "upsample2", "skip": True},
    "transposed": {"stride": 2, "padding": 1, "transposed": True, "output_padding": 1},
    "transposed, skip, eps": {
        "stride": 2,
        "padding": 1,
        "transposed": True,
        "output_padding": 1,
        "skip": True,
        "eps": 0.1,
    },
    "residual": {"padding": 1, "residual": True},
    "residual, skip, no relu": {"padding": 1, "skip": True, "relu": False, "residual": True},
    "residual, upsample2": {"padding": 1, "resample": "upsample2", "residual": True},
    "residual, maxpool2": {"padding": 1, "resample": "maxpool2", "residual": True},
}


def make_inputs(
    size,
    dtype,
    layout="contiguous",
    skip=False,
    kernel=3,
    bias=True,
    groups=1,
    transposed=False,
    residual=False,
    **options,
) -> tuple[list[Tensor | None], dict[str, object]]:
    """[x, weight, bias, skip, bn_weight, bn_bias, residual if any] and the remaining options."""
    n, h, w = size
    channels = IN + (SKIP if skip else 0)
    shape = (channels, OUT // groups) if transposed else (OUT, channels // groups)
    # small integers convolve without rounding, so that no window of a max-pool is tied in one
    # dtype only
    draw = _integers if options.get("resample") == "maxpool2" else torch.randn
    tensors = [
        lay_out(draw(n, IN, h, w, dtype=dtype), layout),
        draw(*shape, kernel, kernel, dtype=dtype) / 4,
        draw(OUT, dtype=dtype) if bias else None,
        draw(n, SKIP, h, w, dtype=dtype) if skip else None,
        torch.rand(OUT, dtype=dtype) + 0.5,
        torch.randn(OUT, dtype=dtype),
    ]
    options |= {"groups": groups, "transposed": transposed}
    if residual:
        y = call(reference, tensors, running_statistics(dtype), **options)
        tensors.append(lay_out(torch.randn_like(y), layout))
    return tensors, options


def _integers(*size: int, dtype: torch.dtype) -> Tensor:
    return torch.randint(-9, 10, size).to(dtype)


def running_statistics(dtype: torch.dtype, channels: int = OUT) -> tuple[Tensor, Tensor]:
    """Fresh running mean and variance, the same numbers in every dtype."""
    return torch.linspace(-1, 1, channels).to(dtype), torch.linspace(0.5, 2, channels).to(dtype)


def call(module, inputs, stats, **options) -> Tensor:
    """conv_bn_relu of ``ops`` or ``reference`` on what make_inputs returns."""
    x, weight, bias, skip, bn_weight, bn_bias, *residual = inputs
    added = {"residual": residual[0]} if residual else {}
    return module.conv_bn_relu(
        x, weight, bias, bn_weight, bn_bias, *stats, skip=skip, **added, **options
    )


def settled_cotangent(exact, training: bool, **options) -> Tensor:
    """A cotangent that is 0 where the ReLU's input is so near 0 that float32 may flip its sign."""
    with torch.no_grad():
        before = call(
            reference,
            exact,
            running_statistics(torch.float64),
            training=training,
            **{**options, "relu": False},
        )
    return torch.randn_like(before) * (before.abs() > 1e-4)
