"""``soft_iou_loss``: 1 - I / U of softmax probabilities and a mask, with its options."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from colorseg.ops._registration import (
    arithmetic_dtype,
    check_constant,
    check_usable,
    empty,
    needs_grad,
    one_at_a_time,
    register_autograd,
    register_fake,
    widened,
)
from colorseg.ops._soft_iou_group import GroupSoftIoU
from colorseg.ops.color_cross_entropy import REDUCTIONS


def soft_iou_loss(
    logits: Tensor,
    target: Tensor,
    *,
    classes: str | Sequence[int] = "foreground",
    per: str = "batch",
    smooth: float | tuple[float, float] = 1e-6,
    ignore_index: int | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    process_group: Any = None,
) -> Tensor:
    """Soft intersection over union: ``1 - (I + s) / (U + s')``, I = sum(x y), U = sum(x + y - x y).

    x is the softmax of the logits, y the mask of a class (Rahman and Wang 2016, equation 5, which
    has no smoothing).  Equivalent to :func:`colorseg.reference.soft_iou_loss`; no probability
    tensor is stored, and for backward of two classes one number per pixel, the sigmoid's slope.

    Args:
        logits: (N, C, H, W) with C >= 2, float32 or float64; half types are computed in float32.
        target: labels (N, H, W), uint8, int64 or bool.
        classes: "foreground" (all but 0), "all", or a list of ids; a class absent from the target
            counts too.
        per: "batch" sums over all pixels of the batch, "image" per image.
        smooth: s, or (numerator, denominator).
        ignore_index: pixels with this label leave both sums.
        weight: (number of selected classes,), scaled to mean 1.
        reduction: "mean" or "sum" over classes (and images), or "none" for (classes,) or (N,
            classes).
        process_group: of ``torch.distributed``; with it the loss is that of the batches of all its
            ranks together, and each rank's gradient that of its own pictures times the number of
            ranks, so that the mean that ``DistributedDataParallel`` takes is right.  Without it the
            loss is of the local batch.

    Returns:
        The loss, float32 for half logits.

    Raises:
        RuntimeError: shapes do not fit; a label is out of range (its value and the number of such
            labels are named).
        TypeError, ValueError: an option is not one of those above.
    """
    check_usable("soft_iou_loss", logits)
    check_constant("weight", weight)
    if per not in ("batch", "image"):
        raise ValueError(f"per must be 'batch' or 'image', got {per!r}")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")
    logits, weight = widened(logits), widened(weight)
    grad = needs_grad(logits)
    # backward reads labels an eighth as large, or of two classes nothing else
    channels = logits.shape[1] if logits.dim() > 1 else 0
    keep = grad and (channels == 2 or (target.dtype == torch.int64 and channels <= 255))
    if process_group is not None:
        if per == "image":
            raise ValueError("process_group joins batches; leave it out with per='image'")
        ids = _class_ids(classes, logits)
        together = (ids, _smoothing(smooth), ignore_index, weight, reduction, keep)
        return GroupSoftIoU.apply(logits, target, together, process_group)
    options = (
        _class_ids(classes, logits),
        per == "image",
        *_smoothing(smooth),
        ignore_index,
        weight,
        reduction,
        keep,
    )
    return _soft_iou_loss(logits, target, *options, grad=grad)[0]


def _class_ids(classes: str | Sequence[int], logits: Tensor) -> list[int]:
    if isinstance(classes, str):
        if classes not in ("foreground", "all"):
            raise ValueError(
                f"classes must be 'foreground', 'all' or a list of ids, got {classes!r}"
            )
        return list(range(0 if classes == "all" else 1, logits.shape[1] if logits.dim() > 1 else 2))
    ids = list(classes)
    if not all(isinstance(i, int) for i in ids):
        raise TypeError(f"classes must be 'foreground', 'all' or a list of ints, got {classes!r}")
    return ids


def _smoothing(smooth: float | tuple[float, float]) -> tuple[float, float]:
    numerator, denominator = smooth if isinstance(smooth, tuple | list) else (smooth, smooth)
    if not (numerator >= 0 and denominator >= 0):
        raise ValueError(f"smooth must not be negative, got {smooth!r}")
    return float(numerator), float(denominator)


@register_fake("soft_iou_loss")
def _(logits, target, classes, per_image, numerator, denominator, ignore, weight, *last):  # type: ignore[no-untyped-def]
    reduction, keep = last
    torch._check(
        logits.dim() == 4, lambda: f"logits must be (N, C, H, W), got {logits.dim()} dimensions"
    )
    size = [logits.shape[0], len(classes)] if per_image else [len(classes)]
    sums = logits.new_empty(
        logits.shape[0] if per_image else 1, len(classes), 2, dtype=torch.float64
    )
    two = logits.shape[1] == 2
    if keep and two and logits.device.type == "cpu":
        kept = empty(logits, logits.shape).select(1, 0)
    else:
        dtype = logits.dtype if two else torch.uint8
        kept = target.new_empty(target.shape if keep else (0,), dtype=dtype)
    loss = logits.new_empty(size if reduction == "none" else [], dtype=arithmetic_dtype(logits))
    return loss, sums, kept


@register_fake("soft_iou_loss_backward")
def _(grad_loss, logits, *rest):  # type: ignore[no-untyped-def]
    return empty(logits, logits.shape)


@register_fake("soft_iou_loss_backward_")
def _(gradient, *rest):  # type: ignore[no-untyped-def]
    return None


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, target, *options, ignore_index, weight, ctx.reduction, keep = inputs
    # the kernel of the CPU keeps slopes of two classes in a map like the logits
    ctx.in_place = ctx.eager and keep and 0 < logits.shape[1:].numel() == output[2].stride(0)
    ctx.slopes = output[2] if ctx.in_place else None
    if keep and not ctx.in_place:
        target, ignore_index = output[2], 255
    ctx.options, ctx.ignore_index = options, ignore_index
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(logits, target, output[1], weight)


def _backward(ctx: Any, grad_loss: Tensor | None, *_: None) -> tuple[Any, ...]:
    """Turn the slopes that the forward pass kept into the gradient, once; then make them anew."""
    grad = None
    if grad_loss is not None:
        logits, target, sums, weight = ctx.saved_tensors  # refuses logits changed since
        options = *ctx.options, ctx.ignore_index, weight, ctx.reduction
        if ctx.in_place and one_at_a_time(grad_loss) and not torch.is_grad_enabled():
            slopes, ctx.slopes = ctx.slopes, None
            if slopes is None:  # with the same bits
                *_, slopes = torch.ops.colorseg.soft_iou_loss.default(
                    logits, target, *options, True
                )
            grad = _map_of(slopes)
            torch.ops.colorseg.soft_iou_loss_backward_.default(
                grad, grad_loss, sums, *ctx.options, weight, ctx.reduction
            )
        else:
            grad = torch.ops.colorseg.soft_iou_loss_backward.default(
                grad_loss, logits, target, sums, *options
            )
    return grad, *[None] * 9


def _map_of(slopes: Tensor) -> Tensor:
    """The (N, 2, H, W) map of whose memory ``slopes`` (N, H, W) is the first channel."""
    n, h, w = slopes.shape
    step = slopes.stride(2)  # 2 in channels_last
    return slopes.as_strided((n, 2, h, w), (2 * h * w, h * w if step == 1 else 1, step * w, step))


_soft_iou_loss = register_autograd("soft_iou_loss", _backward, _setup_context)
