"""Files out of a tar.gz archive, into memory: nothing is unpacked to the disk."""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

_DAMAGE = (
    tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, OverflowError, RecursionError,
)  # fmt: skip


def read_members(
    path: Path, wanted: Callable[[str], bool], max_member: int, max_unpacked: int
) -> dict[str, bytes]:
    """Contents by base name; folders, links and everything not wanted are passed over.

    Args:
        path: of the archive.
        wanted: whether a member of that base name is to be read.
        max_member: bytes that one of them may have.
        max_unpacked: bytes that the whole archive may have.

    Raises:
        ValueError: it is damaged, no archive, too large, or has two members of one base name.
    """
    try:
        # "r|" never seeks, so an archive cannot have a part of it read again and again
        with (
            _Bounded(path, max_unpacked) as stream,
            tarfile.open(fileobj=stream, mode="r|") as archive,
        ):
            return _members(archive, path, wanted, max_member)
    except _DAMAGE as error:
        raise ValueError(f"{path} is cut short or no tar.gz archive: {error}") from error


class _Bounded(gzip.GzipFile):
    """Ends in an error where a small archive unpacks to fill the memory."""

    def __init__(self, path: Path, limit: int) -> None:
        super().__init__(path)
        self.limit = limit

    def read(self, size: int | None = -1) -> bytes:
        content = super().read(size)
        if self.tell() > self.limit:
            raise ValueError(f"{self.name} unpacks to more than {self.limit} bytes")
        return content


def _members(
    archive: tarfile.TarFile, path: Path, wanted: Callable[[str], bool], max_member: int
) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for member in archive:
        name = member.name.rpartition("/")[2]
        if not wanted(name) or not member.isreg():
            continue
        if member.size > max_member:
            raise ValueError(f"{path}: {name} claims {member.size} bytes, too many")
        if name in files:
            raise ValueError(f"{path} has two members named {name}, and only one can be right")
        content = archive.extractfile(member)
        assert content is not None  # it is a regular file
        files[name] = content.read()
    return files
