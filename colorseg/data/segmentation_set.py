"""Images with the class of every pixel, the form in which segmentation data is delivered."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from colorseg.data.images import Index

IGNORE = 255  # the class, in every mask, of pixels that do not count
MEAN = (0.485, 0.456, 0.406)  # of ImageNet, on which the published backbones were trained
DEVIATION = (0.229, 0.224, 0.225)


@dataclass(frozen=True, eq=False)
class SegmentationSet:
    """N images of one size with their masks, in memory: 4 * H * W bytes each.

    Args:
        images: (N, 3, H, W) uint8 RGB.
        masks: (N, H, W) uint8, classes from 0, or ``IGNORE`` (255) where a pixel does not count.
        classes: their names, 2 to 255.
        name: for reports, such as ``"scenes/train"``.

    Raises:
        TypeError: images or masks are not uint8 tensors.
        ValueError: the shapes do not fit, or a mask has a class without a name.
    """

    images: Tensor
    masks: Tensor
    classes: tuple[str, ...]
    name: str

    def __post_init__(self) -> None:
        for role in ("images", "masks"):
            value = getattr(self, role)
            if not isinstance(value, Tensor) or value.dtype != torch.uint8:
                kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
                raise TypeError(f"{role} must be a uint8 tensor, got {kind}")
        images, masks = tuple(self.images.shape), tuple(self.masks.shape)
        if len(images) != 4 or images[1] != 3 or masks != (images[0], *images[2:]):
            raise ValueError(
                f"images must be (N, 3, H, W) and masks (N, H, W), got {images} and {masks}"
            )
        if not 2 <= len(self.classes) <= IGNORE:
            raise ValueError(f"a mask can have 2 to {IGNORE} classes, got {len(self.classes)}")
        counted = self.masks[self.masks != IGNORE]
        if counted.numel() and counted.max() >= len(self.classes):
            raise ValueError(
                f"{self.name} has class {counted.max()} in a mask, but only "
                f"{len(self.classes)} classes: {', '.join(self.classes)}"
            )

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, indices: Index) -> SegmentationSet:
        """Those images, in that order, under the same name."""
        if isinstance(indices, int):
            indices = [indices]
        return SegmentationSet(self.images[indices], self.masks[indices], self.classes, self.name)

    def sha256(self) -> str:
        """Hash of the bytes of images and masks, in hexadecimal."""
        digest = hashlib.sha256(self.images.cpu().numpy().tobytes())
        digest.update(self.masks.cpu().numpy().tobytes())
        return digest.hexdigest()


def normalize(images: Tensor) -> Tensor:
    """The input of a segmentation network: ``(value / 255 - MEAN) / DEVIATION`` per channel.

    Args:
        images: (N, 3, H, W) uint8, or floating point in [0, 1].

    Returns:
        float32 of the same shape.
    """
    values = images.float() / 255 if images.dtype == torch.uint8 else images.float()
    mean, deviation = _normalization(values.device)
    return (values - mean) / deviation


@cache  # a copy from the host would end the recording of a CUDA graph
def _normalization(device: torch.device) -> tuple[Tensor, Tensor]:
    mean, deviation = (torch.tensor(part)[:, None, None].to(device) for part in (MEAN, DEVIATION))
    return mean, deviation
