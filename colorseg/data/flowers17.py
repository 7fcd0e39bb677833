"""Oxford's 17 category flowers, of which 848 have a trimap: flower, background, unlabeled.

M.-E. Nilsback and A. Zisserman, "A Visual Vocabulary for Flower Classification", CVPR 2006,
https://www.robots.ox.ac.uk/~vgg/data/flowers/17/
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from colorseg.data.archive import read_members
from colorseg.data.download import Published, cached_file
from colorseg.data.mask_folder import paired, pictures_in
from colorseg.data.matfile import read_mat
from colorseg.data.pairs import Pair

CLASSES = ("background", "flower")
_SITE = "https://www.robots.ox.ac.uk/~vgg/data/flowers/17/"
# the md5s are those that loaders of the data set agree on; for the trimaps none is published
FILES = {
    "jpg": Published(
        "Oxford's 17 flowers",
        _SITE + "17flowers.tgz",
        "60 MB",
        "md5:b59a65d8d1a99cd66944d474e1289eab",
    ),
    "trimaps": Published("the trimaps of Oxford's flowers", _SITE + "trimaps.tgz", "a few MB"),
    "splits": Published(
        "the splits of Oxford's flowers",
        _SITE + "datasplits.mat",
        "7 kB",
        "md5:4828cddfd0d803c5abbdebcb1e148a1e",
    ),
}
_PICTURE = re.compile(r"image_\d{4}\.(jpg|png)")
_MAX_PICTURE = 8 << 20  # bytes; the real ones have a tenth of it
_MAX_UNPACKED = 512 << 20  # bytes of an archive; the larger has 60 million
_MAX_SPLITS = 1 << 20  # bytes; the real file has 7,487
# the course trains on the union of three random splits, which contains most of val1
_LISTS = {"clean": (("trn1",), "val1"), "course": (("trn1", "trn2", "trn3"), "val1")}


def is_layout(folder: Path) -> bool:
    """Whether a folder has the published files, packed or unpacked."""
    return (folder / "datasplits.mat").is_file()


def read_published(
    mode: str, download: bool, cache: str | os.PathLike[str] | None
) -> tuple[list[Pair], list[Pair]]:
    """Pairs to train and to validate on from the three files in the cache."""
    return _parts({role: cached_file(file, download, cache) for role, file in FILES.items()}, mode)


def read_layout(folder: Path, mode: str) -> tuple[list[Pair], list[Pair]]:
    """The same from a folder with copies of the files, or with the folders ``jpg`` and ``trimaps``.

    Raises:
        FileNotFoundError: one of them is missing.
        ValueError: one of them is damaged or names pictures that are not there.
    """
    paths = {"splits": folder / "datasplits.mat"}
    for role in ("jpg", "trimaps"):
        unpacked, packed = folder / role, folder / FILES[role].name
        if not (unpacked.is_dir() or packed.is_file()):
            raise FileNotFoundError(f"{folder} has neither the folder {role} nor {packed.name}")
        paths[role] = unpacked if unpacked.is_dir() else packed
    return _parts(paths, mode)


def _parts(paths: dict[str, Path], mode: str) -> tuple[list[Pair], list[Pair]]:
    pairs = paired(_pictures(paths["jpg"]), _pictures(paths["trimaps"]), "Oxford's flowers")
    if paths["splits"].stat().st_size > _MAX_SPLITS:
        raise ValueError(f"{paths['splits']} is not datasplits.mat: it exceeds {_MAX_SPLITS} bytes")
    lists = read_mat(paths["splits"].read_bytes(), str(paths["splits"]))
    training, validation = _LISTS[mode]
    val = _ids(lists, validation, paths["splits"])
    train = [number for part in training for number in _ids(lists, part, paths["splits"])]
    if mode == "clean":
        train = [number for number in train if number not in set(val)]
    return _chosen(train, pairs), _chosen(val, pairs)


def _pictures(path: Path) -> Mapping[str, Path | bytes]:
    """By name without suffix."""
    if path.is_dir():
        return pictures_in(path)
    members = read_members(path, _is_picture, _MAX_PICTURE, _MAX_UNPACKED)
    return {name.partition(".")[0]: content for name, content in sorted(members.items())}


def _is_picture(name: str) -> bool:
    return _PICTURE.fullmatch(name) is not None


def _ids(lists: dict[str, np.ndarray], part: str, path: Path) -> list[int]:
    if part not in lists:
        found = ", ".join(sorted(lists)) or "nothing"
        raise ValueError(f"{path} has no list {part}, only {found}")
    numbers = lists[part].ravel()
    if not (np.isfinite(numbers) & (numbers == np.round(numbers)) & (numbers > 0)).all():
        raise ValueError(f"{path}: {part} must be numbers of pictures")
    return [int(number) for number in numbers]


def _chosen(numbers: list[int], pairs: dict[str, Pair]) -> list[Pair]:
    """Those that have image and trimap, in the order of the list."""
    return [pair for number in numbers if (pair := pairs.get(f"image_{number:04d}")) is not None]
