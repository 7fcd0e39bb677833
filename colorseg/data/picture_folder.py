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

from colorseg.data.cifar10 import Part
from colorseg.data.mask_folder import SUFFIXES, every_fifth

logger = logging.getLogger(__name__)


def pictures_below(folder: Path) -> list[Path]:
    """Pictures in a folder and in those below it, in the order of their paths."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in SUFFIXES and path.name[0] != "." and path.is_file()
    ]


def read_pictures(
    folder: Path, image_size: int, seed: int = 0, skip_damaged: bool = False
) -> tuple[Part, Part]:
    """Training and validation part: square crops along the longer side of each picture.

    The shorter side is scaled to ``image_size`` first; crops are in the middle to validate, and
    at random, by ``seed`` and the picture's number, to train.

    Raises:
        ValueError: a part has no picture; one is damaged and ``skip_damaged`` is False.
    """
    if image_size < 1:
        raise ValueError(f"the image size must be at least 1, got {image_size}")
    parts = [folder / name for name in ("train", "val")]
    if all(part.is_dir() for part in parts):
        lists = [pictures_below(part) for part in parts]
    else:
        lists = [*every_fifth(pictures_below(folder))]
        logger.info("%s has no folders train and val: every fifth picture validates", folder)
    generator = np.random.Generator(np.random.PCG64(seed))
    places = [generator.random(len(lists[0])), np.full(len(lists[1]), 0.5)]
    train, val = (
        _read(paths, where, image_size, skip_damaged)
        for paths, where in zip(lists, places, strict=True)
    )
    for part, name in ((train, "train"), (val, "validate")):
        if not part:
            raise ValueError(
                f"{folder} has no pictures to {name} on; give it five, or train/, val/"
            )
    return Part(np.stack(train), None), Part(np.stack(val), None)


def _read(paths: list[Path], places: np.ndarray, size: int, skip_damaged: bool) -> list[np.ndarray]:
    pictures = []
    for path, place in zip(paths, places, strict=True):
        try:
            pictures.append(_square(path, size, place))
        except ValueError as error:
            if not skip_damaged:
                raise
            logger.warning("left out: %s", error)
    return pictures


def _square(path: Path, size: int, place: float) -> np.ndarray:
    """(size, size, 3) uint8: a crop at ``place`` (0 to 1) along the longer side."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            image.draft("RGB", (2 * size, 2 * size))  # a JPEG need not be decoded in full
            picture = ImageOps.exif_transpose(image).convert("RGB")
    except Exception as error:  # Pillow tells damage in a dozen types
        reason = str(error) or type(error).__name__
        raise ValueError(f"{path} is damaged or no picture: {reason}") from error
    width, height = picture.size
    scale = size / min(width, height)
    scaled = max(size, round(width * scale)), max(size, round(height * scale))
    left, top = (round(place * (side - size)) for side in scaled)
    small = picture.resize(scaled, Image.Resampling.LANCZOS)
    return np.array(small.crop((left, top, left + size, top + size)))
