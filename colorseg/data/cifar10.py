"""CIFAR-10 in its "python version", six pickled batches, or its "binary version", six plain ones.

Either in a folder or in a tar.gz archive.

A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009,
https://www.cs.toronto.edu/~kriz/cifar.html
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from colorseg.data import safe_pickle
from colorseg.data.archive import read_members
from colorseg.data.images import ImageSet, from_pixels

CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
_TRAIN = tuple(f"data_batch_{i}" for i in range(1, 6))
_BATCHES = (*_TRAIN, "test_batch")
_BINARY = {f"{name}.bin": name for name in _BATCHES}
_FOLDERS = ("cifar-10-batches-py", "cifar-10-batches-bin")
_RECORD = 1 + 3 * 32 * 32  # of the binary version: a label, then red, green and blue planes
_MAX_BATCH = 64 << 20  # bytes; the real ones have 31 million
_MAX_UNPACKED = 256 << 20  # bytes; the real archive has 186 million


DEFAULT = ("horse",)  # the classes of who names none


class Part(NamedTuple):
    """The training or the validation images as they are stored."""

    pixels: np.ndarray  # (N, H, W, 3) uint8
    labels: np.ndarray | None  # (N,) 0 to 9; None where the file has none


def class_ids(classes: Iterable[str | int] | None) -> list[int] | None:
    """Ids of classes given by name or id; None, for all, stays None.

    Raises:
        ValueError: no such class, or none at all.
        TypeError: neither names nor ids.
    """
    if classes is None:
        return None
    chosen = [classes] if isinstance(classes, str | int) else list(classes)
    if not chosen:
        raise ValueError("classes is empty: name at least one, or pass None for all")
    return sorted({_class_id(name) for name in chosen})


def _class_id(name: str | int) -> int:
    if isinstance(name, bool) or not isinstance(name, str | int):
        raise TypeError(f"classes are names or ids, got {name!r}")
    if isinstance(name, str) and name in CLASSES:
        return CLASSES.index(name)
    if isinstance(name, int) and 0 <= name < len(CLASSES):
        return name
    known = ", ".join(f"{i} {known}" for i, known in enumerate(CLASSES))
    raise ValueError(f"there is no class {name!r} in CIFAR-10, which has {known}")


def check_unlabeled(ids: list[int] | None, name: str) -> None:
    """Raise ValueError if other classes than the default's are wanted of what has no labels."""
    if ids not in (None, class_ids(DEFAULT)):
        raise ValueError(
            f"{name} has no labels to choose classes by: leave classes out, which takes all of it"
        )


def select(part: Part, ids: list[int] | None, name: str) -> ImageSet:
    """The images of the chosen classes, in the order in which they are stored; all if unlabeled."""
    if part.labels is None:
        check_unlabeled(ids, name)
    if ids is None or part.labels is None:
        return from_pixels(part.pixels, name)
    chosen = np.isin(part.labels, ids)
    if not chosen.any():
        names = ", ".join(CLASSES[i] for i in ids)
        raise ValueError(f"{name} has no image of the classes asked for: {names}")
    return from_pixels(part.pixels[chosen], name)


def has_batches(folder: Path) -> bool:
    """Whether a folder has a batch, or a folder of them."""
    names = (*_BATCHES, *_BINARY, *_FOLDERS)
    return any((folder / name).exists() for name in names)


def read_folder(folder: Path) -> tuple[Part, Part]:
    """Training and test part from a folder with the six batches, or with a folder of them."""
    folder = next((folder / name for name in _FOLDERS if (folder / name).is_dir()), folder)
    files = {}
    for name in (*_BATCHES, *_BINARY):
        path = folder / name
        if path.is_file():
            if path.stat().st_size > _MAX_BATCH:
                raise ValueError(f"{path} is no batch of CIFAR-10: it exceeds {_MAX_BATCH} bytes")
            files[name] = path.read_bytes()
    return _parts(files, folder)


def read_archive(path: Path) -> tuple[Part, Part]:
    """Training and test part from the tar.gz archive; nothing is unpacked to the disk."""
    return _parts(read_members(path, _is_batch, _MAX_BATCH, _MAX_UNPACKED), path)


def _is_batch(name: str) -> bool:
    return name in _BATCHES or name in _BINARY


def _parts(files: dict[str, bytes], origin: Path) -> tuple[Part, Part]:
    read = _read_batch
    if not files.keys() & set(_BATCHES) and files:
        files = {_BINARY[name]: content for name, content in files.items()}
        read = _read_binary
    missing = [name for name in _BATCHES if name not in files]
    if missing:
        raise ValueError(
            f"{origin} lacks {', '.join(missing)}: colorseg reads CIFAR-10 with data_batch_1 to "
            "data_batch_5 and test_batch, of the python version or, ending in .bin, the binary one"
        )
    batches = {name: read(files[name], f"{origin}: {name}") for name in _BATCHES}
    pixels, labels = zip(*(batches[name] for name in _TRAIN), strict=True)
    return Part(np.concatenate(pixels), np.concatenate(labels)), Part(*batches["test_batch"])


def _read_binary(content: bytes, origin: str) -> tuple[np.ndarray, np.ndarray]:
    if not content or len(content) % _RECORD:
        raise ValueError(
            f"{origin} is no binary batch of CIFAR-10: {len(content)} bytes are no whole number of "
            f"records of {_RECORD}"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, _RECORD)
    labels = records[:, 0]
    if labels.max() > 9:
        raise ValueError(f"{origin} is no binary batch of CIFAR-10: label {labels.max()}")
    return records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels


def _read_batch(content: bytes, origin: str) -> tuple[np.ndarray, np.ndarray]:
    batch = safe_pickle.loads(content, origin)
    data, labels = batch.get(b"data"), batch.get(b"labels")
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (3072,):
        raise ValueError(f'{origin} is no batch of CIFAR-10: "data" must be uint8 (n, 3072)')
    if not isinstance(labels, list) or not all(type(x) is int and 0 <= x <= 9 for x in labels):
        raise ValueError(f'{origin} is no batch of CIFAR-10: "labels" must list integers 0 to 9')
    if len(labels) != len(data):
        raise ValueError(f"{origin} has {len(data)} images but {len(labels)} labels")
    return data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), np.array(labels, np.uint8)
