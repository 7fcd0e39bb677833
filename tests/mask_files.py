"""Small folders of images and masks, in the layouts that are read."""

from pathlib import Path

import numpy as np
from PIL import Image

FLOWER, UNLABELED, GROUND, LEAF = (128, 0, 0), (0, 0, 0), (128, 128, 0), (0, 128, 0)


def picture(seed: int, width: int = 12, height: int = 12) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def ids(seed: int, classes: int = 2, width: int = 12, height: int = 12) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, classes, (height, width), np.uint8)


def trimap(width: int = 12, height: int = 12) -> np.ndarray:
    """A flower with an unlabeled border on ground and a strip of leaf."""
    rgb = np.full((height, width, 3), GROUND, np.uint8)
    rgb[: height // 6] = LEAF
    rgb[height // 4 : -2, width // 4 : -2] = UNLABELED
    rgb[height // 3 : -4, width // 3 : -4] = FLOWER
    return rgb


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def write_folder(folder: Path, names: str = "abcdefghij", classes: int = 2) -> Path:
    """Images and masks of class ids, without lists."""
    for seed, name in enumerate(names):
        save(folder / "images" / f"{name}.png", picture(seed))
        save(folder / "masks" / f"{name}.png", ids(seed, classes))
    return folder
