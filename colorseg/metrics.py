"""Measures of a colorized or segmented picture, in plain torch."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from colorseg._mean_iou import MeanIoU

__all__ = ["MeanIoU", "colorfulness", "pixel_accuracy", "psnr"]


def __getattr__(name: str) -> Any:
    if name != "MeanIoU":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from colorseg._mean_iou import MeanIoU  # late: torchmetrics is slow to import

    return MeanIoU


def pixel_accuracy(predicted: Tensor, target: Tensor, ignore_index: int = -100) -> Tensor:
    """Fraction of pixels whose predicted class is the target class.

    Args:
        predicted: integer classes of any shape, usually ``(N, H, W)``.
        target: integer classes of the same shape.
        ignore_index: pixels with this target do not count.

    Returns:
        A float32 scalar in [0, 1]; NaN where no pixel counts.

    Raises:
        ValueError: the shapes differ.
        TypeError: one is floating point.
    """
    if predicted.shape != target.shape:
        raise ValueError(
            f"predicted and target must have one shape, got {tuple(predicted.shape)} and "
            f"{tuple(target.shape)}; take the argmax of logits over dimension 1 first"
        )
    check_classes("predicted must be integer classes", predicted)
    check_classes("target must be integer classes", target)
    # int64, because a uint8 tensor compared with -100 matches 156
    predicted, target = predicted.long(), target.long()
    counts = target != ignore_index
    return ((predicted == target) & counts).sum() / counts.sum()


def colorfulness(rgb: Tensor) -> Tensor:
    """How colorful people find each picture: 0 for grey, about 15 for slightly, 109 for extremely.

    With ``rg = R - G`` and ``yb = (R + G) / 2 - B`` on the scale 0 to 255 this is
    ``sqrt(std(rg)^2 + std(yb)^2) + 0.3 * sqrt(mean(rg)^2 + mean(yb)^2)``: Hasler and Suesstrunk,
    "Measuring colourfulness in natural images", Proc. SPIE 5007, 2003.

    Args:
        rgb: ``(N, 3, H, W)``, uint8, or floating point in [0, 1].

    Returns:
        ``(N,)`` floating point.

    Raises:
        ValueError: ``rgb`` is not ``(N, 3, H, W)``.
        TypeError: ``rgb`` has another integer dtype.
    """
    if rgb.dim() != 4 or rgb.shape[1] != 3:
        raise ValueError(f"rgb must be (N, 3, H, W), got {tuple(rgb.shape)}")
    red, green, blue = _unit_range(rgb, "rgb").flatten(2).mul(255).unbind(1)
    opponent = torch.stack([red - green, (red + green) / 2 - blue])  # (2, N, H*W)
    spread = opponent.std(-1, correction=0).norm(dim=0)
    return spread + 0.3 * opponent.mean(-1).norm(dim=0)


def psnr(rgb_a: Tensor, rgb_b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each pair of pictures in dB; infinite for equal pictures.

    ``10 * log10(peak^2 / mean((a - b)^2))``, the mean over all channels and pixels of a picture
    (Huynh-Thu and Ghanbari, "Scope of validity of PSNR in image/video quality assessment",
    Electronics Letters 44(13), 2008).

    Args:
        rgb_a: ``(N, C, H, W)``, uint8 (peak 255), or floating point in [0, 1] (peak 1).
        rgb_b: same shape and dtype.

    Returns:
        ``(N,)`` floating point.

    Raises:
        ValueError: shapes or dtypes differ.
        TypeError: the dtype is another integer.
    """
    if rgb_a.shape != rgb_b.shape or rgb_a.dtype != rgb_b.dtype:
        raise ValueError(
            f"both pictures must have one shape and dtype, got {tuple(rgb_a.shape)} "
            f"{rgb_a.dtype} and {tuple(rgb_b.shape)} {rgb_b.dtype}"
        )
    difference = _unit_range(rgb_a, "rgb_a") - _unit_range(rgb_b, "rgb_b")
    return -10 * difference.square().flatten(1).mean(1).log10()


def check_classes(rule: str, classes: Tensor) -> None:
    """Raise TypeError, which begins with the rule, for what would be cut off to integers."""
    if classes.is_floating_point():
        got = f"{tuple(classes.shape)} {classes.dtype}"
        raise TypeError(f"{rule}, got {got}; threshold probabilities first")


def _unit_range(rgb: Tensor, name: str) -> Tensor:
    if rgb.dtype == torch.uint8:
        return rgb.float() / 255
    if not rgb.is_floating_point():
        raise TypeError(f"{name} must be uint8 or floating point in [0, 1], got {rgb.dtype}")
    return rgb if rgb.dtype == torch.float64 else rgb.float()
