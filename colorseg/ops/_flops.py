"""Floating-point operations of the convolutions, for ``torch.utils.flop_counter.FlopCounterMode``.

Nominal, as torch counts: two per multiply-add, taps on zero padding included, nothing for batch
norm and losses; what a kernel saves by folding an upsample is not taken off.
"""

from typing import Any

import torch
from torch.utils.flop_counter import conv_flop_count, register_flop_formula

from colorseg.ops._geometry import ConvOptions, conv_output_size


def _forward(x: list[int], weight: list[int], in_upsample: bool, options: tuple[Any, ...]) -> int:
    """FLOPs of one convolution of x, (N, C, H, W), with weight, (., ., kH, kW)."""
    scale = 2 if in_upsample else 1
    size = [scale * n for n in x[2:]]
    out = conv_output_size(size, weight[2:], ConvOptions(*options))
    transposed = options[4]
    return conv_flop_count([x[0], 0, *size], weight, [x[0], 0, *out], transposed=transposed)


@register_flop_formula(torch.ops.colorseg.conv2d)
def _conv2d(x, weight, *rest, out_shape=None, **kwargs):  # type: ignore[no-untyped-def]
    return _forward(x, weight, rest[5], rest[6:12])


@register_flop_formula(torch.ops.colorseg.conv2d_backward)
def _conv2d_backward(grad_y, x, weight, *rest, out_shape=None, **kwargs):  # type: ignore[no-untyped-def]
    needs_x, needs_skip, needs_weight, _ = rest[-4:]
    return _forward(x, weight, rest[4], rest[5:11]) * ((needs_x or needs_skip) + needs_weight)


@register_flop_formula([torch.ops.colorseg.conv_bn_relu, torch.ops.colorseg.conv_bn_relu_inference])
def _conv_bn_relu(x, weight, *rest, out_shape=None, **kwargs):  # type: ignore[no-untyped-def]
    return _forward(x, weight, rest[10], rest[11:17])


@register_flop_formula(torch.ops.colorseg.conv_bn_relu_backward)
def _conv_bn_relu_backward(grad_y, x, weight, *rest, out_shape=None, **kwargs):  # type: ignore[no-untyped-def]
    needs_x, needs_skip, needs_weight, _ = rest[-4:]
    return _forward(x, weight, rest[11], rest[12:18]) * ((needs_x or needs_skip) + needs_weight)
