"""``reproduce``: from the data to the pages, as far as it is not there yet."""

import logging
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

import torch

import colorseg
from colorseg.data import load
from colorseg.report.document import Section, save_pages
from colorseg.report.folder import check_folder, claim
from colorseg.report.published import bands_of
from colorseg.report.runs import runs_of, train_missing
from colorseg.report.sections import build_sections
from colorseg.training import Config
from colorseg.training.task import usable_device

logger = logging.getLogger(__name__)

PRESETS = ("course-2021", "lightning", "clean")
QUICK = {"epochs": 1, "num_filters": 8}
HORSES = "cifar10-horses.npz"  # looked for in a folder that is no CIFAR-10 itself


def reproduce(
    data: str = "cifar10", preset: str = "course-2021", out: str | Path = "report", *,
    plain: bool = True, quick: bool = False, force: bool = False, download: bool = False,
    device: str = "cpu", jobs: int = 1,
) -> Path:  # fmt: skip
    """Train all runs of the report that are not finished, and write its pages.

    The folder gets ``index.html`` (which needs no other file), ``report.md``, ``tables/*.csv``,
    ``figures/`` (PNG and SVG) and ``runs/<name>/``, each as ``colorseg.training.fit`` leaves it.
    An interrupted report goes on where it stopped.

    Args:
        data: as ``colorseg.data.load`` takes it, or a folder with ``cifar10-horses.npz``.
        preset: one of ``PRESETS``.
        out: the folder.
        plain: train the networks in plain torch too, to compare with.
        quick: one epoch of small networks, to try it out.
        force: replace a report of other settings.
        download: whether the data may be downloaded.
        device: where to train.
        jobs: runs to train at a time, each with its share of torch's threads.

    Returns:
        The path of ``index.html``.

    Raises:
        FileNotFoundError: the data are not there.
        FileExistsError: ``out`` holds something else.
        ValueError: no such preset, or what ``fit`` raises.
    """
    source = source_of(data)
    base = Config(data=source, device=device, download=download, **settings_of(preset, quick))
    settings = {"data": source, "preset": preset, "quick": quick}
    folder = Path(out)
    outdated = check_folder(folder, settings, force)
    usable_device(device)
    train, val = load(source, classes=base.classes, download=download)
    claim(folder, settings, outdated)
    runs = runs_of(base, folder, plain, quick)
    train_missing(runs, train, val, jobs)
    bands = {} if quick else bands_of(train.sha256(), source, base.epochs)
    sections = [facts(preset, base, train, val), *build_sections(runs, bands, folder)]
    save_pages("Colorizing horses: the report, reproduced", sections, folder)
    logger.info("wrote %s", folder / "index.html")
    return folder / "index.html"


def source_of(data: str) -> str:
    """What to load; the file of horses in a folder that has one."""
    inside = Path(data).expanduser() / HORSES
    return str(inside) if inside.is_file() else data


def settings_of(preset: str, quick: bool) -> dict[str, Any]:
    """Of a preset, made small if ``quick``; ValueError if there is none of that name."""
    if preset not in PRESETS:
        raise ValueError(f"there is no preset {preset!r}; choose one of {', '.join(PRESETS)}")
    file = resources.files("colorseg.report") / "presets" / f"{preset}.toml"
    return tomllib.loads(file.read_text()) | (QUICK if quick else {})


def facts(preset: str, base: Config, train: Any, val: Any) -> Section:
    """What was trained on what."""
    info = colorseg.build_info()
    return Section(
        "Settings",
        [
            f"Preset {preset}: {base.optimizer}, learning rate {base.lr}, batches of "
            f"{base.batch_size}, {base.epochs} epochs, seed {base.seed}, "
            + ("new batches in every epoch." if base.reshuffle else "the batches of one shuffle."),
            f"Data: {train.name}, {len(train)} pictures (sha256 {train.sha256()[:12]}), and "
            f"{val.name}, {len(val)} ({val.sha256()[:12]}).",
            f"colorseg {info['version']}, torch {torch.__version__}, {base.device}, "
            f"{torch.get_num_threads()} threads.",
        ],
    )
