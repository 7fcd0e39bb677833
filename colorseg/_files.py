"""Writing files so that a crash leaves either the old content or the new, never half of it."""

import contextlib
import io
import os
import threading
from pathlib import Path
from typing import Any

# Formats of pictures that are read; Pillow has 40 more decoders, which nobody needs but attackers.
PICTURES = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


def write_atomically(path: str | Path, content: bytes) -> None:
    """Replace the content of a file in one step; its folder must exist.

    Raises:
        OSError: the file cannot be written; what was there before is still there.
    """
    path = Path(path)
    # same folder, because os.replace is atomic only within one file system; of this thread alone,
    # and short, because names end at 255 bytes
    draft = path.with_name(f".colorseg.{threading.get_native_id()}.tmp")
    try:
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException as error:  # Ctrl-C too
        with contextlib.suppress(OSError):
            draft.unlink()
        if isinstance(error, OSError):
            raise OSError(f"cannot write {path}: {error.strerror or error}") from error
        raise


def remove_drafts(folder: Path) -> None:
    """Remove what writers that were killed have left there."""
    for draft in folder.glob(".colorseg.*.tmp"):
        writer = draft.name.split(".")[2]
        if writer.isdecimal() and not _is_alive(int(writer)):
            draft.unlink(missing_ok=True)


def _is_alive(thread: int) -> bool:
    try:
        os.kill(thread, 0)  # sends nothing
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    return True


def make_folder(path: str | Path) -> Path:
    """Create a folder with its parents and check that files can be written to it.

    Raises:
        OSError: it cannot be created or written to.
    """
    folder = Path(path)
    probe = folder / f".probe.{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(
            f"cannot write to the folder {folder}: {error.strerror or error}; choose another --out"
        ) from error
    return folder


def load_torch(path: str | Path) -> Any:
    """What ``torch.save`` wrote: tensors and plain containers, on the CPU; no code of it runs.

    Raises:
        ValueError: a part of the file claims more bytes than the whole has, for which torch would
            take memory.
        Exception: what ``torch.load`` raises for a damaged file, which differs between versions.
        OSError: it cannot be read.
    """
    import zipfile

    import torch

    content = Path(path).read_bytes()
    if zipfile.is_zipfile(io.BytesIO(content)):  # not what torch wrote before 1.6
        for part in zipfile.ZipFile(io.BytesIO(content)).infolist():  # torch compresses nothing
            if part.file_size > len(content):
                raise ValueError(
                    f"{part.filename} claims {part.file_size} bytes of a file of {len(content)}"
                )
    # weights_only: unpickling anything else could run code of whoever made the file
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
