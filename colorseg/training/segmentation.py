"""Images with masks as a classification task: RGB pictures in, the class of every pixel out."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from colorseg import ops, reference
from colorseg.data import IGNORE, Augmentation, SegmentationSet, normalize
from colorseg.models import save_weights
from colorseg.training import ranks
from colorseg.training.features import FrozenFeatures
from colorseg.training.history import SegmentationEpoch
from colorseg.training.modes import eval_mode
from colorseg.training.task import require_channels

AUX_WEIGHT = 0.5  # of the second head's loss, as in torchvision's references/segmentation


class SegmentationTask:
    """Batches of one set of images and masks, and the loss on them.

    Args:
        data: the set.
        device: where to compute.
        loss: ``"ce"``, ``"iou"`` or ``"sum"``.
        augmentation: of the pictures that the loss is of; measures are of unchanged ones.
        plain: the losses of ``colorseg.reference``.

    Raises:
        TypeError: it is no ``SegmentationSet``.
        ValueError: it is empty.
    """

    row = SegmentationEpoch
    smallest_batch = 2  # DeepLabV3 normalizes one value per image and channel over the batch
    over_ranks = True  # pixels that do not count make a mean of means wrong

    def __init__(
        self,
        data: SegmentationSet,
        device: torch.device,
        loss: str = "ce",
        augmentation: Augmentation | None = None,
        plain: bool = False,
    ) -> None:
        if not isinstance(data, SegmentationSet):
            raise TypeError(
                f"a network that segments needs a SegmentationSet, got {type(data).__name__}; "
                "colorseg.data.load_segmentation gives two"
            )
        if not len(data):
            raise ValueError(f"the set {data.name} has no pictures; choose other data")
        self.data, self.device, self.augmentation = data, device, augmentation
        self.name = data.name
        self._losses = ("ce", "iou") if loss == "sum" else (loss,)
        self._operators: Any = reference if plain else ops
        # on CUDA all pictures stay there, as bytes
        self._images, self._masks = data.images.to(device), data.masks.to(device)
        self._features: FrozenFeatures | None = None
        self.why_no_graph = (
            None if augmentation is None else "augmentation draws random numbers on the CPU"
        )

    def __len__(self) -> int:
        return len(self.data)

    def sha256(self) -> str:
        """Hash of images and masks."""
        return self.data.sha256()

    def prepare(self, model: nn.Module) -> None:
        """Try the model on a picture; compute its frozen part once, if that changes nothing."""
        self.pictures(model, torch.zeros(1, dtype=torch.long))
        if self.augmentation is None:
            self._features = FrozenFeatures.of(model, self.data, self.device)

    def loss(self, model: nn.Module, index: Tensor) -> Tensor:
        """The loss of the first head's logits, and half that of the second's if there is one."""
        images, masks = self._images[index], self._masks[index]
        if self.augmentation is None:
            images = normalize(images)
        else:
            images, masks = self.augmentation(images, masks)
        results = self._forward(model, images, index)
        total = self._loss(results["out"], masks, ranks.group())
        if "aux" in results:
            total = total + AUX_WEIGHT * self._loss(results["aux"], masks, ranks.group())
        return total

    def measure(self, model: nn.Module, batch_size: int) -> dict[str, float]:
        """``loss`` (mean over batches, weighted by pictures), ``accuracy``, ``miou``, ``course``.

        And ``iou <class>`` for each, and the number of ``pixels`` that count.
        """
        losses: list[float] = []

        def pairs() -> Iterator[tuple[Tensor, Tensor]]:
            for index in torch.arange(len(self)).split(batch_size):
                masks = self._masks[index]
                logits = self._forward(model, self._inputs(index), index)["out"]
                losses.append(self._loss(logits, masks).item() * len(index))
                yield logits.argmax(1), masks

        with torch.no_grad(), eval_mode(model):
            figures = measure_masks(pairs(), self.data.classes)
        return {"loss": math.fsum(losses) / len(self)} | figures

    def pictures(self, model: nn.Module, index: Tensor) -> list[Tensor]:
        """Images, masks (light grey where pixels do not count), and predicted masks."""
        with torch.no_grad(), eval_mode(model):
            predicted = self._forward(model, self._inputs(index), index)["out"].argmax(1).cpu()
        return [self.data.images[index], paint(self.data.masks[index]), paint(predicted)]

    def save(self, model: nn.Module, path: Path) -> None:
        """Weights and the names of the classes, as safetensors."""
        save_weights(model, path, classes=self.data.classes)

    def _inputs(self, index: Tensor) -> Tensor:
        return normalize(self._images[index])

    def _forward(self, model: nn.Module, images: Tensor, index: Tensor) -> Mapping[str, Tensor]:
        if self._features is not None:
            with self._features.in_place(index):
                results = model(images)
        else:
            results = model(images)
        results = results if isinstance(results, Mapping) else {"out": results}
        require_channels(
            results["out"],
            len(self.data.classes),
            f"{self.name} has the classes {', '.join(self.data.classes)}; choose other data",
        )
        return results

    def _loss(self, logits: Tensor, masks: Tensor, group: Any = None) -> Tensor:
        """Of these pictures, or with a group of all ranks' together: see ``Task.loss``."""
        known = {"ce": self._cross_entropy, "iou": self._soft_iou}
        parts = [known[name](logits, masks, group) for name in self._losses]
        return sum(parts[1:], parts[0])

    def _cross_entropy(self, logits: Tensor, masks: Tensor, group: Any) -> Tensor:
        loss: Any = self._operators.color_cross_entropy
        if group is None:
            mean: Tensor = loss(logits, masks, ignore_index=IGNORE)
            return mean
        total: Tensor = loss(logits, masks, ignore_index=IGNORE, reduction="sum")
        pixels = ranks.total((masks != IGNORE).sum())
        return total * (ranks.count() / pixels.clamp(min=1))

    def _soft_iou(self, logits: Tensor, masks: Tensor, group: Any) -> Tensor:
        loss: Any = self._operators.soft_iou_loss
        value: Tensor = loss(logits, masks, ignore_index=IGNORE, process_group=group)
        return value


def measure_masks(
    pairs: Iterable[tuple[Tensor, Tensor]], classes: Sequence[str]
) -> dict[str, float]:
    """What ``SegmentationTask.measure`` gives, but the loss, of (predicted, true) masks."""
    from colorseg.metrics import MeanIoU  # late: torchmetrics is slow to import

    # whoever calls it has all pictures, so that nothing is to be added up over ranks
    options: dict[str, Any] = {"ignore_index": IGNORE, "sync_on_compute": False}
    macro, course = MeanIoU(len(classes), **options), None
    if len(classes) == 2:
        course = MeanIoU(2, "course", **options)
    for predicted, masks in pairs:
        macro.to(masks.device).update(predicted, masks)
        if course is not None:
            course.to(masks.device).update(predicted, masks)
    pixels = macro.confusion.sum().item()
    ious = zip(classes, macro.per_class().tolist(), strict=True)
    return {
        "accuracy": macro.confusion.diagonal().sum().item() / max(1, pixels),
        "miou": macro.compute().item(),
        "course": math.nan if course is None else course.compute().item(),
        **{f"iou {name}": iou for name, iou in ious},
        "pixels": pixels,
    }


def paint(masks: Tensor) -> Tensor:
    """Colors of classes, uint8 ``(N, 3, H, W)``; light grey where pixels do not count.

    As in the course, channels are the class times 2^25 - 1, 2^15 - 1 and 2^21 - 1, modulo 255.
    """
    factors = torch.tensor([2**25 - 1, 2**15 - 1, 2**21 - 1])[:, None, None]
    colors = masks[:, None].long() * factors % 255
    return torch.where(masks[:, None] == IGNORE, 200, colors).to(torch.uint8)
