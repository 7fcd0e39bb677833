"""An image file and its mask file, read to one size, in the course's way or a clean one."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from colorseg._files import PICTURES
from colorseg.data.segmentation_set import IGNORE, MEAN, SegmentationSet

if TYPE_CHECKING:
    from PIL.Image import Image

MODES = ("clean", "course")
_FLOWER = (128, 0, 0)  # colors of Oxford's trimaps
_UNLABELED = (0, 0, 0)
_ID_MODES = ("1", "L", "P", "I", "I;16")  # Pillow's, of pictures with one number per pixel

logger = logging.getLogger(__name__)


class File(NamedTuple):
    """A picture on the disk, or in memory if it comes out of an archive."""

    name: str  # in messages
    content: Path | bytes


class Pair(NamedTuple):
    """An image and the mask that belongs to it."""

    image: File
    mask: File


@dataclass(frozen=True)
class Reader:
    """How pairs become images and masks of one size.

    Args:
        size: height and width.
        mode: ``"clean"`` keeps the aspect (what is missing to a square does not count) and takes
            the nearest pixel of the mask; ``"course"`` stretches image and mask to the square,
            both bilinearly, and keeps as flower what then has exactly its color, so that edges
            and all that is unlabeled become background.
        trimap: masks are those of Oxford's flowers, (128, 0, 0) for the flower and black for
            unlabeled pixels, which the clean mode ignores; else pictures of class ids.
        ignore_index: id of pixels that do not count.
        skip_damaged: leave out, with a line in the log, pairs of which a file cannot be decoded.

    Raises:
        ValueError: the size or the mode is none.
    """

    size: int
    mode: str = "clean"
    trimap: bool = False
    ignore_index: int = IGNORE
    skip_damaged: bool = False

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {self.mode!r}")
        if self.size < 1:
            raise ValueError(f"the image size must be at least 1, got {self.size}")

    def read(self, pairs: Sequence[Pair], classes: tuple[str, ...], name: str) -> SegmentationSet:
        """A set of all pairs.

        Raises:
            ValueError: there are none, a picture is damaged, a mask has another size than its image
                or an id that is no class, or all ids but 0 are ignored.
        """
        if self.mode == "course" and len(classes) != 2:
            raise ValueError(f"the course's mode is for 2 classes, but {name} has {len(classes)}")
        ids: set[int] = set()
        done = [read for pair in pairs if (read := self._read(pair, len(classes), ids)) is not None]
        if not done:
            raise ValueError(f"{name} has no pictures with a mask; choose other data")
        if not self.trimap and IGNORE in ids and ids <= {0, IGNORE}:  # background scores 1 alone
            advice = "save the foreground as 1"
            if self.ignore_index < len(classes):
                advice = "pass another ignore_index"
            raise ValueError(
                f"the masks of {name} have only 0 and {self.ignore_index}, and {self.ignore_index} "
                f"means 'does not count' (ignore_index), so no foreground is left: {advice}"
            )
        images, masks = zip(*done, strict=True)
        return SegmentationSet(torch.stack(images), torch.stack(masks), classes, name)

    def _read(self, pair: Pair, num_classes: int, found: set[int]) -> tuple[Tensor, Tensor] | None:
        """Image and mask of a pair, whose ids are added to those ``found``."""
        try:
            image, mask = _decoded(pair.image), _decoded(pair.mask)
        except ValueError as error:
            if not self.skip_damaged:
                raise
            logger.warning("left out: %s", error)
            return None
        if image.size != mask.size:
            sizes = [f"{w} x {h}" for w, h in (mask.size, image.size)]
            raise ValueError(
                f"the mask {pair.mask.name} is {sizes[0]}, but its image {pair.image.name} is "
                f"{sizes[1]}: they must be of one size"
            )
        pixels = np.array(image.convert("RGB"))
        labels = self._trimap(mask) if self.trimap else self._ids(mask, pair.mask, num_classes)
        found.update(np.unique(labels).tolist())
        if self.mode == "course":
            colors = np.array(mask.convert("RGB")) if self.trimap else _red(labels)
            return _stretch(pixels, self.size), _course_mask(colors, self.size)
        return _fit(pixels, labels, self.size)

    def _trimap(self, mask: Image) -> np.ndarray:
        rgb = np.asarray(mask.convert("RGB"))
        labels = (rgb == _FLOWER).all(-1).astype(np.uint8)
        labels[(rgb == _UNLABELED).all(-1)] = IGNORE
        return labels

    def _ids(self, mask: Image, file: File, num_classes: int) -> np.ndarray:
        if mask.mode not in _ID_MODES:
            raise ValueError(
                f"the mask {file.name} has colors (Pillow's mode {mask.mode}) where class ids "
                "belong: save it as a grey or palette picture with one id per pixel"
            )
        ids = np.asarray(mask).astype(np.int64)
        wrong = ids[(ids != self.ignore_index) & ((ids < 0) | (ids >= num_classes))]
        if wrong.size:
            raise ValueError(
                f"the mask {file.name} has class {wrong[0]}, but there are {num_classes} classes "
                f"(0 to {num_classes - 1}): name more in classes.txt, or pass num_classes, or pass "
                f"{wrong[0]} as ignore_index if such pixels do not count"
            )
        return np.where(ids == self.ignore_index, IGNORE, ids).astype(np.uint8)


def _decoded(file: File) -> Image:
    from PIL import Image

    source = file.content if isinstance(file.content, Path) else io.BytesIO(file.content)
    try:
        with Image.open(source, formats=PICTURES) as picture:
            picture.load()
            return picture
    except Exception as error:  # Pillow tells damage in a dozen types
        reason = str(error) or type(error).__name__
        raise ValueError(f"{file.name} is damaged or no picture: {reason}") from error


def _fit(pixels: np.ndarray, labels: np.ndarray, size: int) -> tuple[Tensor, Tensor]:
    """Both at the largest scale that fits the square, in the middle of it."""
    from PIL import Image

    height, width = labels.shape
    scale = size / max(height, width)
    inner = max(1, round(width * scale)), max(1, round(height * scale))
    left, top = (size - inner[0]) // 2, (size - inner[1]) // 2
    image = Image.new("RGB", (size, size), tuple(round(255 * value) for value in MEAN))
    image.paste(Image.fromarray(pixels).resize(inner, Image.Resampling.BILINEAR), (left, top))
    mask = Image.new("L", (size, size), IGNORE)
    mask.paste(Image.fromarray(labels).resize(inner, Image.Resampling.NEAREST), (left, top))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1), torch.from_numpy(np.array(mask))


def _stretch(pixels: np.ndarray, size: int) -> Tensor:
    """(H, W, 3) to (3, size, size), bilinear between four pixels as the course's OpenCV does."""
    values = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    resized = F.interpolate(values, (size, size), mode="bilinear", align_corners=False)
    return resized[0].round().to(torch.uint8)


def _course_mask(colors: np.ndarray, size: int) -> Tensor:
    flower = torch.tensor(_FLOWER, dtype=torch.uint8)[:, None, None]
    return (_stretch(colors, size) == flower).all(0).to(torch.uint8)


def _red(labels: np.ndarray) -> np.ndarray:
    """Class 1 in the flower's color, all else black."""
    return (labels == 1)[..., None] * np.array(_FLOWER, np.uint8)
