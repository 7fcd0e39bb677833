"""``segment``: the class of every pixel of a photograph of any size."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from colorseg.data import normalize
from colorseg.models import load_segmenter
from colorseg.models.tiling import tiled_rows
from colorseg.photos.casting import cast_for
from colorseg.photos.chroma import ROWS, Enlarged
from colorseg.photos.reading import MAX_PIXELS, Photo, Picture, read_photo
from colorseg.training.segmentation import paint

SIDE = 256  # of the shorter side as the network sees it
TILE, OVERLAP = 512, 64
MAX_CLASSES = 256


def segment(
    image: Picture,
    model: nn.Module | str | Path,
    *,
    side: int | None = SIDE,
    max_pixels: int = MAX_PIXELS,
) -> Image.Image:
    """A mask of the photograph's size, each pixel its class, in colors where it is shown.

    Args:
        image: what ``read_photo`` takes.
        model: as made by ``colorseg.models.deeplabv3``, or any that takes normalized pictures
            (N, 3, H, W) and gives logits per class, as they are or as ``{"out": logits}``; or the
            path of weights that a training run wrote.
        side: pixels of the shorter side that the network sees, 32 or more; best about what it was
            trained on.  None: all of them, in overlapping tiles of 512.
        max_pixels: larger photographs are refused.

    Returns:
        An image of mode "P": ``numpy.array`` of it are the classes, (H, W) uint8.

    Raises:
        FileNotFoundError, OSError, ValueError, TypeError: as ``read_photo``; an option is none of
            those above; the weights are no segmentation network's.
    """
    return mask_image(segment_labels(image, model, side=side, max_pixels=max_pixels))


def segment_labels(
    image: Picture,
    model: nn.Module | str | Path,
    *,
    side: int | None = SIDE,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """The classes themselves, (H, W) uint8; arguments as for ``segment``."""
    if side is not None and side < 32:
        raise ValueError(f"side must be at least 32, or None for all pixels, got {side}")
    photo = read_photo(image, max_pixels)
    network = load_segmenter(model) if isinstance(model, str | Path) else model
    seen = _reduced(photo, side)
    pixels = torch.from_numpy(seen).permute(2, 0, 1)[None]
    rows = (part[0] for part in tiled_rows(Scores(network), pixels, TILE, OVERLAP))
    if seen.shape[:2] == photo.size:
        return np.concatenate([part.argmax(0).to(torch.uint8).numpy() for part in rows])
    return _labels(torch.cat([*rows], 1), photo.size)


class Scores(nn.Module):
    """A network that segments: pixels (N, 3, h, w) uint8 in, logits (N, K, h, w) on the CPU out."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        """The logits, of as many classes as a mask can hold."""
        result: Any = self.network(cast_for(self.network, normalize(pixels)))
        logits: Tensor = result["out"] if isinstance(result, dict) else result
        if logits.shape[1] > MAX_CLASSES:
            raise ValueError(
                f"a mask holds up to {MAX_CLASSES} classes, the model has {logits.shape[1]}"
            )
        return logits.float().cpu()


def mask_image(labels: np.ndarray) -> Image.Image:
    """An image of mode "P" of classes (H, W) uint8."""
    image = Image.fromarray(labels, mode="P")
    colors = paint(torch.arange(MAX_CLASSES)[None, None])[0]  # (3, 1, 256)
    image.putpalette(colors.permute(1, 2, 0).flatten().tolist())
    return image


def overlay(image: Picture, labels: np.ndarray, opacity: float = 0.5) -> Image.Image:
    """The photograph with the colors of its classes over it, but for class 0.

    Args:
        image: what ``read_photo`` takes.
        labels: (H, W) uint8, of the photograph's size.
        opacity: 0 .. 1.

    Raises:
        ValueError: another size, or opacity; and what ``read_photo`` raises.
    """
    photo = read_photo(image)
    if labels.shape != photo.size:
        raise ValueError(f"the mask is {labels.shape} and the photograph {photo.size}, not alike")
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity must be in 0 .. 1, got {opacity}")
    colors = np.array(mask_image(labels).convert("RGB")).astype(np.float32)
    mixed = (1 - opacity) * photo.rgb + opacity * colors
    return photo.image(np.where(labels[..., None] == 0, photo.rgb, mixed.round()).astype(np.uint8))


def _reduced(photo: Photo, side: int | None) -> np.ndarray:
    height, width = photo.size
    if side is None or min(height, width) <= side:
        return photo.rgb
    scale = side / min(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.array(Image.fromarray(photo.rgb).resize(size, Image.Resampling.BILINEAR))


def _labels(logits: Tensor, size: tuple[int, int]) -> np.ndarray:
    """The likeliest class of every pixel, from logits (K, h, w) enlarged bilinearly."""
    enlarged, result = Enlarged(logits, None, size), np.empty(size, np.uint8)
    for first in range(0, size[0], ROWS):
        rows = min(ROWS, size[0] - first)
        scores = enlarged.rows(first, torch.empty(1, rows, size[1]))
        result[first : first + rows] = scores.argmax(0).to(torch.uint8).numpy()
    return result
