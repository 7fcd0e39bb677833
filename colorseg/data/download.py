"""Published files in a cache folder: found, verified, and fetched only when asked."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Published:
    """A file on its publisher's server.

    Args:
        title: what messages call it.
        url: where it is; the end of it is its name in the cache.
        size: for people, such as "170 MB".
        checksum: ``"sha256:..."`` or ``"md5:..."``; None where none is known.
    """

    title: str
    url: str
    size: str
    checksum: str | None = None

    @property
    def name(self) -> str:
        """Of the file."""
        return self.url.rpartition("/")[2]

    def is_it(self, path: Path) -> bool:
        """Whether the file has the checksum; any file will do where none is known."""
        if self.checksum is None:
            return path.is_file()
        algorithm, _, digest = self.checksum.partition(":")
        if not path.is_file():
            return False
        with open(path, "rb") as file:
            return hashlib.file_digest(file, algorithm).hexdigest() == digest

    @property
    def mismatch(self) -> str:
        """The words for another file in its place."""
        algorithm, _, digest = (self.checksum or "").partition(":")
        return f"its {algorithm} is not {digest}"


CIFAR10 = Published(
    "CIFAR-10",
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    "170 MB",
    "sha256:6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
)


def default_cache() -> Path:
    """``$COLORSEG_CACHE``, or colorseg in the user's cache folder, as ``pooch.os_cache`` has it."""
    chosen = os.environ.get("COLORSEG_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    # spelled out, because pooch may be absent where nothing needs a download
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "colorseg"


def cached_file(file: Published, download: bool, cache: str | os.PathLike[str] | None) -> Path:
    """Path of the verified file.

    Raises:
        FileNotFoundError: it is not in the cache, and ``download`` is false.
        ValueError: what is in the cache, or what the server sent, has another checksum.
        ImportError: a download is needed, and pooch is absent.
        OSError: the download failed.
    """
    folder = default_cache() if cache is None else Path(cache).expanduser()
    path = folder / file.name
    if file.is_it(path):
        return path
    if download:
        _fetch(file, path)
        return path
    if path.is_file():
        raise ValueError(
            f"{path} is damaged or another file, since {file.mismatch}: load with "
            "download=True to fetch it again, or pass its path as the source to use it as it is"
        )
    raise FileNotFoundError(
        f"{file.title} is not in {folder}: load with download=True ({file.size} from {file.url}), "
        "or pass the path of a copy as the source"
    )


def _fetch(file: Published, path: Path) -> None:
    try:
        import pooch
    except ImportError as error:
        raise ImportError(
            f"downloading {file.title} needs pooch: pip install pooch, or save {file.url} as {path}"
        ) from error
    try:
        # to a temporary file, which takes its place only after the checksum was compared
        pooch.retrieve(file.url, file.checksum, fname=path.name, path=path.parent, progressbar=True)
    except ValueError as error:
        raise ValueError(
            f"what {file.url} sent is not {file.title}, and was not kept, since {file.mismatch}: "
            "try again later, or pass the path of a copy as the source"
        ) from error
    except OSError as error:
        raise OSError(
            f"cannot download {file.url} to {path.parent}: {error}; or pass the path of a copy as "
            "the source"
        ) from error
