"""The runs of a report: what has to be trained, and training what is missing."""

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from colorseg.data import ImageSet
from colorseg.models import NETWORKS
from colorseg.training import Config, fit
from colorseg.training.checkpoint import holds_run
from colorseg.training.color import new_network
from colorseg.training.history import Epoch, History

logger = logging.getLogger(__name__)

KERNELS = (4, 5)
BATCH_SIZES = (32, 64, 128, 256, 512)
SWEPT = "conv_transpose"  # the network that the report varies


class Run(NamedTuple):
    """A run by its name in the report, with what differs from the preset."""

    name: str
    config: Config

    @property
    def folder(self) -> Path:
        """Where it is kept."""
        return Path(self.config.out)

    def history(self) -> History:
        """The epochs of a finished run."""
        return History.load_csv(self.folder / "metrics.csv", Epoch)

    def is_finished(self) -> bool:
        """Whether all of its epochs and its pictures are there."""
        if not (self.folder / "model.safetensors").exists():
            return False
        return len(self.history()) == self.config.epochs


def runs_of(base: Config, folder: Path, plain: bool, quick: bool) -> list[Run]:
    """All runs of a report.

    Args:
        base: the settings that they share.
        folder: of the report.
        plain: whether every network is trained in plain torch, too.
        quick: one of each kind, to try things out.
    """

    def run(name: str, **changes: object) -> Run:
        out = str(folder / "runs" / name)
        return Run(name, dataclasses.replace(base, out=out, **changes))  # type: ignore[arg-type]

    def all_runs() -> Iterator[Run]:
        for network in NETWORKS:
            yield run(network, network=network)
            if plain:
                yield run(f"{network}-plain", network=network, reference=True)
        for kernel in KERNELS[-1:] if quick else KERNELS:
            yield run(f"kernel-{kernel}", network=SWEPT, kernel=kernel)
        for size in BATCH_SIZES[:1] if quick else BATCH_SIZES:
            yield run(f"batch-{size}", network=SWEPT, batch_size=size)

    return list(all_runs())


def train_missing(runs: list[Run], train: ImageSet, val: ImageSet) -> None:
    """Train what is not finished, going on where a run stopped."""
    missing = [run for run in runs if not run.is_finished()]
    if len(missing) < len(runs):
        logger.info("%d of %d runs are there already", len(runs) - len(missing), len(runs))
    for number, run in enumerate(missing, 1):
        logger.info("run %d of %d: %s", number, len(missing), run.name)
        config = dataclasses.replace(run.config, resume=holds_run(run.config.out))
        fit(new_network(config), train, val, config)
