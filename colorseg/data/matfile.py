"""Numbers from MATLAB's ``.mat`` files of version 5, in which Oxford's flowers name their splits.

"MAT-File Format", The MathWorks, R2024a, chapter 1.  A reader of our own, because scipy would be a
dependency for one file of 7 kB.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from itertools import islice

import numpy as np

_HEADER = 128  # bytes
_COMPRESSED, _MATRIX = 15, 14
_TYPES = {
    1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8",
}  # fmt: skip
_NUMERIC = range(6, 16)  # classes of arrays: double, single, int8 to uint64
_COMPLEX = 0x0800
_MAX_UNPACKED = 16 << 20  # bytes of one compressed array


def read_mat(content: bytes, origin: str) -> dict[str, np.ndarray]:
    """The arrays of real numbers in a file, by name; everything else in it is passed over.

    Args:
        content: of the file.
        origin: what error messages call it.

    Raises:
        ValueError: it is damaged, or no file of version 5 (as ``save -v6`` and ``-v7`` write it).
    """
    if len(content) < _HEADER or content[124:128] not in (b"\x00\x01IM", b"\x01\x00MI"):
        raise ValueError(f"{origin} is no MATLAB file of version 5: save it with -v7")
    order = "<" if content[126:128] == b"IM" else ">"
    arrays = {}
    try:
        for kind, data in _elements(content[_HEADER:], order):
            if kind == _COMPRESSED:
                kind, data = next(_elements(_unpacked(data), order))
            if kind == _MATRIX and (found := _array(data, order)) is not None:
                arrays[found[0]] = found[1]
    except (StopIteration, ValueError, struct.error, zlib.error) as error:
        raise ValueError(f"{origin} is damaged: {error or 'it is cut short'}") from error
    return arrays


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Types and contents of the elements that follow one another."""
    place = 0
    while place < len(data):
        (kind,) = struct.unpack_from(order + "I", data, place)
        if kind >> 16:  # a small one: type, size and content in 8 bytes
            size, kind, start, step = kind >> 16, kind & 0xFFFF, place + 4, 8
        else:
            (size,) = struct.unpack_from(order + "I", data, place + 4)
            start = place + 8
            step = 8 + (size if kind == _COMPRESSED else -(-size // 8) * 8)
        if start + size > len(data) or step == 8 < size:
            raise ValueError("an element reaches beyond the end")
        yield kind, data[start : start + size]
        place += step


def _unpacked(data: bytes) -> bytes:
    stream = zlib.decompressobj()
    content = stream.decompress(data, _MAX_UNPACKED)
    if stream.unconsumed_tail:
        raise ValueError(f"an array unpacks to more than {_MAX_UNPACKED} bytes")
    return content


def _array(data: bytes, order: str) -> tuple[str, np.ndarray] | None:
    """Name and values of an array of real numbers, None for anything else."""
    parts = _elements(data, order)
    described = [_numbers(part, order) for part in islice(parts, 3)]
    if len(described) < 3 or not len(described[0]) or any(d.dtype.kind == "f" for d in described):
        raise ValueError("an array has no flags, shape and name")
    flags, shape, name = described
    if int(flags[0]) & 0xFF not in _NUMERIC or int(flags[0]) & _COMPLEX:
        return None
    values = _numbers(next(parts), order)
    size = [int(length) for length in shape]
    if min(size) < 0 or math.prod(size) != len(values):
        raise ValueError(f"{len(values)} values for an array of shape {size}")
    return bytes(name.astype("u1")).decode("latin1"), values.reshape(size, order="F")


def _numbers(element: tuple[int, bytes], order: str) -> np.ndarray:
    kind, data = element
    if kind not in _TYPES:
        raise ValueError(f"numbers of the unknown type {kind}")
    return np.frombuffer(data, np.dtype(order + _TYPES[kind]))
