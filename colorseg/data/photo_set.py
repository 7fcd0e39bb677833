"""Photographs of which every use sees another square."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from colorseg.data.images import ImageSet, Index


@dataclass(frozen=True, eq=False)
class PhotoSet(ImageSet):
    """An image set with the photographs that its squares were cut from.

    Args:
        images: a square of each, (N, 3, S, S) uint8, for what looks at fixed pictures.
        name: for reports.
        photos: N of (3, H, W) uint8, of any sizes from S on.
    """

    photos: tuple[Tensor, ...]

    def squares(self, index: Tensor) -> Tensor:
        """Squares (n, 3, S, S) uint8 at places drawn from torch's global generator."""
        side = self.images.shape[2]
        photos = [self.photos[i] for i in index.tolist()]
        places = torch.rand(len(photos), 2, dtype=torch.float64).tolist()
        return torch.stack([square(p, side, *xy) for p, xy in zip(photos, places, strict=True)])

    def subset(self, indices: Index) -> PhotoSet:
        """Those photographs, in that order, under the same name."""
        chosen = torch.atleast_1d(torch.arange(len(self))[indices])
        photos = tuple(self.photos[i] for i in chosen.tolist())
        return PhotoSet(self.images[chosen], self.name, photos)

    def sha256(self) -> str:
        """Hash of the squares' and photographs' pixel bytes, in hexadecimal."""
        digest = hashlib.sha256(self.images.cpu().numpy().tobytes())
        for photo in self.photos:
            digest.update(repr(tuple(photo.shape)).encode() + photo.numpy().tobytes())
        return digest.hexdigest()


def square(photo: Tensor, side: int, across: float, down: float) -> Tensor:
    """The square (3, side, side) of a photograph (3, H, W) at a place, 0 to 1 along each axis."""
    top, left = round(down * (photo.shape[1] - side)), round(across * (photo.shape[2] - side))
    return photo[:, top : top + side, left : left + side]
