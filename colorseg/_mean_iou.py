"""``MeanIoU``; a file of its own, because torchmetrics takes one to two seconds to import."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from colorseg.metrics import check_classes

DEFINITIONS = ("macro", "foreground", "image", "course")
ABSENT = {"ignore": float("nan"), "zero": 0.0, "one": 1.0}


class MeanIoU(Metric):
    """Mean intersection over union; which of its definitions must be said.

    The IoU of a class is ``TP / (TP + FP + FN)``.

    * ``"macro"``: of the confusion matrix of all pixels of the data set, mean over the classes.
    * ``"foreground"``: the same without class 0.
    * ``"image"``: per image the mean over its classes, then the mean over images.
    * ``"course"``: of two classes, the score of the course that the networks come from, taken from
      a Kaggle contest: per image ``i = (|P and G| + 1e-6) / (|P or G| + 1e-6)`` of class 1, then
      ``ceil(clamp(20 * (i - 0.5), 0, 10)) / 10``, the share of the thresholds 0.5, 0.55, ..., 0.95
      that i exceeds; then the mean over images.  It is far below the IoU itself: 0.72 scores 0.5.

    The states are sums, so that ranks of a distributed run add up to what one process measures.

    Args:
        num_classes: C, at least 2.
        definition: one of the above.
        absent: what a class counts that is neither in the target nor predicted, in the data set or
            (for "image") in an image: "ignore" leaves it out of the mean, else 0 for "zero" or
            1 for "one".  "course" has its smoothing instead: two empty masks score 1.
        ignore_index: pixels with this target do not count.
        **options: those of ``torchmetrics.Metric``, such as ``sync_on_compute``.

    Raises:
        ValueError: an argument is none of these.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    confusion: Tensor  # (C, C) int64, row: target, column: predicted
    score: Tensor  # float64, sum over images; of the course in tenths, which add up exactly
    images: Tensor  # int64, those in the sum

    def __init__(
        self,
        num_classes: int,
        definition: str = "macro",
        absent: str = "ignore",
        ignore_index: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}")
        if definition not in DEFINITIONS:
            known = ", ".join(DEFINITIONS)
            raise ValueError(f"definition must be one of {known}, got {definition!r}")
        if absent not in ABSENT:
            raise ValueError(f"absent must be one of {', '.join(ABSENT)}, got {absent!r}")
        if definition == "course" and num_classes != 2:
            raise ValueError(f"the course's score is of 2 classes, got num_classes={num_classes}")
        self.num_classes, self.definition = num_classes, definition
        self.absent, self.ignore_index = absent, ignore_index
        zeros = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self.add_state("confusion", zeros, dist_reduce_fx="sum")
        self.add_state("score", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, target: Tensor) -> None:
        """Count a batch.

        Args:
            predicted: classes (N, H, W) of an integer dtype, or logits (N, C, H, W).
            target: classes (N, H, W), integer or bool.

        Raises:
            ValueError: shapes differ, or a class is not below num_classes.
            TypeError: one is floating point and no logits.
        """
        if predicted.is_floating_point() and predicted.dim() == 4:
            if predicted.shape[1] != self.num_classes:
                raise ValueError(
                    f"logits must be (N, C, H, W) with C = num_classes = {self.num_classes}, got "
                    f"{tuple(predicted.shape)}"
                )
            predicted = predicted.argmax(1)
        classes = "integer classes (N, H, W)"
        check_classes(f"predicted must be {classes} or logits (N, C, H, W)", predicted)
        check_classes(f"target must be {classes}", target)
        if predicted.shape != target.shape or target.dim() != 3:
            raise ValueError(
                "predicted must be (N, H, W) or logits (N, C, H, W) and target (N, H, W), got "
                f"{tuple(predicted.shape)} and {tuple(target.shape)}"
            )
        counts = self._count(predicted.long(), target.long())  # (N, C, C)
        self.confusion += counts.sum(0)
        if self.definition in ("image", "course"):
            scores = _course(counts) if self.definition == "course" else self._mean(counts)
            known = ~scores.isnan()  # NaN: an image without a pixel that counts
            self.score += scores[known].sum()
            self.images += known.sum()

    def compute(self) -> Tensor:
        """The mean IoU, a float64 scalar; NaN if nothing was counted."""
        if self.definition == "course":
            return self.score / (10 * self.images)
        if self.definition == "image":
            return self.score / self.images
        return self._mean(self.confusion[None])[0]

    def per_class(self) -> Tensor:
        """IoU of every class over the data set, (C,) float64, under any definition.

        An absent class has NaN, 0 or 1, as ``absent`` says.
        """
        with self.sync_context(should_sync=self.sync_on_compute):
            return self._iou(self.confusion)

    def table(self, names: Sequence[str] | None = None) -> str:
        """Lines of class, IoU and share of the pixels in percent, for reading.

        Args:
            names: of the classes; their ids if None.
        """
        names = names or [str(i) for i in range(self.num_classes)]
        with self.sync_context(should_sync=self.sync_on_compute):
            pixels = self.confusion.sum(1)
        share = 100 * pixels / pixels.sum()
        width = max(5, *map(len, names))
        lines = [f"{'class':<{width}}     IoU  pixels"]
        for name, iou, part in zip(names, self.per_class(), share, strict=True):
            lines.append(f"{name:<{width}}  {iou:6.4f}  {part:4.1f} %")
        return "\n".join(lines)

    def _count(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Confusion matrices of the images, (N, C, C)."""
        size, valid = self.num_classes, torch.ones_like(target, dtype=torch.bool)
        if self.ignore_index is not None:
            valid = target != self.ignore_index
        for name, classes in ("predicted", predicted[valid]), ("target", target[valid]):
            if classes.numel() and not 0 <= classes.min() <= classes.max() < size:
                raise ValueError(
                    f"{name} has classes {classes.min()} to {classes.max()}, but num_classes is "
                    f"{size}; pass ignore_index for pixels that do not count"
                )
        image = torch.arange(len(target), device=target.device)[:, None, None].expand_as(target)
        pair = (image * size + target) * size + predicted
        counts = torch.bincount(pair[valid], minlength=len(target) * size * size)
        return counts.reshape(-1, size, size)

    def _iou(self, counts: Tensor) -> Tensor:
        """(..., C, C) to (..., C)."""
        both = counts.diagonal(dim1=-2, dim2=-1).double()
        union = counts.sum(-1) + counts.sum(-2) - both
        return torch.where(union > 0, both / union, ABSENT[self.absent])

    def _mean(self, counts: Tensor) -> Tensor:
        """(N, C, C) to (N,); NaN where no pixel counts."""
        iou = self._iou(counts)[:, 1 if self.definition == "foreground" else 0 :].nanmean(1)
        return torch.where(counts.sum((1, 2)) > 0, iou, torch.nan)


def _course(counts: Tensor) -> Tensor:
    """Scores (N,) in tenths of confusion matrices (N, 2, 2), in the float32 of the course."""
    both = counts[:, 1, 1].float()
    union = both + counts[:, 0, 1] + counts[:, 1, 0]
    iou = (both + 1e-6) / (union + 1e-6)
    tenths = torch.ceil(torch.clamp(20 * (iou - 0.5), 0, 10)).double()
    return torch.where(counts.sum((1, 2)) > 0, tenths, torch.nan)
