"""``color_cross_entropy``: cross-entropy against labels, or RGB pixels quantised on the way."""

from typing import Any

import torch
from torch import Tensor

from colorseg.ops._registration import (
    arithmetic_dtype,
    check_constant,
    check_usable,
    empty,
    needs_grad,
    no_tensor,
    one_at_a_time,
    register_autograd,
    register_fake,
    traced,
    widened,
)
from colorseg.ops.nearest_color import check_palette, check_rgb

REDUCTIONS = ("none", "mean", "sum")


def color_cross_entropy(
    logits: Tensor,
    target: Tensor,
    palette: Tensor | None = None,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    soft_neighbors: int = 0,
    soft_sigma: float = 0.05,
    reduction: str = "mean",
    return_stats: bool = False,
) -> Tensor | tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cross-entropy per pixel in one pass over the logits; stores no label map, no probabilities.

    Equivalent to :func:`colorseg.reference.color_cross_entropy`, which is ``F.cross_entropy``
    except that a batch whose pixels are all ignored has the mean 0 with zero gradient, not NaN.

    Args:
        logits: (N, C, H, W), float32 or float64; half types are computed in float32.
        target: labels (N, H, W), uint8 or int64, or RGB (N, 3, H, W), uint8 (divided by 256) or
            floating point.
        palette: (C, 3), floating point in [0, 1]; needed for, and only used with, an RGB target.
        weight: (C,), one per class.
        ignore_index: pixels with this label count nowhere; -100 matches no uint8 label.
        label_smoothing: in [0, 1].
        soft_neighbors: if above 0, an RGB pixel's target is spread over so many palette colors,
            the nearest by (distance, index), in shares ~ exp(-distance^2 / (2 soft_sigma^2)), as
            soft encoding in Zhang, Isola, Efros, "Colorful Image Colorization", 2016.  Then as
            ``F.cross_entropy`` with probabilities: class weights do not change a mean's divisor.
        soft_sigma: in RGB, where white is at distance sqrt(3) of black.
        reduction: "mean" over the (weighted) pixels not ignored, "sum", or "none" for (N, H, W).
        return_stats: also return argmax (N, H, W) int64 and the numbers of correct and valid (not
            ignored) pixels, int64 scalars; none of them is differentiable.

    Returns:
        The loss, float32 for half logits, or ``(loss, argmax, correct, valid)``.

    Raises:
        RuntimeError: shapes do not fit; a label is out of range (its value and the number of such
            labels are named).
        TypeError, ValueError: a dtype or option is not one of those above.
    """
    check_usable("color_cross_entropy", logits)
    check_constant("weight", weight)
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")
    if not hasattr(ignore_index, "__index__"):
        raise TypeError(
            f"ignore_index must be a whole number, got {ignore_index!r}; leave it out (-100) where "
            "every label counts"
        )
    if palette is not None:
        check_palette(palette)
    if not isinstance(target, Tensor):
        raise no_tensor("target must be a tensor", target)
    if target.dim() == 4:
        check_rgb("an RGB target", target)
    soft = _soft_options(soft_neighbors, soft_sigma, target, palette)
    logits, weight = widened(logits), widened(weight)
    grad = needs_grad(logits)
    # the gradient is made with the loss, and multiplied in place; in float16 a mean's would vanish
    # in front of a loss scale
    ready = grad and reduction != "none" and logits.dtype != torch.float16 and not traced()
    options = (weight, ignore_index, label_smoothing, *soft, reduction, return_stats, ready)
    loss, _, _, *stats, _ = _color_cross_entropy(logits, target, palette, *options, grad=grad)
    return (loss, *stats) if return_stats else loss


def _soft_options(
    neighbors: int, sigma: float, target: Tensor, palette: Tensor | None
) -> tuple[int, float]:
    if isinstance(neighbors, bool) or not isinstance(neighbors, int) or neighbors < 0:
        raise ValueError(f"soft_neighbors must be a whole number, at least 0, got {neighbors!r}")
    if neighbors and target.dim() != 4:
        raise ValueError(
            "soft_neighbors needs an RGB target (N, 3, H, W), whose distances to the palette it "
            f"uses, got labels {tuple(target.shape)}"
        )
    if neighbors and palette is not None and neighbors > len(palette):
        raise ValueError(
            f"soft_neighbors must be at most the number of palette colors, {len(palette)}, "
            f"got {neighbors}"
        )
    if neighbors and not sigma > 0:
        raise ValueError(f"soft_sigma must be above 0, got {sigma!r}")
    return neighbors, sigma


@register_fake("color_cross_entropy")
def _(logits, target, palette, weight, *options):  # type: ignore[no-untyped-def]
    *_, reduction, stats, with_gradient = options
    torch._check(
        logits.dim() == 4, lambda: f"logits must be (N, C, H, W), got {logits.dim()} dimensions"
    )
    pixels = (logits.shape[0], *logits.shape[2:])
    dtype = arithmetic_dtype(logits)
    loss = logits.new_empty(pixels if reduction == "none" else (), dtype=dtype)
    argmax = logits.new_empty(pixels if stats else (0,), dtype=torch.int64)
    counts = [logits.new_empty((), dtype=torch.int64) for _ in range(2)]
    return (
        loss,
        logits.new_empty(pixels, dtype=dtype),
        logits.new_empty((), dtype=torch.float64),
        argmax,
        *counts,
        empty(logits, logits.shape if with_gradient else (0,)),
    )


@register_fake("color_cross_entropy_backward")
def _(grad_loss, logits, *rest):  # type: ignore[no-untyped-def]
    return empty(logits, logits.shape)


@register_fake("color_cross_entropy_scale_")
def _(gradient, grad_loss):  # type: ignore[no-untyped-def]
    return None


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, target, palette, weight, *ctx.options, _return_stats, ctx.with_gradient = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(logits, target, palette, weight, *output[1:3])
    ctx.gradient = output[-1]


def _backward(ctx: Any, grad_loss: Tensor | None, *_: None) -> tuple[Any, ...]:
    """Hand out the gradient that the forward pass made, once; a second caller's is made anew."""
    grad = None
    if grad_loss is not None:
        saved = ctx.saved_tensors  # refuses logits changed since
        ready = ctx.with_gradient and one_at_a_time(grad_loss)
        if not ready or torch.is_grad_enabled() or traced():
            grad = torch.ops.colorseg.color_cross_entropy_backward.default(
                grad_loss, *saved, *ctx.options
            )
        else:
            grad, ctx.gradient = ctx.gradient, None
            if grad is None:  # with the same bits
                *_, grad = torch.ops.colorseg.color_cross_entropy.default(
                    *saved[:4], *ctx.options, False, True
                )
            torch.ops.colorseg.color_cross_entropy_scale_.default(grad, grad_loss)
    return grad, *[None] * 10


_color_cross_entropy = register_autograd("color_cross_entropy", _backward, _setup_context)
