"""The embedded sample: small crops of four photographs, for demonstrations without a download.

``sample.png`` holds them as tiles, row by row, the training part first; ``sample_sources.md``
names the photographs and ``sample_tiles.json`` the place of every tile in them.
``tools/make_sample.py`` makes all of it.
"""

from __future__ import annotations

from importlib import resources

import numpy as np

from colorseg.data.images import ImageSet, from_pixels

TILE = 32  # pixels
COLUMNS = 40  # tiles in a row of the sheet
N_TRAIN = 1200
N_VALIDATION = 240


def load_sample() -> tuple[ImageSet, ImageSet]:
    """1,200 training and 240 validation images, 32 x 32, which share no pixel of a photograph."""
    from PIL import Image

    file = resources.files("colorseg.data") / "sample.png"
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: install colorseg again")
    with file.open("rb") as stream, Image.open(stream) as image:
        tiles = cut(np.asarray(image.convert("RGB")))
    return from_pixels(tiles[:N_TRAIN], "sample/train"), from_pixels(
        tiles[N_TRAIN:], "sample/validation"
    )


def cut(sheet: np.ndarray) -> np.ndarray:
    """Tiles (N, TILE, TILE, 3) of a sheet (rows * TILE, COLUMNS * TILE, 3), row by row."""
    rows = sheet.reshape(-1, TILE, COLUMNS, TILE, 3)
    return rows.transpose(0, 2, 1, 3, 4).reshape(-1, TILE, TILE, 3)


def join(tiles: np.ndarray) -> np.ndarray:
    """The inverse of ``cut``."""
    rows = tiles.reshape(-1, COLUMNS, TILE, TILE, 3)
    return rows.transpose(0, 2, 1, 3, 4).reshape(-1, COLUMNS * TILE, 3)
