"""The CIFAR-10 archive in a cache folder: found, verified, and fetched only when asked."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
_NAME = "cifar-10-python.tar.gz"


def default_cache() -> Path:
    """``$COLORSEG_CACHE``, or colorseg in the user's cache folder, as ``pooch.os_cache`` has it."""
    chosen = os.environ.get("COLORSEG_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    # spelled out, because pooch may be absent where nothing needs a download
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "colorseg"


def cached_archive(download: bool, cache: str | os.PathLike[str] | None) -> Path:
    """Path of the verified archive.

    Raises:
        FileNotFoundError: it is not in the cache, and ``download`` is false.
        ValueError: what is in the cache, or what the server sent, has another checksum.
        ImportError: a download is needed, and pooch is absent.
        OSError: the download failed.
    """
    folder = default_cache() if cache is None else Path(cache).expanduser()
    path = folder / _NAME
    if path.is_file() and _sha256(path) == SHA256:
        return path
    if download:
        _fetch(path)
        return path
    if path.is_file():
        raise ValueError(
            f"{path} is damaged or another file, since its sha256 is not {SHA256}: load with "
            "download=True to fetch it again, or pass its path as the source to use it as it is"
        )
    raise FileNotFoundError(
        f"CIFAR-10 is not in {folder}: load with download=True (170 MB from {URL}), or pass the "
        "path of a copy as the source"
    )


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch(path: Path) -> None:
    try:
        import pooch
    except ImportError as error:
        raise ImportError(
            f"downloading CIFAR-10 needs pooch: pip install pooch, or save {URL} as {path}"
        ) from error
    try:
        # to a temporary file, which takes its place only after the checksum was compared
        pooch.retrieve(URL, f"sha256:{SHA256}", fname=path.name, path=path.parent, progressbar=True)
    except ValueError as error:
        raise ValueError(
            f"what {URL} sent is not CIFAR-10, and was not kept, since its sha256 is not {SHA256}: "
            "try again later, or pass the path of a copy as the source"
        ) from error
    except OSError as error:
        raise OSError(
            f"cannot download {URL} to {path.parent}: {error}; or pass the path of a copy as the "
            "source"
        ) from error
