"""Every operator of :mod:`colorseg.ops` in the shortest plain torch: what the kernels must compute.

Same names and signatures as :mod:`colorseg.ops`, whose docstrings explain the arguments.  It runs
on any device and dtype torch supports and needs no compiled code.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Size = int | Sequence[int]


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
    """Convolution or transposed convolution of ``x``, joined by ``skip`` along the channels."""
    if skip is not None:
        x = torch.cat([x, skip], 1)
    if transposed:
        assert not isinstance(padding, str), "padding='same' needs no transposed convolution"
        return F.conv_transpose2d(
            x, weight, bias, stride, padding, output_padding, groups, dilation
        )
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups)


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
    """Convolution, 2x2 resampling, batch norm, residual, ReLU, in this order."""
    y = conv2d(
        x, weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups,
        transposed=transposed, output_padding=output_padding, skip=skip,
    )  # fmt: skip
    if resample == "maxpool2":
        y = F.max_pool2d(y, 2)
    elif resample == "upsample2":
        y = F.interpolate(y, scale_factor=2, mode="nearest")
    y = F.batch_norm(y, running_mean, running_var, bn_weight, bn_bias, training, momentum, eps)
    if residual is not None:
        y = y + residual
    return F.relu(y) if relu else y


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
    """``1 - (I + s) / (U + s')``, I = sum(x y), U = sum(x + y - x y): Rahman and Wang, eq. 5."""
    numerator, denominator = smooth if isinstance(smooth, tuple | list) else (smooth, smooth)
    if isinstance(classes, str):
        classes = range(0 if classes == "all" else 1, logits.shape[1])
    target = target.long()  # torch takes uint8 156 for -100
    x = logits.softmax(1)[:, list(classes)]
    y = torch.stack([target.eq(c) for c in classes], 1).to(x.dtype)
    if ignore_index is not None:
        x = torch.where((target == ignore_index)[:, None], 0, x)
        y = torch.where((target == ignore_index)[:, None], 0, y)
    pixels = (2, 3) if per == "image" else (0, 2, 3)
    intersection, union = (x * y).sum(pixels), (x + y - x * y).sum(pixels)
    if process_group is not None:
        from torch.distributed.nn.functional import all_reduce

        intersection, union = (all_reduce(t, group=process_group) for t in (intersection, union))
    loss = 1 - (intersection + numerator) / (union + denominator)  # (C,) or (N, C)
    if weight is not None:
        loss = loss * weight / weight.mean()
    return loss if reduction == "none" else loss.sum() if reduction == "sum" else loss.mean()


def nearest_color(rgb: Tensor, palette: Tensor, *, dtype: torch.dtype = torch.int64) -> Tensor:
    """Index of the palette color at the smallest Euclidean distance, the lowest on ties."""
    return _square_distances(rgb, palette).argmin(1).to(dtype)


def _square_distances(rgb: Tensor, palette: Tensor) -> Tensor:
    if rgb.dtype == torch.uint8:
        rgb = rgb.to(palette.dtype) / 256
    return (rgb[:, None] - palette.to(rgb.dtype)[:, :, None, None]).square().sum(2)  # (N, K, H, W)


def _soft_targets(rgb: Tensor, palette: Tensor, neighbors: int, sigma: float) -> Tensor:
    """Probabilities (N, K, H, W) of the nearest colors, ~ exp(-distance^2 / (2 sigma^2))."""
    rgb = rgb if rgb.dtype == torch.uint8 else rgb.to(palette.dtype)
    nearest, index = _square_distances(rgb, palette).sort(dim=1, stable=True)
    share = (nearest[:, :neighbors] / (-2 * sigma**2)).softmax(1)
    return torch.zeros_like(nearest).scatter(1, index[:, :neighbors], share)


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
    """``F.cross_entropy`` against labels, or against RGB pixels quantised with the palette."""
    labels = target.long()
    if target.dim() == 4:
        assert palette is not None, "an RGB target needs a palette"
        labels = nearest_color(target, palette)
    kept = labels != ignore_index
    options: dict[str, Any] = {"weight": weight, "label_smoothing": label_smoothing}
    if soft_neighbors:
        assert palette is not None, "soft_neighbors needs an RGB target and a palette"
        soft = _soft_targets(target, palette.to(logits.dtype), soft_neighbors, soft_sigma)
        loss = F.cross_entropy(logits, soft, **options, reduction="none") * kept
        if reduction != "none":
            loss = loss.sum() / (kept.sum() if reduction == "mean" else 1)
    else:
        options |= {"ignore_index": ignore_index, "reduction": reduction}
        loss = F.cross_entropy(logits, labels, **options)
    if reduction == "mean" and not kept.any():  # torch gives NaN here
        loss = logits.sum() * 0
    if not return_stats:
        return loss
    argmax = logits.argmax(1)
    return loss, argmax, ((argmax == labels) & kept).sum(), kept.sum()
