"""Images to train on: the embedded sample, CIFAR-10, and files in either of its shapes.

``load_segmentation`` has images with masks: generated scenes, Oxford's flowers, your own folders.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from colorseg.data import cifar10
from colorseg.data.augment import Augmentation
from colorseg.data.cifar10 import CLASSES
from colorseg.data.download import CIFAR10, cached_file
from colorseg.data.images import ImageSet
from colorseg.data.npz import read_npz
from colorseg.data.photo_set import PhotoSet
from colorseg.data.picture_folder import pictures_below, read_pictures
from colorseg.data.sample import load_sample
from colorseg.data.segmentation import load_segmentation
from colorseg.data.segmentation_set import IGNORE, SegmentationSet, normalize

__all__ = [
    "CLASSES",
    "IGNORE",
    "Augmentation",
    "ImageSet",
    "PhotoSet",
    "SegmentationSet",
    "load",
    "load_segmentation",
    "normalize",
]

_KINDS = (
    "'sample', 'cifar10', a folder of CIFAR-10 batches, their .tar.gz archive, a folder of "
    "photographs, or an .npz file"
)


def load(
    source: str | os.PathLike[str] = "sample",
    *,
    classes: Iterable[str | int] | None = cifar10.DEFAULT,
    image_size: int = 32,
    short_side: int = 0,
    skip_damaged: bool = False,
    download: bool = False,
    cache: str | os.PathLike[str] | None = None,
) -> tuple[ImageSet, ImageSet]:
    """Training and validation images.

    Args:
        source: ``"sample"`` (embedded; photographs, no classes), ``"cifar10"``, or the path of
            a folder with the six batches of CIFAR-10's python or binary version,
            its ``.tar.gz`` archive, or
            a folder of photographs, see ``colorseg.data.picture_folder``, or
            an ``.npz`` file with uint8 arrays ``train`` and ``test``, (N, H, W, 3), and optionally
            the classes of their images, ``train_label`` and ``test_label``.
        classes: names or ids of CIFAR-10 classes, None for all; a source that has no labels is
            taken whole by default and with None, and refuses other classes than the default.
        image_size: side of the squares that are cut from photographs, at random places, for
            training anew at each use; others have their own.
        short_side: what the shorter side of a photograph is scaled to first; 0 for
            ``image_size``, so that squares differ in their place along the longer side alone.
        skip_damaged: leave out photographs that cannot be decoded, with a line in the log for each.
        download: whether ``"cifar10"`` may fetch the archive (170 MB) if the cache lacks it.
        cache: folder of that archive; default ``$COLORSEG_CACHE``, or ``colorseg`` in the user's
            cache folder.

    Returns:
        Two image sets in the stored order; CIFAR-10's test images are the validation set.

    Raises:
        FileNotFoundError: there is no such file, or the archive is not in the cache.
        ValueError: an unknown class, or classes of what has no labels; a file that is damaged or
            something else.  Pickles are read as data: one that asks for code to run is refused.
        ImportError, OSError: the download was asked for and is not possible.
    """
    ids = cifar10.class_ids(classes)
    if source == "sample":
        cifar10.check_unlabeled(ids, "the sample")
        return load_sample()
    if source == "cifar10":
        path = cached_file(CIFAR10, download, cache)
    else:
        path = Path(source).expanduser()
    if path.is_dir() and not cifar10.has_batches(path) and pictures_below(path):
        cifar10.check_unlabeled(ids, path.name)
        return read_pictures(path, image_size, short_side, skip_damaged=skip_damaged)
    train, test = _read(path)
    return (
        cifar10.select(train, ids, f"{path.name}/train"),
        cifar10.select(test, ids, f"{path.name}/validation"),
    )


def _read(path: Path) -> tuple[cifar10.Part, cifar10.Part]:
    if path.is_dir():
        return cifar10.read_folder(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}; a source is {_KINDS}")
    if path.suffix == ".npz":
        return read_npz(path)
    if path.name.endswith((".tar.gz", ".tgz")):
        return cifar10.read_archive(path)
    raise ValueError(f"{path} is not among the sources that can be read: {_KINDS}")
