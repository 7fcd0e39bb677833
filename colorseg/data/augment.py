"""Random changes of images and their masks, a batch at a time, on the device they are on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from colorseg.data.segmentation_set import IGNORE, normalize


@dataclass(frozen=True)
class Augmentation:
    """Flip, scale, crop and color jitter, drawn for every image from torch's global generator.

    Args:
        scale: smallest and largest magnification; a larger image is cropped at a random place, a
            smaller one is surrounded by pixels that do not count.
        jitter: brightness, contrast and saturation are multiplied by up to 1 + jitter or divided
            by as much.
        flip: whether half of the images are mirrored.

    Raises:
        ValueError: a number is out of range.
    """

    scale: tuple[float, float] = (0.75, 1.75)
    jitter: float = 0.3
    flip: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale must be two numbers above 0, in order, got {self.scale}")
        if not self.jitter >= 0:
            raise ValueError(f"jitter must be at least 0, got {self.jitter}")

    def __call__(self, images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Changed copies.

        Args:
            images: (N, 3, H, W) uint8.
            masks: (N, H, W) uint8.

        Returns:
            Normalized images, (N, 3, H, W) float32, and masks like those given.
        """
        grid = self._grid(images)
        changed = F.grid_sample(normalize(self._recolor(images)), grid, align_corners=False)
        # + 1, so that the zeros outside of the image can be told from class 0
        moved = F.grid_sample(masks[:, None].float() + 1, grid, "nearest", align_corners=False)
        moved = moved[:, 0] - 1
        return changed, torch.where(moved < 0, IGNORE, moved).to(torch.uint8)

    def _grid(self, images: Tensor) -> Tensor:
        """Where every pixel comes from, (N, H, W, 2) in [-1, 1]."""
        size = len(images)
        low, high = torch.tensor(self.scale).log()
        reach = 1 / (low + (high - low) * torch.rand(size)).exp()  # what is seen of the image
        mirror = 1 - 2 * (torch.rand(size) < 0.5).float() * self.flip
        shift = (1 - reach)[:, None].abs() * (2 * torch.rand(size, 2) - 1)
        theta = torch.zeros(size, 2, 3)
        theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = reach * mirror, reach, shift
        return F.affine_grid(theta.to(images.device), list(images.shape), align_corners=False)

    def _recolor(self, images: Tensor) -> Tensor:
        values = images.float() / 255
        brightness, contrast, saturation = (self._factor(images) for _ in range(3))
        values = values * brightness
        grey = values.mean(1, keepdim=True)
        values = grey + (values - grey) * saturation
        middle = values.mean((1, 2, 3), keepdim=True)
        return (middle + (values - middle) * contrast).clamp(0, 1)

    def _factor(self, images: Tensor) -> Tensor:
        exponent = 2 * torch.rand(len(images), 1, 1, 1) - 1
        return ((1 + self.jitter) ** exponent).to(images.device)
