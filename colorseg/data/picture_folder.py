"""A folder of photographs of any size, as small square pictures to learn colors from.

::

    train/*.jpg|png|...   those to train on, also in folders below
    val/*                 those to validate on, likewise
    *                     or, without these two folders: every fifth is for validation
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from colorseg._files import PICTURES
from colorseg.data.images import ImageSet
from colorseg.data.mask_folder import SUFFIXES, every_fifth
from colorseg.data.photo_set import PhotoSet, square

logger = logging.getLogger(__name__)


def pictures_below(folder: Path) -> list[Path]:
    """Pictures in a folder and in those below it, in the order of their paths."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in SUFFIXES and path.name[0] != "." and path.is_file()
    ]


def read_pictures(
    folder: Path, image_size: int, short_side: int = 0, seed: int = 0, skip_damaged: bool = False
) -> tuple[PhotoSet, ImageSet]:
    """Training and validation set: squares of pictures whose shorter side is scaled first.

    Squares are in the middle to validate.  Those to train are drawn anew at each use; fixed ones,
    by ``seed`` and the picture's number, are for what looks at the set as a whole.

    Args:
        folder: see above.
        image_size: side of the squares.
        short_side: what the shorter side is scaled to; 0 for ``image_size``.
        seed: see above.
        skip_damaged: leave out, with a line in the log, pictures that cannot be decoded.

    Raises:
        ValueError: a size is wrong; a part has no picture; one is damaged.
    """
    short_side = checked_side(image_size, short_side)
    parts = [folder / name for name in ("train", "val")]
    if all(part.is_dir() for part in parts):
        lists = [pictures_below(part) for part in parts]
    else:
        lists = [*every_fifth(pictures_below(folder))]
        logger.info("%s has no folders train and val: every fifth picture validates", folder)
    generator = np.random.Generator(np.random.PCG64(seed))
    places = [generator.random(len(lists[0])), np.full(len(lists[1]), 0.5)]
    sets = []
    for paths, where, name, use in zip(
        lists, places, ("train", "validation"), ("train", "validate"), strict=True
    ):
        photos, squares = [], []
        for path, place in zip(paths, where, strict=True):
            photo = _read(path, short_side, skip_damaged)
            if photo is not None:
                photos.append(photo)
                squares.append(square(photo, image_size, place, place))
        if not photos:
            raise ValueError(f"{folder} has no pictures to {use} on; give it five, or train/, val/")
        sets.append(PhotoSet(torch.stack(squares), f"{folder.name}/{name}", tuple(photos)))
    train, val = sets
    return train, ImageSet(val.images, val.name)


def checked_side(image_size: int, short_side: int) -> int:
    """What shorter sides are scaled to, 0 standing for ``image_size``.

    Raises:
        ValueError: squares of ``image_size`` do not fit, or it is no size.
    """
    if image_size < 1:
        raise ValueError(f"the image size must be at least 1, got {image_size}")
    if short_side and short_side < image_size:
        raise ValueError(
            f"the short side must be 0, or at least the image size {image_size}, got {short_side}"
        )
    return short_side or image_size


def _read(path: Path, short_side: int, skip_damaged: bool) -> Tensor | None:
    try:
        return _photo(path, short_side)
    except ValueError as error:
        if not skip_damaged:
            raise
        logger.warning("left out: %s", error)
        return None


def _photo(path: Path, side: int) -> Tensor:
    """(3, H, W) uint8, of which the shorter side is ``side``."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path, formats=PICTURES) as image:
            image.draft("RGB", (2 * side, 2 * side))  # a JPEG need not be decoded in full
            picture = ImageOps.exif_transpose(image).convert("RGB")
    except Exception as error:  # Pillow tells damage in a dozen types
        reason = str(error) or type(error).__name__
        raise ValueError(f"{path} is damaged or no picture: {reason}") from error
    scale = side / min(picture.size)
    size = max(side, round(picture.width * scale)), max(side, round(picture.height * scale))
    small = np.array(picture.resize(size, Image.Resampling.LANCZOS))
    return torch.from_numpy(small).permute(2, 0, 1).contiguous()
