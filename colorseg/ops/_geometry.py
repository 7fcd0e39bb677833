"""A convolution's options as the schemas take them, and the sizes they lead to."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Size = int | Sequence[int]


class ConvOptions(NamedTuple):
    """The tail of the private schemas, in their order; padding is (top, bottom, left, right)."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int
    transposed: bool
    output_padding: list[int]


def pair(name: str, value: Size) -> list[int]:
    """``value`` twice if it is a number, else its two numbers."""
    if isinstance(value, int):
        return [value, value]
    numbers = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []
    if len(numbers) == 2 and all(isinstance(n, int) for n in numbers):
        return numbers
    raise TypeError(f"{name} must be an int or a pair of ints, got {value!r}")


def conv_options(
    weight: Tensor,
    stride: Size,
    padding: Size | str,
    dilation: Size,
    groups: int,
    transposed: bool = False,
    output_padding: Size = 0,
) -> ConvOptions:
    """Validated options of a convolution with ``weight``."""
    if not isinstance(groups, int):
        raise TypeError(f"groups must be an int, got {groups!r}")
    strides, dilations = pair("stride", stride), pair("dilation", dilation)
    extra = pair("output_padding", output_padding)
    if extra != [0, 0] and not transposed:
        raise ValueError(
            "output_padding belongs to transposed convolutions; pass transposed=True or leave it 0"
        )
    return ConvOptions(
        strides,
        _padding(weight, padding, strides, dilations, transposed),
        dilations,
        groups,
        transposed,
        extra,
    )


def _padding(
    weight: Tensor, padding: Size | str, stride: list[int], dilation: list[int], transposed: bool
) -> list[int]:
    if not isinstance(padding, str):
        vertical, horizontal = pair("padding", padding)
        return [vertical, vertical, horizontal, horizontal]
    if padding != "same":
        raise ValueError(f"padding must be an int, a pair of ints or 'same', got {padding!r}")
    if transposed or stride != [1, 1]:
        raise ValueError(
            "padding='same' needs stride 1 and no transposed convolution; pass numbers instead"
        )
    total = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=False)]
    return [
        n for t in total for n in (t // 2, t - t // 2)
    ]  # torch: the odd one goes right and bottom


def conv_output_size(size: Sequence[int], kernel: Sequence[int], o: ConvOptions) -> list[int]:
    """(H, W) of the convolution of a map of ``size`` = (H, W)."""
    result = []
    for axis in (0, 1):
        padding = o.padding[2 * axis] + o.padding[2 * axis + 1]
        span = o.dilation[axis] * (kernel[axis] - 1)
        if o.transposed:
            grown = (size[axis] - 1) * o.stride[axis] - padding + span
            result.append(grown + o.output_padding[axis] + 1)
        else:
            result.append((size[axis] + padding - span - 1) // o.stride[axis] + 1)
    return result


def output_size(x: Tensor, weight: Tensor, upsample: bool, o: ConvOptions) -> list[int]:
    """(N, C_out, H, W) of the convolution of ``x``, upsampled first if ``upsample``."""
    torch._check(x.dim() == 4, lambda: f"x must be (N, C, H, W), got {x.dim()} dimensions")
    torch._check(weight.dim() == 4, lambda: f"weight must have 4 dimensions, got {weight.dim()}")
    channels = weight.shape[1] * o.groups if o.transposed else weight.shape[0]
    scale = 2 if upsample else 1
    return [
        x.shape[0],
        channels,
        *conv_output_size([scale * n for n in x.shape[2:]], weight.shape[2:], o),
    ]
