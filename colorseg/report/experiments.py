"""``experiments``: what lowers the validation loss at the same number of epochs, what does not."""

import dataclasses
import logging
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from colorseg.data import load
from colorseg.models import NETWORKS
from colorseg.report.document import Picture, Section, Table, save_pages
from colorseg.report.figures import save_recipes
from colorseg.report.folder import check_folder, claim
from colorseg.report.published import TITLES
from colorseg.report.reproduction import facts, settings_of, short_hashes, source_of
from colorseg.report.runs import Run, check_jobs, train_missing
from colorseg.training import Config
from colorseg.training.history import History

logger = logging.getLogger(__name__)

SEEDS = (0, 1, 2)
BASE = "clean"  # the preset that all recipes change
SMALL = {"schedule": "poly", "batch_size": 32, "lr": 4e-3}
RECIPES: dict[str, dict[str, Any]] = {
    "as preset clean": {},
    "learning rate 0.003 falling to 0": {"schedule": "poly", "lr": 3e-3},
    "the same, 0.004 and batches of 32": SMALL,
    "the same, 0.003 and batches of 16": SMALL | {"batch_size": 16, "lr": 3e-3},
    "batches of 32, mirrored pictures": SMALL | {"flips": True},
    "batches of 32, label smoothing 0.05": SMALL | {"label_smoothing": 0.05},
    "batches of 32, soft targets over 5 colors": SMALL | {"soft_neighbors": 5},
    "batches of 32, half rebalanced colors": SMALL | {"rebalance": 0.5},
    "batches of 16, mirrored pictures (preset best)": settings_of("best", quick=False),
}
EVERY_NETWORK = ("as preset clean", "batches of 16, mirrored pictures (preset best)")


def experiments(
    data: str = "cifar10", out: str | Path = "experiments", *, seeds: Sequence[int] = SEEDS,
    quick: bool = False, force: bool = False, download: bool = False, device: str = "cpu",
    jobs: int = 1,
) -> Path:  # fmt: skip
    """Train every recipe with every seed where it is not there yet, and write a page about them.

    UNet is trained by all ``RECIPES``, the other networks by those in ``EVERY_NETWORK``.  The
    folder is laid out as that of ``reproduce``, and arguments with the same names mean the same.

    Args:
        data: as for ``reproduce``.
        out: the folder.
        seeds: of each recipe.
        quick: one epoch of small networks, to try it out.
        force: replace a report of other settings.
        download: whether the data may be downloaded.
        device: where to train.
        jobs: runs to train at a time.

    Returns:
        The path of ``index.html``.

    Raises:
        FileNotFoundError: the data are not there.
        FileExistsError: ``out`` holds something else.
        ValueError: what ``fit`` raises.
    """
    check_jobs(jobs)
    source, folder = source_of(data), Path(out)
    base = Config(data=source, device=device, download=download, **settings_of(BASE, quick))
    train, val = load(source, classes=base.classes, download=download)
    settings = {
        "experiments": list(RECIPES), "data": source, "quick": quick,
        "sha256": short_hashes(train, val),
    }  # fmt: skip
    outdated = check_folder(folder, settings, force)
    claim(folder, settings, outdated)
    runs = {
        network: {
            recipe: [_run(base, folder, network, recipe, seed) for seed in seeds]
            for recipe in (RECIPES if network == "unet" else EVERY_NETWORK)
        }
        for network in ("unet", *(name for name in NETWORKS if name != "unet"))
    }
    every = [run for recipes in runs.values() for of in recipes.values() for run in of]
    train_missing(every, train, val, jobs)
    sections = [facts(BASE, base, train, val)]
    for network, recipes in runs.items():
        histories = {name: [run.history() for run in of] for name, of in recipes.items()}
        sections.append(_section(network, histories, folder))
    save_pages("Colorizing horses: what helps at the same number of epochs", sections, folder)
    logger.info("wrote %s", folder / "index.html")
    return folder / "index.html"


def _run(base: Config, folder: Path, network: str, recipe: str, seed: int) -> Run:
    name = f"{network}-{list(RECIPES).index(recipe)}-{seed}"
    changes = RECIPES[recipe] | {"network": network, "seed": seed, "epochs": base.epochs}
    return Run(name, dataclasses.replace(base, out=str(folder / "runs" / name), **changes))


def _section(network: str, histories: Mapping[str, list[History]], folder: Path) -> Section:
    losses = {name: [h.epochs[-1].val_loss for h in of] for name, of in histories.items()}
    first = next(iter(losses.values()))
    rows = []
    for name, of in histories.items():
        accuracy = statistics.fmean(h.epochs[-1].val_accuracy for h in of)
        change = statistics.fmean(losses[name]) - statistics.fmean(first)
        rows.append([
            name,
            f"{statistics.fmean(losses[name]):.4f}",
            f"{min(losses[name]):.4f} to {max(losses[name]):.4f}",
            f"{100 * accuracy:.1f} %",
            f"{change:+.4f}" if losses[name] is not first else "",
            verdict(losses[name], first) if losses[name] is not first else "",
            f"{statistics.fmean(sum(h.column('seconds')) for h in of):.0f}",
        ])  # fmt: skip
    heading = [
        "recipe", "validation loss, mean", "of the seeds", "accuracy", "change", "verdict",
        "seconds",
    ]  # fmt: skip
    picture = save_recipes(losses, folder / "figures" / f"recipes-{network}.png")
    count, epochs = len(first), len(next(iter(histories.values()))[0])
    return Section(
        TITLES[network],
        [
            f"Plain cross-entropy on the validation pictures after {epochs} "
            f"epoch{'s' * (epochs > 1)}, of {count} seed{'s' * (count > 1)}.  A recipe is called "
            "better or worse where all of its seeds are on one side of all of the first's.",
            Table(f"recipes-{network}", heading, rows),
            Picture(picture, f"{TITLES[network]}: validation losses of the recipes, by seed."),
        ],
    )


def verdict(losses: Sequence[float], base: Sequence[float]) -> str:
    """Whether losses are below those of the base, above them, or neither."""
    if max(losses) < min(base):
        return "better"
    return "worse" if min(losses) > max(base) else "no clear difference"
