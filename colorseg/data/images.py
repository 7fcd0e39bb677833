"""A set of RGB images in one tensor, the form in which every source of images is delivered."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Index: TypeAlias = int | slice | Sequence[int] | Tensor

COARSE = 4  # pixels that super-resolution sees as one, along each axis


@dataclass(frozen=True, eq=False)
class ImageSet:
    """N images of one size.

    Args:
        images: (N, 3, H, W) uint8 RGB; kept as it is if its strides are (3*H*W, H*W, W, 1),
            else as a copy that has these.
        name: for reports, such as ``"sample/train"``.

    Raises:
        TypeError: ``images`` is no uint8 tensor.
        ValueError: it is not (N, 3, H, W).
    """

    images: Tensor
    name: str

    def __post_init__(self) -> None:
        images = self.images
        if not isinstance(images, Tensor) or images.dtype != torch.uint8:
            kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
            raise TypeError(f"images must be a uint8 tensor, got {kind}")
        if images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be (N, 3, H, W), got shape {tuple(images.shape)}")
        object.__setattr__(self, "images", _plain(images))

    def __len__(self) -> int:
        return len(self.images)

    def grey(self, index: Index = slice(None)) -> Tensor:
        """The networks' input: the plain mean of R, G and B of value / 256, no luma weights.

        Args:
            index: which images: all, one (then n = 1), a slice, a list or a tensor of indices.

        Returns:
            (n, 1, H, W) float32 in [0, 1), rounded once, with strides (H*W, H*W, W, 1).
        """
        chosen = self.images[index]
        if chosen.dim() == 3:
            chosen = chosen[None]
        total = chosen.sum(1, keepdim=True, dtype=torch.int16)  # 765 at most
        # out= fixes the strides: a size-1 channel dimension may otherwise inherit any
        grey = torch.empty(total.shape, dtype=torch.float32, device=total.device)
        return torch.div(total, 3 * 256, out=grey)

    def coarse(self, index: Index = slice(None)) -> Tensor:
        """The input of super-resolution: means of 4x4 pixels of value / 256, each repeated 4x4.

        Args:
            index: as for ``grey``.

        Returns:
            (n, 3, H, W) float32 in [0, 1).

        Raises:
            ValueError: height or width is no multiple of 4.
        """
        chosen = self.images[index]
        chosen = chosen[None] if chosen.dim() == 3 else chosen
        height, width = chosen.shape[2:]
        if height % COARSE or width % COARSE:
            raise ValueError(
                f"super-resolution takes pictures whose sides are multiples of {COARSE}, got "
                f"{height} x {width}"
            )
        means = F.avg_pool2d(chosen.float() / 256, COARSE)
        return F.interpolate(means, scale_factor=COARSE, mode="nearest")

    def subset(self, indices: Index) -> ImageSet:
        """Those images, in that order, under the same name."""
        chosen = self.images[indices]
        return ImageSet(chosen[None] if chosen.dim() == 3 else chosen, self.name)

    def sha256(self) -> str:
        """Hash of the pixel bytes in (N, 3, H, W) order, in hexadecimal."""
        return hashlib.sha256(self.images.cpu().numpy().tobytes()).hexdigest()


def from_pixels(pixels: np.ndarray, name: str) -> ImageSet:
    """An image set with a copy of (N, H, W, 3) uint8 pixels."""
    return ImageSet(torch.from_numpy(np.array(pixels.transpose(0, 3, 1, 2), order="C")), name)


def _plain(images: Tensor) -> Tensor:
    """The same values with plain strides; is_contiguous() ignores those of size-1 dimensions."""
    if images.stride() == torch.empty(images.shape, device="meta").stride():
        return images
    return torch.empty(images.shape, dtype=images.dtype, device=images.device).copy_(images)
