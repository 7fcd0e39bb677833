"""``load_segmentation``: images with masks from every source of them."""

from __future__ import annotations

import os
from pathlib import Path

from colorseg.data import flowers17, mask_folder
from colorseg.data.pairs import Reader
from colorseg.data.scenes import load_scenes
from colorseg.data.segmentation_set import IGNORE, SegmentationSet


def load_segmentation(
    source: str | os.PathLike[str] = "scenes",
    *,
    image_size: int = 96,
    mode: str = "clean",
    num_classes: int | None = None,
    ignore_index: int = IGNORE,
    parts: tuple[str, str] = ("train", "val"),
    download: bool = False,
    cache: str | os.PathLike[str] | None = None,
    skip_damaged: bool = False,
) -> tuple[SegmentationSet, SegmentationSet]:
    """Images with masks to train and to validate on, all of one size.

    Args:
        source: ``"scenes"`` (generated, see ``colorseg.data.scenes``), ``"flowers17"`` (Oxford's
            17 flowers), or the path of a folder: with the published files of Oxford's flowers, or
            with images and masks as in ``colorseg.data.mask_folder``.
        image_size: height and width; the course has 224.
        mode: ``"clean"`` or ``"course"``, see ``colorseg.data.pairs``; Oxford's flowers also have
            other lists: clean trains on trn1 without what is in val1, the course on trn1, trn2 and
            trn3, duplicates and all.
        num_classes: of a folder without classes.txt; 2 if not given.
        ignore_index: id, in the masks of a folder, of pixels that do not count.
        parts: the two lists of a folder, for example ``("train", "test")``.
        download: whether ``"flowers17"`` may fetch its files (60 MB).
        cache: folder of those; default ``$COLORSEG_CACHE``, or ``colorseg`` in the user's cache.
        skip_damaged: leave out pictures that cannot be decoded, with a line in the log for each.

    Returns:
        Two sets; masks have ``IGNORE`` (255) where pixels do not count.

    Raises:
        FileNotFoundError: there is no such folder or file, or a list names what is not there.
        ValueError: an option is none of these, or a file is damaged or something else; it is named.
        ImportError, OSError: the download was asked for and is not possible.
    """
    if source == "scenes":
        Reader(image_size, mode)  # for its checks
        return load_scenes(image_size)
    classes: tuple[str, ...] = flowers17.CLASSES
    if source == "flowers17":
        train, val = flowers17.read_published(mode, download, cache)
        trimap, name = True, "flowers17"
    else:
        folder = _existing(Path(source).expanduser())
        oxford = flowers17.is_layout(folder)
        name, trimap = folder.name, oxford or (folder / "trimaps").is_dir()
        classes = classes if trimap else _numbered(num_classes or 2)
        if oxford:
            train, val = flowers17.read_layout(folder, mode)
        else:
            train, val, named = mask_folder.read_layout(folder, parts)
            classes = named or classes
    if num_classes not in (None, len(classes)):
        raise ValueError(
            f"num_classes is {num_classes}, but {name} has {len(classes)}: {', '.join(classes)}"
        )
    reader = Reader(image_size, mode, trimap, ignore_index, skip_damaged)
    first, second = (
        reader.read(pairs, classes, f"{name}/{part}")
        for pairs, part in ((train, parts[0]), (val, parts[1]))
    )
    return first, second


def _existing(folder: Path) -> Path:
    if not folder.is_dir():
        raise FileNotFoundError(
            f"there is no folder {folder}; a source is 'scenes', 'flowers17', or a folder"
        )
    return folder


def _numbered(number: int) -> tuple[str, ...]:
    return ("background", *(f"class {i}" for i in range(1, number)))
