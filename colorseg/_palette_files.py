"""Reading and writing palette files, ``.json`` and ``.npy``; ``colorseg.palette`` is the front."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from colorseg._files import write_atomically


def read(path: Path) -> tuple[np.ndarray, str]:
    """Colors as float32, not yet checked to be (K, 3) in [0, 1], and the palette's name."""
    _check_suffix(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no palette file {path}")
    return _read_json(path) if path.suffix.lower() == ".json" else _read_npy(path)


def write(path: Path, colors: np.ndarray, name: str) -> None:
    """Write (K, 3) float32 colors; the file appears whole or not at all."""
    _check_suffix(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot save {path.name}: there is no folder {path.parent}")
    as_json = path.suffix.lower() == ".json"
    content = _json_bytes(colors, name) if as_json else _npy_bytes(colors)
    write_atomically(path, content)


def _check_suffix(path: Path) -> None:
    if path.suffix.lower() not in (".json", ".npy"):
        raise ValueError(f"{path} is neither .json nor .npy, the two formats of palettes")


def _json_bytes(colors: np.ndarray, name: str) -> bytes:
    # as doubles, whose shortest decimals read back to the same float32
    return json.dumps({"name": name, "rgb": colors.astype(float).tolist()}, indent=1).encode()


def _npy_bytes(colors: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, colors, allow_pickle=False)
    return buffer.getvalue()


def _read_json(path: Path) -> tuple[np.ndarray, str]:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    if not isinstance(content, dict) or ("rgb" in content) == ("rgb8" in content):
        raise ValueError(f'{path} must be a JSON object with either "rgb" or "rgb8"')
    name = content.get("name", path.stem)
    if not isinstance(name, str):
        raise ValueError(f'{path}: "name" must be a string, got {name!r:.40}')
    if "rgb" in content:
        return _rows(path, "rgb", content["rgb"], "numbers in [0, 1]", (int, float)), name
    rgb8 = _rows(path, "rgb8", content["rgb8"], "integers", (int,))
    return rgb8 / np.float32(255), name  # the bits of a float32 division, as in horse24


def _rows(path: Path, key: str, rows: Any, what: str, types: tuple[type, ...]) -> np.ndarray:
    well_formed = isinstance(rows, list) and all(
        isinstance(row, list) and len(row) == 3 and all(type(value) in types for value in row)
        for row in rows
    )
    if not well_formed or not rows:
        raise ValueError(f'{path}: "{key}" must be a list of rows of three {what}')
    try:
        return np.array(rows, dtype=np.float64).astype(np.float32)
    except OverflowError:
        raise ValueError(f'{path}: "{key}" holds a number that is too large') from None


def _read_npy(path: Path) -> tuple[np.ndarray, str]:
    with open(path, "rb") as file:
        if file.peek(1)[:1] == b"\x80":  # PROTO, the first opcode of every binary pickle
            raise ValueError(_pickle_refusal(path))
        try:
            shape, dtype = _read_header(file)
        except Exception as error:  # numpy's parser of headers has errors of its own
            raise ValueError(f"{path} is no .npy file: {error}") from None
    if dtype.hasobject:
        raise ValueError(_pickle_refusal(path))
    if dtype.kind != "f" or len(shape) != 2 or shape[0] > 256 or shape[1] != 3:
        raise ValueError(
            f"{path} must hold a (K, 3) float array in [0, 1], K at most 256, got shape {shape} "
            f"of {dtype}"
        )
    try:
        return np.load(path, allow_pickle=False).astype(np.float32), path.stem
    except Exception as error:  # as above
        raise ValueError(f"{path} is cut short or damaged: {error}") from None


def _read_header(file: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    old = version == (1, 0)
    reader = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
    shape, _, dtype = reader(file)
    return shape, dtype


def _pickle_refusal(path: Path) -> str:
    return (
        f"{path} is a pickle, and loading a pickle runs whatever code is in it, so colorseg does "
        "not; if you trust its origin, convert it once: "
        f"np.save('palette.npy', np.asarray(np.load('{path.name}', allow_pickle=True, "
        "encoding='bytes')[0], dtype='float32'))"
    )
