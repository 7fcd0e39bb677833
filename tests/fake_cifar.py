"""Small files in the formats of CIFAR-10, for the tests of colorseg.data."""

import io
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest

from colorseg.data import ImageSet, safe_pickle

TRAIN = [f"data_batch_{i}" for i in range(1, 6)]
BATCHES = [*TRAIN, "test_batch"]
LABELS = [7, 0, 7, 3]  # of every batch: two horses, an airplane, a cat


def pixels(seed: int, n: int = len(LABELS)) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, (n, 3072)).astype(np.uint8)


def batch(seed: int, **changes: object) -> dict[bytes, object]:
    content = {
        b"batch_label": b"fake",
        b"labels": LABELS,
        b"data": pixels(seed),
        b"filenames": [b"a.png", b"b.png", b"c.png", b"d.png"],
    }
    return content | {key.encode(): value for key, value in changes.items()}


def all_batches(protocol: int = 2) -> dict[str, bytes]:
    return {name: pickle.dumps(batch(i), protocol) for i, name in enumerate(BATCHES)}


def horses(part: range) -> np.ndarray:
    """What loading the class horse must give, (N, 3, 32, 32)."""
    return np.concatenate([pixels(i)[[0, 2]] for i in part]).reshape(-1, 3, 32, 32)


def check_horses(loaded: tuple[ImageSet, ImageSet]) -> None:
    """Assert that these are the horses of ``all_batches``, in plain layout."""
    for images, part in zip(loaded, (range(5), range(5, 6)), strict=True):
        assert np.array_equal(images.images.numpy(), horses(part))
        assert images.images.stride() == (3072, 1024, 32, 1)


def write_folder(folder: Path, batches: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in batches.items():
        (folder / name).write_bytes(content)
    return folder


def write_archive(path: Path, batches: dict[str, bytes], extra: list[tarfile.TarInfo] = ()) -> Path:
    """A tar.gz with ``extra`` members, which may lie, before the batches."""
    with tarfile.open(path, "w:gz") as archive:
        for member in extra:
            archive.addfile(member, io.BytesIO(bytes(member.size)) if member.isreg() else None)
        for name, content in batches.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def python2_pickle(data: np.ndarray, labels: list[int]) -> bytes:
    """The instructions by which Python 2 wrote the real batches (protocol 2, byte strings)."""

    def string(text: bytes) -> bytes:
        return b"U" + bytes([len(text)]) + text

    def number(value: int) -> bytes:
        return b"K" + bytes([value]) if value < 256 else b"M" + struct.pack("<H", value)

    shape = number(data.shape[0]) + number(data.shape[1]) + b"\x86"
    dtype = b"cnumpy\ndtype\n" + string(b"u1") + b"K\x00K\x01\x87R"
    dtype += b"(K\x03" + string(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    raw = b"T" + struct.pack("<i", data.size) + data.tobytes()
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85" + string(b"b")
    array += b"tR(K\x01" + shape + dtype + b"\x89" + raw + b"tb"
    listed = b"](" + b"".join(number(label) for label in labels) + b"e"
    return b"\x80\x02}(" + string(b"labels") + listed + string(b"data") + array + b"u."


def refusal(content: bytes) -> str:
    """What the reader of pickles says of a pickle that it must refuse."""
    with pytest.raises(ValueError, match=r"^x is ") as caught:
        safe_pickle.loads(content, "x")
    return str(caught.value)
