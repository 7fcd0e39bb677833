"""The folder of a run: what is written there, and how a run goes on from it."""

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from colorseg._files import load_torch, make_folder, remove_drafts, write_atomically
from colorseg.training.history import History, Row
from colorseg.training.run_config import RunConfig

FILES = (
    "config.json",
    "metrics.csv",
    "last.pt",
    "best.safetensors",
    "model.safetensors",
    "curves.png",
    "samples.png",
)


def holds_run(folder: str | Path) -> bool:
    """Whether a run has written to the folder."""
    return any((Path(folder) / name).exists() for name in FILES)


def open_folder(config: RunConfig) -> Path:
    """The folder of the run, created if need be, without what a killed run was writing.

    Raises:
        FileExistsError: it holds another run, and the run is not to be resumed.
        OSError: it cannot be written to.
    """
    if not config.resume and holds_run(config.out):
        raise FileExistsError(
            f"{config.out} holds a training run already; continue it with --resume, "
            "or choose another --out"
        )
    folder = make_folder(config.out)
    remove_drafts(folder)
    return folder


def save_checkpoint(
    path: Path, model: nn.Module, optimizer: Optimizer, history: History, identity: dict[str, Any]
) -> None:
    """Write all that the next epoch depends on, atomically."""
    content = io.BytesIO()  # first to memory: torch reports a full disk as an internal error
    state = {
        "identity": identity,
        "history": [list(epoch) for epoch in history.epochs],
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    torch.save(state, content)
    write_atomically(path, content.getvalue())


def read_checkpoint(path: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """What was saved there by a run with the same settings and data; None without a file.

    Raises:
        ValueError: the file is damaged, no checkpoint, or belongs to a run with other settings.
        OSError: the file cannot be read.
    """
    if not path.exists():
        return None
    state = _read(path)
    _require_same(path.parent, state["identity"], identity)
    if not (path.parent / "best.safetensors").exists():
        raise _unusable(path, "best.safetensors is missing beside it")
    return state


def restore_checkpoint(
    state: dict[str, Any] | None,
    path: Path,
    model: nn.Module,
    optimizer: Optimizer,
    row: Callable[..., Row],
) -> History:
    """Put model and optimizer into the state that was read; an empty history for None.

    Raises:
        ValueError: the state, which ``path`` held, is not one of this network.
    """
    if state is None:
        return History()
    try:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        return History([row(*epoch) for epoch in state["history"]])
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise _unusable(path, "it does not fit this network") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        with warnings.catch_warnings(action="ignore"):  # about pickles that it then refuses
            state = load_torch(path)
    except OSError:
        raise
    except Exception as error:
        raise _unusable(path, "it is damaged") from error
    wanted = {"identity": dict, "history": list, "model": dict, "optimizer": dict}
    if not isinstance(state, dict) or not all(
        isinstance(state.get(name), kind) for name, kind in wanted.items()
    ):
        raise _unusable(path, "it is no checkpoint of colorseg")
    return state


def _unusable(path: Path, reason: str) -> ValueError:
    return ValueError(
        f"cannot resume from {path}: {reason}; delete it to start afresh, or choose another --out"
    )


def _require_same(folder: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    changed = [name for name in new if old.get(name) != new[name]]
    if changed:
        differences = ", ".join(f"{name} {old.get(name)} (now {new[name]})" for name in changed)
        raise ValueError(
            f"cannot resume {folder}: it was trained with {differences}; "
            "repeat its settings or choose another --out"
        )
