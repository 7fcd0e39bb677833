"""``conv2d``: convolution or transposed convolution, of two inputs without joining them first."""

from typing import Any

import torch
from torch import Tensor

from colorseg.ops._autocast import register_autocast
from colorseg.ops._geometry import ConvOptions, Size, conv_options, output_size
from colorseg.ops._precision import follow_tf32
from colorseg.ops._registration import (
    check_usable,
    defined,
    empty,
    needs_grad,
    register_autograd,
    register_fake,
    widened,
)

NO_PROLOGUE = (None, None, False, False)  # in_scale, in_shift, in_relu, in_upsample


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    transposed: bool = False,
    output_padding: Size = 0,
    skip: Tensor | None = None,
) -> Tensor:
    """2-D convolution, or transposed convolution, of ``x`` and optionally ``skip``.

    Equivalent to :func:`colorseg.reference.conv2d`.

    Args:
        x: (N, C, H, W), any strides; float32, float64, or bfloat16/float16 (in float32 where a
            gradient is needed).
        weight: (C_out, (C + C_skip) / groups, kH, kW), transposed (C + C_skip, C_out / groups, kH,
            kW).
        bias: (C_out,) or None.
        stride: int or pair, as dilation and output_padding.
        padding: int, pair, or ``"same"`` (stride 1): for even kernels the extra column is right
            and bottom.
        dilation: spacing of the kernel's taps.
        groups: as in ``torch.nn.functional.conv2d``.
        transposed: the gradient of a convolution, ``F.conv_transpose2d``.
        output_padding: only with ``transposed``.
        skip: (N, C_skip, H, W), convolved as if ``torch.cat([x, skip], 1)`` had been.

    Returns:
        (N, C_out, H_out, W_out), channels_last iff ``x`` is.

    Raises:
        RuntimeError: shapes, dtypes or devices do not fit.
        TypeError, ValueError: an option is not one of those above.
    """
    options = conv_options(weight, stride, padding, dilation, groups, transposed, output_padding)
    return run((x, weight, bias, skip), options)


def run(tensors: tuple[Tensor | None, ...], options: ConvOptions) -> Tensor:
    """:func:`conv2d` of (x, weight, bias, skip) with checked options."""
    check_usable("conv2d", *tensors)
    assert tensors[0] is not None
    follow_tf32(tensors[0])
    grad = needs_grad(*tensors)
    if in_float32(*tensors, grad=grad):
        return _call(options, grad, *map(widened, tensors)).to(tensors[0].dtype)
    return _call(options, grad, *tensors)


def in_float32(*tensors: Tensor | None, grad: bool) -> bool:
    """Whether half tensors must be widened: the CPU has bfloat16 inference and nothing else.

    Not where their dtypes differ: that is an error, which the operator words.
    """
    x = tensors[0]
    assert x is not None
    if x.dtype != torch.float16 and not (grad and x.dtype == torch.bfloat16):
        return False
    if x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return False
    return all(t is None or t.dtype == x.dtype for t in tensors)


def _call(options: ConvOptions, grad: bool, *tensors: Tensor | None) -> Tensor:
    return _conv2d(*tensors, *NO_PROLOGUE, *options, grad=grad)


@register_fake("conv2d")
def _(x, weight, bias, skip, in_scale, in_shift, in_relu, in_upsample, *options):  # type: ignore[no-untyped-def]
    return empty(x, output_size(x, weight, in_upsample, ConvOptions(*options)))


@register_fake("conv2d_backward")
def _(grad_y, x, weight, skip, in_scale, in_shift, in_relu, in_upsample, *rest):  # type: ignore[no-untyped-def]
    return fake_gradients(grad_y.shape[1], x, weight, skip, in_scale, *rest[-4:])


def fake_gradients(  # type: ignore[no-untyped-def]
    out_channels, x, weight, skip, in_scale, needs_x, needs_skip, needs_weight, needs_bias
):
    """Fake gradients of (x, weight, bias, skip, in_scale, in_shift), empty where not needed."""

    def like(t: Tensor | None, needed: bool) -> Tensor:
        return empty(x, t.shape) if needed and t is not None else x.new_empty(0)

    grad_weight = empty(weight, weight.shape) if needs_weight else weight.new_empty(0)
    grad_bias = weight.new_empty(out_channels if needs_bias else 0)
    per_channel = [like(in_scale, needs_x) for _ in range(2)]
    return like(x, needs_x), grad_weight, grad_bias, like(skip, needs_skip), *per_channel


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _bias, skip, in_scale, in_shift, *ctx.options = inputs
    ctx.save_for_backward(x, weight, skip, in_scale, in_shift)


def _backward(ctx: Any, grad_y: Tensor) -> tuple[Any, ...]:
    x, weight, skip, in_scale, in_shift = ctx.saved_tensors
    needs = ctx.needs_input_grad
    needs_x = needs[0] or needs[4] or needs[5]
    grads = torch.ops.colorseg.conv2d_backward.default(
        grad_y,
        x,
        weight,
        skip,
        in_scale,
        in_shift,
        *ctx.options,
        needs_x,
        needs[3],
        needs[1],
        needs[2],
    )
    return *map(defined, grads), *[None] * len(ctx.options)


_conv2d = register_autograd("conv2d", _backward, _setup_context)
register_autocast("conv2d", (0, 1, 2, 3))
