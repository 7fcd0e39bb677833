"""``conv_bn_relu``: convolution, 2x2 resampling, batch norm and ReLU as one operator."""

from collections.abc import Sequence
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
    memory_format,
    needs_grad,
    register_autograd,
    register_fake,
    traced,
    widened,
)
from colorseg.ops.conv2d import NO_PROLOGUE, fake_gradients, in_float32

RESAMPLE = ("maxpool2", "upsample2")


def conv_bn_relu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    transposed: bool = False,
    output_padding: Size = 0,
    resample: str | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    relu: bool = True,
    skip: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """``relu(batch_norm(resample(conv(x))) + residual)``, the maps between kept in the cache.

    Equivalent to :func:`colorseg.reference.conv_bn_relu`.  Batch norm and ReLU run before a nearest
    upsample, on a quarter of the pixels, which changes nothing but rounding.

    Args:
        x: (N, C, H, W), any strides; float32, float64, or bfloat16/float16 (in float32 where a
            gradient is needed).
        weight, bias, stride, padding, dilation, groups, transposed, output_padding, skip: as in
            :func:`conv2d`.
        bn_weight: (C_out,) or None, in the dtype of ``x`` or float32, as bn_bias, running_mean and
            running_var.
        bn_bias: (C_out,) or None.
        running_mean: (C_out,) or None; updated in place when training, as by ``F.batch_norm``.
        running_var: (C_out,) or None; the unbiased variance of the map that batch norm sees in the
            written order.
        resample: None, ``"maxpool2"`` or ``"upsample2"`` (nearest), between convolution and batch
            norm.
        training: normalise by the statistics of the batch.
        momentum: weight of the batch in the running statistics.
        eps: added to the variance.
        relu: apply the ReLU.
        residual: (N, C_out, H_y, W_y) in the dtype of ``x``, added in front of the ReLU.

    Returns:
        (N, C_out, H_y, W_y), channels_last iff ``x`` is.

    Raises:
        RuntimeError: shapes, dtypes or devices do not fit; one value per channel in training.
        TypeError, ValueError: an option is not one of those above.
    """
    check_resample(resample)
    if (running_mean is None) != (running_var is None):
        raise ValueError("running_mean and running_var go together: pass both or neither")
    options = conv_options(weight, stride, padding, dilation, groups, transposed, output_padding)
    tensors = (x, weight, bias, skip, residual, bn_weight, bn_bias)
    mode = (resample or "none", training, momentum, eps, relu)
    return run(tensors, running_mean, running_var, options, *mode)


def check_resample(resample: str | None) -> None:
    """Raise unless ``resample`` is one of RESAMPLE or None."""
    if resample is not None and resample not in RESAMPLE:
        raise ValueError(f"resample must be None, 'maxpool2' or 'upsample2', got {resample!r}")


def run(
    tensors: tuple[Tensor | None, ...],
    running_mean: Tensor | None,
    running_var: Tensor | None,
    options: ConvOptions,
    resample: str,
    training: bool,
    momentum: float,
    eps: float,
    relu: bool,
    *,
    tracked: Tensor | None = None,
) -> Tensor:
    """:func:`conv_bn_relu` with checked options.

    ``tensors`` are (x, weight, bias, skip, residual, bn_weight, bn_bias); ``tracked`` counts the
    batches, and a negative momentum is that of their plain average.
    """
    check_usable("conv_bn_relu", *tensors)
    assert tensors[0] is not None
    follow_tf32(tensors[0])
    grad = needs_grad(*tensors)
    stats: tuple[Tensor | None, ...] = (running_mean, running_var)
    half = in_float32(*tensors[:5], grad=grad)
    x = tensors[0]
    if half:
        tensors, stats = tuple(map(widened, tensors)), tuple(map(widened, stats))
    arguments = (*tensors, *stats, *NO_PROLOGUE, *options, resample)
    if not training and not grad:
        y = torch.ops.colorseg.conv_bn_relu_inference.default(*arguments, eps, relu)
    else:

        def update(outputs: tuple[Tensor, ...]) -> None:
            y, _, _, mean, var = outputs
            if training and running_mean is not None and running_var is not None:
                count = y.shape[0] * y.shape[2] * y.shape[3]
                update_running_statistics(
                    [(running_mean, running_var, tracked)], [mean, var], [count], [momentum]
                )
            elif tracked is not None:
                tracked.add_(1)

        y = _conv_bn_relu(*arguments, training, eps, relu, grad=grad, then=update)[0]
    return y.to(x.dtype) if half else y


Running = tuple[Tensor, Tensor, Tensor | None]  # mean, var, number of batches if it is counted


@torch.no_grad()
def update_running_statistics(
    running: Sequence[Running], batch: Sequence[Tensor], counts: list[int], momenta: list[float]
) -> None:
    """Move running statistics, (C,), towards those of a batch, and count it: one call for all.

    Args:
        running: of each batch norm.
        batch: mean and biased variance of each, float64.
        counts: values per channel.
        momenta: of the batch; negative for the plain average of all batches.
    """
    if traced() or any(not t.is_contiguous() for mean, var, _ in running for t in (mean, var)):
        for i, statistics in enumerate(running):
            _move(statistics, batch[2 * i], batch[2 * i + 1], counts[i], momenta[i])
        return
    uncounted = batch[0].new_empty(0)
    tensors = [uncounted if t is None else t for statistics in running for t in statistics]
    torch.ops.colorseg.update_running_statistics.default(tensors, batch, counts, momenta)


@register_fake("update_running_statistics")
def _(running, batch, counts, momenta):  # type: ignore[no-untyped-def]
    return None


def _move(running: Running, mean: Tensor, var: Tensor, count: int, momentum: float) -> None:
    running_mean, running_var, tracked = running
    share: Tensor | float = momentum
    if tracked is not None:
        tracked.add_(1)
        share = 1 / tracked.double() if momentum < 0 else momentum
    if count > 0:
        running_mean.mul_(1 - share).add_(mean * share)
        running_var.mul_(1 - share).add_(var * (share * count / (count - 1)))


def _fake_maps(args: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
    """Fake (y, pre_bn) from the arguments of ``colorseg::conv_bn_relu_inference``."""
    x, weight, in_upsample, resample = args[0], args[1], args[12], args[19]
    n, c, h, w = output_size(x, weight, in_upsample, ConvOptions(*args[13:19]))
    if resample == "maxpool2":
        h, w = h // 2, w // 2
    scale = 2 if resample == "upsample2" else 1
    return empty(x, (n, c, scale * h, scale * w)), empty(x, (n, c, h, w), _map_dtype(x))


def _packed_size(x: Tensor, pre_bn: Tensor) -> int:
    """Bytes of a max-pool's argmax: 4 codes in each, every plane starts a new one."""
    n, c, h, w = pre_bn.shape
    if memory_format(x) == torch.channels_last:  # that of a map of one pixel says nothing
        return n * ((c * h * w + 3) // 4)
    return n * c * ((h * w + 3) // 4)


def _map_dtype(x: Tensor) -> torch.dtype:
    """Of the map in front of batch norm: the CPU widens half types, CUDA kernels read them."""
    return torch.float32 if x.dtype.itemsize == 2 and x.device.type == "cpu" else x.dtype


@register_fake("conv_bn_relu_inference")
def _(*args):  # type: ignore[no-untyped-def]
    return _fake_maps(args)[0]


@register_fake("conv_bn_relu")
def _(*args):  # type: ignore[no-untyped-def]
    y, pre_bn = _fake_maps(args)
    size = _packed_size(args[0], pre_bn) if args[19] == "maxpool2" else 0
    argmax = y.new_empty(size, dtype=torch.uint8)
    mean, var = (y.new_empty(y.shape[1], dtype=torch.float64) for _ in range(2))
    return y, pre_bn, argmax, mean, var


@register_fake("conv_bn_relu_backward")
def _(grad_y, x, weight, skip, y, bn_weight, bn_bias, pre_bn, argmax, mean, var, in_scale, *rest):  # type: ignore[no-untyped-def]
    *conv, grad_in_scale, grad_in_shift = fake_gradients(
        grad_y.shape[1], x, weight, skip, in_scale, *rest[-4:]
    )
    bn = [x.new_empty(0) if t is None else torch.empty_like(t) for t in (bn_weight, bn_bias)]
    grad_residual = x.new_empty(0) if y is None else empty(x, y.shape)
    return *conv, grad_residual, *bn, grad_in_scale, grad_in_shift


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, _bias, skip, residual, bn_weight, bn_bias, _mean, _var, *rest = inputs
    in_scale, in_shift, *ctx.options = rest
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    # behind a residual the ReLU's mask is that of y, which the next layer keeps anyway
    y = None if residual is None or not ctx.options[-1] else output[0]
    kept = (bn_weight, bn_bias, *output[1:], in_scale, in_shift)
    ctx.save_for_backward(x, weight, skip, y, *kept)


def _backward(ctx: Any, grad_y: Tensor | None, *_: None) -> tuple[Any, ...]:
    needs = ctx.needs_input_grad
    if grad_y is None:
        return (None,) * len(needs)
    needs_x = needs[0] or needs[9] or needs[10]
    saved = ctx.saved_tensors
    grads = torch.ops.colorseg.conv_bn_relu_backward.default(
        grad_y, *saved, *ctx.options, needs_x, needs[3], needs[1], needs[2]
    )
    *conv, grad_residual, bn_weight, bn_bias, in_scale, in_shift = map(defined, grads)
    if needs[4] and saved[3] is None:  # no ReLU in between
        grad_residual = grad_y
    prologue = (in_scale, in_shift)
    options = [None] * len(ctx.options)
    return *conv, grad_residual, bn_weight, bn_bias, None, None, *prologue, *options


_conv_bn_relu = register_autograd("conv_bn_relu", _backward, _setup_context)
# the full operator is only called in training or for a gradient
register_autocast("conv_bn_relu", (0, 1, 2, 3, 4), widen=(5, 6, 7, 8), cpu=torch.float32)
register_autocast("conv_bn_relu_inference", (0, 1, 2, 3, 4), widen=(5, 6, 7, 8))
