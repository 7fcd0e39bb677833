"""Images from a ``.npz`` file with the arrays ``train`` and ``test``, and perhaps their labels."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib.npyio import NpzFile

from colorseg.data.cifar10 import Part


def read_npz(path: Path) -> tuple[Part, Part]:
    """Training and test part; without labels in the file, those of the parts are None.

    Raises:
        ValueError: an array is missing, pickled, damaged, or no uint8 (N, H, W, 3).
    """
    with open(path, "rb") as file:  # by name, numpy leaves a damaged file open
        archive = _open(file, path)
        train, test = _read_part(archive, "train", path), _read_part(archive, "test", path)
    if train.pixels.shape[1:] != test.pixels.shape[1:]:
        sizes = f"{train.pixels.shape[1:3]} and {test.pixels.shape[1:3]}"
        raise ValueError(f"{path}: train and test must have images of one size, got {sizes}")
    return train, test


def read_lossless(path: Path) -> np.ndarray | None:
    """Test pictures of which the file has the original pixels, where ``test`` was compressed.

    (N, H, W, 3) uint8 from the array ``exact_test``; None where there is none.

    Raises:
        ValueError: the array is damaged or of another kind.
    """
    with open(path, "rb") as file:
        archive = _open(file, path)
        if "exact_test" not in archive.files:
            return None
        return _read_part(archive, "exact_test", path).pixels


def _open(file: BinaryIO, path: Path) -> NpzFile:
    try:
        archive = np.load(file, allow_pickle=False)
    except Exception as error:  # numpy and zipfile tell damage in a dozen types
        raise ValueError(f"{path} is cut short or no .npz file: {error}") from error
    if not isinstance(archive, NpzFile):
        raise ValueError(f"{path} is a single array, not an .npz file with train and test")
    return archive


def _read_part(archive: NpzFile, key: str, path: Path) -> Part:
    pixels = _read_array(archive, key, path)
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3 or 0 in pixels.shape:
        got = f"{pixels.dtype} {pixels.shape}"
        raise ValueError(f'{path}: "{key}" must be uint8 (N, H, W, 3) and not empty, got {got}')
    if f"{key}_label" not in archive.files:
        return Part(pixels, None)
    labels = _read_array(archive, f"{key}_label", path)
    if labels.dtype.kind not in "iu" or labels.shape != pixels.shape[:1]:
        got = f"{labels.dtype} {labels.shape}"
        raise ValueError(f'{path}: "{key}_label" must be {len(pixels)} integers, got {got}')
    if labels.min() < 0 or labels.max() > 9:
        got = f"{labels.min()} to {labels.max()}"
        raise ValueError(f'{path}: "{key}_label" must be 0 to 9, got {got}')
    return Part(pixels, labels)


def _read_array(archive: NpzFile, key: str, path: Path) -> np.ndarray:
    if key not in archive.files:
        found = ", ".join(archive.files) or "nothing"
        raise ValueError(f'{path} has no array "{key}", only {found}')
    try:
        array = archive[key]
    except Exception as error:  # as above
        raise ValueError(f'{path}: "{key}" is damaged or pickled: {error}') from error
    if not isinstance(array, np.ndarray):  # a member of the zip file that is no .npy
        raise ValueError(f'{path}: "{key}" is no array')
    return array
