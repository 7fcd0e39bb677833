"""The runs of a report: what has to be trained, and training what is missing."""

import dataclasses
import json
import logging
import os
from collections.abc import Callable, Iterator
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import torch
from torch import nn

from colorseg.models import NETWORKS
from colorseg.training import Config, SegmentationConfig, fit
from colorseg.training.checkpoint import holds_run
from colorseg.training.color import new_network
from colorseg.training.history import Epoch, History, SegmentationEpoch

logger = logging.getLogger(__name__)

Make = Callable[[Any], nn.Module]

KERNELS = (4, 5)
BATCH_SIZES = (32, 64, 128, 256, 512)
DILATION = 2
SWEPT = "conv_transpose"  # the network that the report varies


class Run(NamedTuple):
    """A run by its name in the report, with its settings."""

    name: str
    config: Any  # Config or SegmentationConfig

    @property
    def folder(self) -> Path:
        """Where it is kept."""
        return Path(self.config.out)

    def history(self) -> History:
        """The epochs of a finished run."""
        segments = isinstance(self.config, SegmentationConfig)
        row: Any = SegmentationEpoch if segments else Epoch
        return History.load_csv(self.folder / "metrics.csv", row)

    def is_finished(self, sha256: dict[str, str]) -> bool:
        """Whether all of its epochs and its pictures are there, by these settings on these data."""
        record = self.folder / "config.json"
        if not (record.exists() and (self.folder / "model.safetensors").exists()):
            return False
        data = json.loads(record.read_text())["run"]["data"]
        if {role: facts["sha256"] for role, facts in data.items()} != sha256:
            return False
        if type(self.config).load(record).identity() != self.config.identity():
            return False
        return len(self.history()) == self.config.epochs


def runs_of(
    base: Config, folder: Path, plain: bool, quick: bool, dilated: bool = False
) -> list[Run]:
    """All runs of a report.

    Args:
        base: the settings that they share; of super-resolution only the networks are compared.
        folder: of the report.
        plain: whether every network is trained in plain torch, too.
        quick: one of each kind, to try things out.
        dilated: whether a UNet with a dilated middle is trained, too.
    """
    colorizes = base.task == "colorize"

    def run(name: str, **changes: object) -> Run:
        out = str(folder / "runs" / name)
        return Run(name, dataclasses.replace(base, out=out, **changes))  # type: ignore[arg-type]

    def all_runs() -> Iterator[Run]:
        for network in NETWORKS:
            yield run(network, network=network)
            if plain and colorizes:
                yield run(f"{network}-plain", network=network, reference=True)
        if dilated:
            yield run("unet-dilated", network="unet", dilation=DILATION)
        if not colorizes:
            return
        for kernel in KERNELS[-1:] if quick else KERNELS:
            yield run(f"kernel-{kernel}", network=SWEPT, kernel=kernel)
        for size in BATCH_SIZES[:1] if quick else BATCH_SIZES:
            yield run(f"batch-{size}", network=SWEPT, batch_size=size)

    return list(all_runs())


def check_jobs(jobs: int) -> None:
    """ValueError for no job, before anything is written."""
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")


def train_missing(
    runs: list[Run], train: Any, val: Any, jobs: int = 1, make: Make = new_network
) -> None:
    """Train what is not finished, going on where a run stopped.

    A run by other settings or on other data counts as not finished, so that ``fit`` refuses to go
    on with it.

    Args:
        runs: what there should be.
        train: the pictures to learn from.
        val: those to validate on.
        jobs: runs at a time, each in a process of its own with its share of the threads.
        make: the untrained network of a run's settings.
    """
    sha256 = {"train": train.sha256(), "val": val.sha256()}
    missing = [run for run in runs if not run.is_finished(sha256)]
    if len(missing) < len(runs):
        logger.info("%d of %d runs are there already", len(runs) - len(missing), len(runs))
    if jobs > 1 and len(missing) > 1:
        _train_side_by_side(missing, train, val, min(jobs, len(missing)), make)
        return
    for number, run in enumerate(missing, 1):
        logger.info("run %d of %d: %s", number, len(missing), run.name)
        _train(run.config, train, val, make)


def _train(config: Any, train: Any, val: Any, make: Make) -> None:
    config = dataclasses.replace(config, resume=holds_run(config.out))
    fit(make(config), train, val, config)


def _train_side_by_side(runs: list[Run], train: Any, val: Any, jobs: int, make: Make) -> None:
    from concurrent.futures import ProcessPoolExecutor, as_completed

    from tqdm import tqdm

    shared = (max(1, torch.get_num_threads() // jobs), train, val, make)
    with ProcessPoolExecutor(jobs, get_context("spawn"), _begin_worker, shared) as workers:
        started = {workers.submit(_train_in_worker, run.config): run for run in runs}
        try:
            for done in tqdm(
                as_completed(started), "runs", len(runs), unit=" runs", leave=False, disable=None
            ):
                done.result()
                logger.info("finished run %s", started[done].name)
        except BaseException:  # Ctrl-C reaches the workers too; the others need not begin
            workers.shutdown(wait=True, cancel_futures=True)
            raise


_shared: list[Any] = []  # of a worker, by all of its runs


def _begin_worker(threads: int, *shared: Any) -> None:
    os.environ["TQDM_DISABLE"] = "1"  # the parent has a bar for all
    torch.set_num_threads(threads)
    _shared[:] = shared
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker that outlives its parent would train what the next command trains, too."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # files are written at once or not at all


def _train_in_worker(config: Any) -> None:
    _train(config, *_shared)
