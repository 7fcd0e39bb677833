"""``reproduce``: from the data to the pages, as far as it is not there yet."""

import logging
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

import torch

import colorseg
from colorseg.data import ImageSet, load
from colorseg.data.images import from_pixels
from colorseg.data.npz import read_lossless
from colorseg.report.document import Section, save_pages
from colorseg.report.folder import check_folder, claim
from colorseg.report.published import bands_of
from colorseg.report.runs import check_jobs, runs_of, train_missing
from colorseg.report.sections import build_sections
from colorseg.report.segmentation import load_masks, segmentation_of, segmentation_sections
from colorseg.report.super_resolution import super_resolution_sections
from colorseg.training import Config
from colorseg.training.task import usable_device

logger = logging.getLogger(__name__)

PRESETS = ("course-2021", "lightning", "clean", "best")
QUICK = {"epochs": 1, "num_filters": 8}
TITLES_OF_TASKS = {
    "colorize": "Colorizing horses",
    "super-resolution": "Super-resolution of horses",
}
HORSES = "cifar10-horses.npz"  # looked for in a folder that is no CIFAR-10 itself


def reproduce(
    data: str = "cifar10", preset: str = "course-2021", out: str | Path = "report", *,
    plain: bool = True, quick: bool = False, force: bool = False, download: bool = False,
    device: str = "cpu", jobs: int = 1, task: str = "colorize", dilated: bool = False,
    segment: str | None = None,
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
        task: ``"colorize"``; or ``"super-resolution"``, where the networks alone are compared with
            one another and with bilinear interpolation.
        dilated: train a UNet with a dilated middle, too.
        segment: pictures with masks for part 2, as ``colorseg.data.load_segmentation`` takes them,
            or ``"none"``; None takes the daffodils beside the other data, or generated scenes.

    Returns:
        The path of ``index.html``.

    Raises:
        FileNotFoundError: the data are not there.
        FileExistsError: ``out`` holds something else.
        ValueError: no such preset, or what ``fit`` raises.
    """
    check_jobs(jobs)
    source = source_of(data)
    chosen = settings_of(preset, quick)
    base = Config(data=source, device=device, download=download, task=task, **chosen)
    part_2 = segmentation_of(data, segment) if task == "colorize" else "none"
    folder = Path(out)
    usable_device(device)
    train, val = load(source, classes=base.classes, download=download)
    masks = () if part_2 == "none" else load_masks(part_2, quick, download)
    settings = {
        "data": source, "preset": preset, "quick": quick, "task": task, "segment": part_2,
        "sha256": short_hashes(train, val, *masks),
    }  # fmt: skip
    outdated = check_folder(folder, settings, force)
    claim(folder, settings, outdated)
    runs = runs_of(base, folder, plain, quick, dilated)
    train_missing(runs, train, val, jobs)
    sections = [facts(preset, base, train, val)]
    if task == "super-resolution":
        by_name = {run.name: run for run in runs}
        sections += super_resolution_sections(by_name, val, folder)
    else:
        bands = {} if quick else bands_of(train.sha256(), source, preset, base.epochs)
        sections += build_sections(runs, bands, folder, _lossless(source))
        if masks:
            sections += segmentation_sections(
                part_2, *masks, folder, seed=base.seed, device=device, quick=quick, jobs=jobs
            )
    save_pages(f"{TITLES_OF_TASKS[task]}: the report, reproduced", sections, folder)
    logger.info("wrote %s", folder / "index.html")
    return folder / "index.html"


def _lossless(source: str) -> ImageSet | None:
    path = Path(source).expanduser()
    pixels = read_lossless(path) if path.suffix == ".npz" else None
    return None if pixels is None else from_pixels(pixels, f"{path.name}/lossless")


def source_of(data: str) -> str:
    """What to load; the file of horses in a folder that has one."""
    inside = Path(data).expanduser() / HORSES
    return str(inside) if inside.is_file() else data


def short_hashes(*sets: Any) -> list[str]:
    """What tells a report's data from others in the same place."""
    return [part.sha256()[:12] for part in sets]


def settings_of(preset: str, quick: bool) -> dict[str, Any]:
    """Of a preset, made small if ``quick``; ValueError if there is none of that name."""
    if preset not in PRESETS:
        raise ValueError(f"there is no preset {preset!r}; choose one of {', '.join(PRESETS)}")
    file = resources.files("colorseg.report") / "presets" / f"{preset}.toml"
    return tomllib.loads(file.read_text()) | (QUICK if quick else {})


def facts(preset: str, base: Config, train: Any, val: Any) -> Section:
    """What was trained on what."""
    info, hashes = colorseg.build_info(), short_hashes(train, val)
    return Section(
        "Settings",
        [
            f"Preset {preset}: {base.optimizer}, learning rate {base.lr}, batches of "
            f"{base.batch_size}, {base.epochs} epochs, seed {base.seed}, "
            + ("new batches in every epoch." if base.reshuffle else "the batches of one shuffle."),
            f"Data: {train.name}, {len(train)} pictures (sha256 {hashes[0]}), and "
            f"{val.name}, {len(val)} ({hashes[1]}).",
            f"colorseg {info['version']}, torch {torch.__version__}, {base.device}, "
            f"{torch.get_num_threads()} threads.",
        ],
    )
