"""The folder of a report: whose it is, and that nothing else in it is touched."""

import json
import shutil
from pathlib import Path
from typing import Any

from colorseg._files import make_folder, write_atomically

RECORD = "report.json"
TABLES = (
    *("networks", "parameters-*", "sizes", "padding", "kernels", "batch-sizes", "dilated"),
    *("segmentation", "super-resolution", "recipes-*"),
)
FIGURES = ("networks", "batch-sizes", "segmentation", "recipes-*")
WRITTEN = (  # beside the record and the runs; other files in these folders are the user's
    *("index.html", "report.md"),
    *(f"tables/{name}.csv" for name in TABLES),
    *(f"figures/{name}.{suffix}" for name in FIGURES for suffix in ("png", "svg")),
)


def check_folder(folder: Path, settings: dict[str, Any], force: bool) -> bool:
    """Whether it holds a report of other settings, which ``force`` may replace."""
    record = folder / RECORD
    if not folder.exists() or not any(folder.iterdir()):
        return False
    if not record.exists():
        raise FileExistsError(f"{folder} holds other files, no report; choose another --out")
    outdated = json.loads(record.read_text()) != settings
    if outdated and not force:
        raise FileExistsError(
            f"{folder} holds a report of other settings ({record.read_text().strip()}); choose "
            "another --out, or replace it with --force"
        )
    return outdated


def claim(folder: Path, settings: dict[str, Any], outdated: bool) -> None:
    """Make the folder one of these settings, without what a report of others left in it."""
    make_folder(folder)
    if outdated:
        shutil.rmtree(folder / "runs", ignore_errors=True)
        for path in [path for pattern in WRITTEN for path in folder.glob(pattern)]:
            path.unlink()
    write_atomically(folder / RECORD, json.dumps(settings).encode() + b"\n")
