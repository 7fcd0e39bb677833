"""Reading the pickles in which CIFAR-10 is distributed, without running what is in them.

A pickle is a program.  The reader below executes only the instructions that plain data need, and
every name a pickle may mention stands for a small class of this module: no attribute, no numpy
function and no module is ever reached from the file.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

_NDARRAY = "numpy.ndarray"  # pickles pass the class around but never need to call it


class Refused(ValueError):
    """The pickle asks for more than arrays, bytes, str, int, list and dict."""


class _Dtype:
    """Stands for ``numpy.dtype``: plain numbers only, so no objects and no records."""

    def __init__(self, code: Any, align: Any = False, copy: Any = False) -> None:
        self.code = _text(code)
        if not re.fullmatch("b1|[iu][1248]|f[248]", self.code):
            raise Refused(f"an array of type {self.code!r:.40}")
        self.plain = np.dtype(self.code)

    def __setstate__(self, state: Any) -> None:
        # (version, byte order, subarray, names, fields, size, alignment, flags)
        order = _text(state[1])
        if order not in ("|", "<", ">", "=") or any(part is not None for part in state[2:5]):
            raise Refused("an array of records")
        self.plain = np.dtype(order + self.code)


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("latin1")  # Python 2 wrote str as bytes
    if not isinstance(value, str):
        raise ValueError(f"a {type(value).__name__} for a string")
    return value


class _Array:
    """Stands for ``numpy.core.multiarray._reconstruct`` and for the array that comes of it."""

    def __init__(self, subtype: Any, shape: Any, code: Any) -> None:
        if subtype is not _NDARRAY:
            raise Refused("an array of a class of its own")
        self.value: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        if not isinstance(raw, bytes):
            raise Refused("an array of objects")
        if any(type(size) is not int or size < 0 for size in shape):
            raise ValueError("a shape that is none")  # not shown: its repr could take forever
        if math.prod(shape) * dtype.plain.itemsize != len(raw):
            raise ValueError(f"{len(raw)} bytes for an array of another size")
        flat = np.frombuffer(raw, dtype.plain)
        self.value = flat.reshape(shape, order="F" if fortran else "C")


class _Encoded(bytes):
    """Stands for ``_codecs.encode``, by which Python 3 writes bytes in protocol 2."""

    def __new__(cls, text: str, codec: Any) -> Any:
        if _text(codec) != "latin1":
            raise Refused("a codec other than latin1")
        return text.encode("latin1")  # plain bytes, never an instance of this class

    def __setstate__(self, state: Any) -> None:
        # without this method BUILD could set attributes of the class itself
        raise Refused("changes to a function")


_NAMES: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _Encoded,
}
_OPCODES = (
    "PROTO FRAME STOP MARK MEMOIZE BINPUT LONG_BINPUT BINGET LONG_BINGET NONE NEWTRUE NEWFALSE "
    "BININT BININT1 BININT2 LONG1 BINSTRING SHORT_BINSTRING BINUNICODE SHORT_BINUNICODE BINBYTES "
    "SHORT_BINBYTES EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS EMPTY_DICT "
    "SETITEM SETITEMS GLOBAL STACK_GLOBAL REDUCE BUILD"
)
_Handler: TypeAlias = Callable[[Any], None]


def _handlers(known: dict[int, _Handler]) -> dict[int, _Handler]:
    """What the reader does for each opcode: as the standard library, with checks, or refuse."""
    admitted = {getattr(pickle, name)[0] for name in _OPCODES.split()}
    table = {code: run if code in admitted else _refusing(code) for code, run in known.items()}
    for code, keys in ((pickle.SETITEM[0], slice(-2, -1)), (pickle.SETITEMS[0], slice(0, None, 2))):
        table[code] = _checking_keys(known[code], keys)
    table[pickle.REDUCE[0]] = _within_budget(known[pickle.REDUCE[0]])
    return table


def _refusing(code: int) -> _Handler:
    name = next(opcode.name for opcode in pickletools.opcodes if opcode.code == chr(code))

    def refuse(reader: Any) -> None:
        raise Refused(f"the instruction {name}")

    return refuse


def _checking_keys(run: _Handler, keys: slice) -> _Handler:
    def check_and_run(reader: Any) -> None:
        # hashing nested tuples takes time exponential in the length of the file
        if any(type(key) not in (bytes, str) for key in reader.stack[keys]):
            raise Refused("a dict whose keys are neither bytes nor str")
        run(reader)

    return check_and_run


def _within_budget(run: _Handler) -> _Handler:
    def run_and_count(reader: Any) -> None:
        run(reader)
        # an honest pickle encodes each string once, a hostile one its longest a million times
        if isinstance(reader.stack[-1], bytes):
            reader.budget -= len(reader.stack[-1])
        if reader.budget < 0:
            raise Refused("more bytes than it has")

    return run_and_count


class _Reader(pickle._Unpickler):
    """The standard library's unpickler in Python.

    The one in C gives a file of twenty bytes as many gigabytes of memo as it asks for.
    """

    dispatch = _handlers(pickle._Unpickler.dispatch)

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="bytes")
        self.budget = len(content)  # bytes that may come of strings

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NAMES:
            raise Refused(f"the name {f'{module}.{name}'!r:.80}")
        return _NAMES[module, name]


def loads(content: bytes, origin: str) -> dict[bytes, Any]:
    """The dict in a pickle: keys as bytes, values of the types that ``Refused`` names.

    Args:
        content: the pickle, protocol 2 to 4; strings of Python 2 arrive as bytes.
        origin: what error messages call it.

    Raises:
        ValueError: it is damaged, is no dict, or asks for anything else (then ``Refused``).
    """
    try:
        result = _Reader(content).load()
        if type(result) is not dict:
            raise TypeError(f"it holds a {type(result).__name__}, not a dict")
        return {_key(key): _value(value) for key, value in result.items()}
    except Refused as error:
        raise Refused(
            f"{origin} is refused: it asks for {error}, and a batch of images needs only plain "
            "arrays, bytes, str, int, list and dict"
        ) from None
    except Exception as error:  # damage surfaces as any of a dozen types
        reason = str(error) or type(error).__name__
        raise ValueError(f"{origin} is cut short or no pickled batch: {reason}") from error


def _key(key: bytes | str) -> bytes:
    return key.encode() if isinstance(key, str) else key


def _value(value: Any) -> Any:
    if not isinstance(value, _Array):
        return value
    if value.value is None:
        raise ValueError("an array without contents")
    return value.value
