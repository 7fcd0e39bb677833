"""``fit``: training from the first epoch, or from where a run stopped."""

import contextlib
import logging
from typing import Any

import torch
from torch import nn

import colorseg
from colorseg.data import Augmentation
from colorseg.models import NETWORKS
from colorseg.training import checkpoint, ranks
from colorseg.training.anomaly import watched
from colorseg.training.board import Board
from colorseg.training.color import ColorTask, palette_of
from colorseg.training.config import Config, SegmentationConfig
from colorseg.training.history import History
from colorseg.training.run import Run
from colorseg.training.run_config import RunConfig
from colorseg.training.segmentation import SegmentationTask
from colorseg.training.task import Task, usable_device

logger = logging.getLogger(__name__)


def fit(model: nn.Module, train: Any, val: Any, config: RunConfig) -> History:
    """Train a network and keep everything about the run in the folder ``config.out``.

    The kind of ``config`` decides what is learned: ``Config`` to colorize the pictures of two
    ``ImageSet``, ``SegmentationConfig`` to segment those of two ``SegmentationSet``.

    The folder gets ``config.json`` (settings, versions, data), ``metrics.csv`` (one row per epoch),
    ``last.pt`` (what ``config.resume`` continues from), ``best.safetensors`` (weights of the best
    epoch so far, by validation loss, or by mean IoU) and at the end ``model.safetensors`` (the
    same weights, those to use), ``curves.png``, ``curves.svg`` and ``samples.png``.  On the CPU an
    interrupted and resumed run gives the same bits as one that was not interrupted; for that, the
    global random generators are seeded anew in every epoch.

    Where the backbone of a model to segment (and what follows it) is frozen and nothing in it is
    random, its results are computed once for all pictures, which the log says; augmentation
    excludes that.

    Args:
        model: to colorize, takes grey pictures ``(N, 1, H, W)`` float32 in [0, 1) and gives one
            logit per color of its palette (horse24 unless ``model.palette`` is set),
            ``(N, K, H, W)``; to segment, takes normalized pictures ``(N, 3, H, W)`` and gives one
            logit per class, as they are or as ``{"out": logits}``, and of a second head, which
            counts half, ``"aux"``.  It is moved to ``config.device``, unfused if
            ``config.reference``, and ends with the weights of the best epoch.
        train: pictures to learn from.
        val: pictures to validate on after each epoch.
        config: the settings; those about data only go on record.

    Returns:
        Losses, accuracy (or mean IoU) and speed of every epoch, those before a resume included.

    Raises:
        TypeError: the sets are not of the kind that ``config`` is for.
        ValueError: data, device, settings, the network's results or the checkpoint cannot be used.
        FileExistsError: ``config.out`` holds a run and ``config.resume`` is False.
        OSError: ``config.out`` cannot be written to.
        FloatingPointError: the loss is not finite; all finished epochs stay in the folder.
        ImportError: ``config.tensorboard``, and it is not installed.
        KeyboardInterrupt: passed on; all finished epochs stay in the folder.
    """
    device = usable_device(config.device)
    training, validation = _tasks(model, train, val, config, device)
    out = ranks.from_first(lambda: checkpoint.open_folder(config))
    if config.reference:
        colorseg.unfuse(model)
    run = Run(model.to(device), training, validation, config, out)
    if len(run.history) > config.epochs:
        raise ValueError(
            f"{out} holds {len(run.history)} epochs, more than the {config.epochs} asked for; "
            "raise --epochs or choose another --out"
        )
    tells = config.tensorboard and ranks.is_first()
    board = Board(out, len(run.history)) if tells else contextlib.nullcontext()
    _announce(run)
    if ranks.is_first():
        config.save(out / "config.json", run=_facts(training, validation))
    try:
        watching = watched(model) if config.detect_anomaly else contextlib.nullcontext()
        with watching, board as run.board:
            while len(run.history) < config.epochs:
                run.epoch()
        run.finish()
    except KeyboardInterrupt:
        logger.warning(
            "interrupted; %d of %d epochs are in %s", len(run.history), config.epochs, out
        )
        raise
    return run.history


def _announce(run: Run) -> None:
    done, asked = len(run.history), run.config.epochs
    if done:
        logger.info("continuing after epoch %d of the run in %s", done, run.out)
    elif run.config.resume:
        logger.info("there is no epoch to continue from in %s, so a new run starts", run.out)
    if done == asked:
        logger.info("all %d epochs are done; raise --epochs to train further", done)


def _require_network(model: nn.Module, name: str) -> None:
    if name != "own" and not isinstance(model, NETWORKS[name]):
        raise ValueError(
            f"the model is a {type(model).__name__}, but config.network is {name!r}; "
            "name its kind, or 'own' for a network of yours"
        )


def _tasks(
    model: nn.Module, train: Any, val: Any, config: RunConfig, device: torch.device
) -> tuple[Task, Task]:
    plain = config.reference
    if isinstance(config, SegmentationConfig):
        augmentation = Augmentation() if config.augment else None
        return (
            SegmentationTask(train, device, config.loss, augmentation, plain),
            SegmentationTask(val, device, config.loss, None, plain),
        )
    _require_network(model, getattr(config, "network", "own"))
    palette = palette_of(model)
    changed = config if isinstance(config, Config) else None
    return (
        ColorTask(train, palette, device, plain, changed),
        ColorTask(val, palette, device, plain, _measured(changed)),
    )


def _measured(config: Config | None) -> Config | None:
    """The settings that change what is measured, too."""
    return None if config is None else Config(task=config.task)


def _facts(train: Task, val: Task) -> dict[str, Any]:
    sets = {"train": train, "val": val}
    return {
        "colorseg": colorseg.build_info(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "data": {
            role: {"name": task.name, "images": len(task), "sha256": task.sha256()}
            for role, task in sets.items()
        },
    }
