"""Writing files so that a crash leaves either the old content or the new, never half of it."""

import contextlib
import os
from pathlib import Path


def write_atomically(path: str | Path, content: bytes) -> None:
    """Replace the content of a file in one step; its folder must exist.

    Raises:
        OSError: the file cannot be written; what was there before is still there.
    """
    path = Path(path)
    # same folder, because os.replace is atomic only within one file system
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
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
