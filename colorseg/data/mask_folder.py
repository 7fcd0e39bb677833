"""A folder of images and masks, with the lists of those to train and to validate on.

::

    images/*.jpg|png|...     the pictures
    masks/*.png              one class id per pixel, named as the image;
    trimaps/*.png            or, preferred if there, masks in the colors of Oxford's flowers
    classes.txt              optional: names of the classes, one per line, line 0 for id 0
    splits.csv               optional: columns "name" and "split" (train, val, anything else)
    train.txt, val.txt       or: one name per line
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from colorseg.data.pairs import File, Pair

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
P = TypeVar("P")

EVERY = 5  # without lists, this picture of so many is for validation

logger = logging.getLogger(__name__)


def pictures_in(folder: Path) -> dict[str, Path]:
    """Pictures of a folder by their name without suffix, in the order of their names.

    Raises:
        ValueError: two differ in the suffix alone.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in SUFFIXES or path.name[0] == "." or not path.is_file():
            continue
        if path.stem in found:
            raise ValueError(f"{folder} has both {found[path.stem].name} and {path.name}")
        found[path.stem] = path
    return found


def read_layout(
    folder: Path, parts: tuple[str, str]
) -> tuple[list[Pair], list[Pair], tuple[str, ...] | None]:
    """The pairs of both parts, and the names of the classes if the folder has them.

    Raises:
        FileNotFoundError: a list names a picture that is not there, or that has no mask.
        ValueError: the folder has another layout, or the lists contradict one another.
    """
    images = folder / "images"
    masks = next((path for name in ("trimaps", "masks") if (path := folder / name).is_dir()), None)
    if not images.is_dir() or masks is None:
        raise ValueError(
            f"{folder} is no folder of images and masks: it needs the folders images and masks "
            "(or trimaps)"
        )
    pairs = paired(pictures_in(images), pictures_in(masks), folder.name)
    first, second = (_listed(folder, part) for part in parts)
    if (first is None) != (second is None):
        there, missing = parts if second is None else parts[::-1]
        raise ValueError(
            f"{folder} has the list {there}.txt but no {missing}.txt: add it, or remove the other "
            f"for every {EVERY}th picture to validate"
        )
    if first is None or second is None:
        logger.info("%s has no lists, so every %dth picture is for validation", folder, EVERY)
        lists = every_fifth(list(pairs))
    else:
        lists = first, second
        twice = sorted(set(first) & set(second))
        if twice:
            raise ValueError(
                f"{folder}: {_some(twice)} are both in {parts[0]} and in {parts[1]}, so that "
                "validation would be on what was trained on"
            )
    train, val = ([_pair(pairs, name, folder) for name in names] for names in lists)
    return train, val, _classes(folder)


def paired(
    images: Mapping[str, Path | bytes], masks: Mapping[str, Path | bytes], origin: str
) -> dict[str, Pair]:
    """Pairs of the names that both have; the log says how many images have no mask."""
    both = [name for name in images if name in masks]
    if len(both) < len(images):
        logger.info("%s: %d of %d images have a mask", origin, len(both), len(images))
    return {
        name: Pair(_file(f"image {name}", images[name]), _file(f"mask {name}", masks[name]))
        for name in both
    }


def _file(name: str, content: Path | bytes) -> File:
    return File(str(content) if isinstance(content, Path) else name, content)


def _listed(folder: Path, part: str) -> list[str] | None:
    """The names in a part, None where the folder has no list of it."""
    table, lines = folder / "splits.csv", folder / f"{part}.txt"
    try:
        if table.is_file():
            with open(table, newline="", encoding="utf-8-sig") as file:
                rows = list(csv.DictReader(file))
            if rows and not {"name", "split"} <= rows[0].keys():
                raise ValueError(f'{table} needs the columns "name" and "split"')
            return [row["name"] or "" for row in rows if row["split"] == part]
        if lines.is_file():
            text = lines.read_text(encoding="utf-8-sig")
            return [line.strip() for line in text.splitlines() if line.strip()]
    except (UnicodeDecodeError, csv.Error) as error:
        path = table if table.is_file() else lines
        raise ValueError(f"{path} is no text that can be read: {error}") from error
    return None


def every_fifth(pictures: list[P]) -> tuple[list[P], list[P]]:
    """Those to train on, and every ``EVERY``th, to validate on."""
    train = [picture for i, picture in enumerate(pictures, 1) if i % EVERY]
    return train, pictures[EVERY - 1 :: EVERY]


def _pair(pairs: dict[str, Pair], name: str, folder: Path) -> Pair:
    # looked up, never joined to a path: a list cannot name files of other folders
    found = pairs.get(name) or pairs.get(name.rpartition(".")[0])
    if found is None:
        raise FileNotFoundError(
            f"{folder} lists {name!r}, but has no image of that name, or no mask for it"
        )
    return found


def _classes(folder: Path) -> tuple[str, ...] | None:
    path = folder / "classes.txt"
    if not path.is_file():
        return None
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text that can be read: {error}") from error
    names = [line.strip() for line in lines]
    while names and not names[-1]:
        names.pop()
    if "" in names:
        number = names.index("") + 1
        raise ValueError(
            f"line {number} of {path} is blank, which would shift the ids of the classes below it: "
            "name a class there, or remove the line"
        )
    return tuple(names)


def _some(names: list[str]) -> str:
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + rest
