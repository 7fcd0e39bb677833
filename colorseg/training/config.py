"""Everything that decides a training run, in one checked record."""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from colorseg._files import write_atomically
from colorseg.palette import Palette

NETWORKS = ("pool_upsample", "conv_transpose", "unet", "own")
OPTIMIZERS = ("adam", "adamw")


@dataclass(frozen=True)
class Config:
    """The settings of a training run; every value is checked when the record is made.

    Args:
        network: a key of ``colorseg.models.NETWORKS``, or ``"own"`` for a network of yours.
        data: what ``colorseg.data.load`` takes: ``"sample"``, ``"cifar10"`` or a path.
        epochs: passes over the training pictures, in all (a resumed run counts the old ones).
        batch_size: pictures in a batch; the last batch of an epoch may be smaller.
        lr: learning rate.
        optimizer: ``"adam"``, or ``"adamw"`` with torch's weight decay of 0.01.
        seed: decides weights, batches and everything else that is random.
        device: anything ``torch.device`` takes.
        out: folder for everything the run writes.
        resume: go on with the run found in ``out``, or start one where there is none.
        reference: plain torch modules and loss instead of the fused ones, to compare with.
        kernel: side of the convolutions.
        num_filters: filters of the first convolution.
        reshuffle: draw new batches in every epoch; False keeps those of one shuffle, as in the
            course (see ``colorseg.training.seeding``).
        palette: a name or path that ``Palette.named`` takes; ``"auto"`` is sample24 for the
            embedded sample and horse24 for everything else.
        classes: CIFAR-10 classes to use, by name or number; None for all.
        download: let ``colorseg.data.load`` download the pictures.

    Raises:
        ValueError: a value is of the wrong kind or out of range.
    """

    network: str = "unet"
    data: str = "sample"
    epochs: int = 25
    batch_size: int = 100
    lr: float = 1e-3
    optimizer: str = "adam"
    seed: int = 0
    device: str = "cpu"
    out: str = "runs/unet"
    resume: bool = False
    reference: bool = False
    kernel: int = 3
    num_filters: int = 32
    reshuffle: bool = True
    palette: str = "auto"
    classes: tuple[str | int, ...] | None = ("horse",)
    download: bool = False

    def __post_init__(self) -> None:
        for name in ("data", "out", "palette"):  # a pathlib.Path is welcome too
            object.__setattr__(self, name, str(getattr(self, name)))
        if self.classes is not None:  # a single name, or the list that JSON made of the tuple
            names = (self.classes,) if isinstance(self.classes, str) else tuple(self.classes)
            object.__setattr__(self, "classes", names)
            self._require("classes", bool(names), "at least one class, or None for all")

        self._one_of("network", NETWORKS)
        self._one_of("optimizer", OPTIMIZERS)
        for name in ("epochs", "batch_size", "kernel", "num_filters"):
            self._integer(name, 1, None)
        self._integer("seed", 0, 2**32 - 1)
        for name in ("resume", "reference", "reshuffle", "download"):
            self._require(name, isinstance(getattr(self, name), bool), "true or false")
        rate = isinstance(self.lr, int | float) and math.isfinite(self.lr) and self.lr > 0
        self._require("lr", rate, "a number above 0, usually between 0.0001 and 0.1")
        self._check_device()

    def save(self, path: str | Path, run: dict[str, Any] | None = None) -> None:
        """Write the settings as JSON, atomically; ``run`` adds facts that ``load`` ignores."""
        settings = dataclasses.asdict(self) | ({"run": run} if run else {})
        write_atomically(path, json.dumps(settings, indent=2).encode() + b"\n")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read the settings that ``save`` wrote; those missing in the file get their default.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is no such file, or a value in it is wrong.
        """
        try:
            settings = json.loads(Path(path).read_text())
            settings.pop("run", None)
            return cls(**settings)
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} holds no training settings ({error}); correct or delete it"
            ) from None

    def choose_palette(self) -> Palette:
        """The palette that ``palette`` names."""
        automatic = "sample24" if self.data == "sample" else "horse24"
        return Palette.named(automatic if self.palette == "auto" else self.palette)

    def _check_device(self) -> None:
        import torch

        try:
            torch.device(self.device)
        except (RuntimeError, TypeError):
            self._require("device", False, "a device of torch, such as cpu or cuda:0")

    def _one_of(self, name: str, choices: tuple[str, ...]) -> None:
        self._require(name, getattr(self, name) in choices, f"one of {', '.join(choices)}")

    def _integer(self, name: str, low: int, high: int | None) -> None:
        value = getattr(self, name)
        whole = isinstance(value, int) and not isinstance(value, bool)
        allowed = f"at least {low}" if high is None else f"between {low} and {high}"
        fits = whole and value >= low and (high is None or value <= high)
        self._require(name, fits, f"a whole number, {allowed}")

    def _require(self, name: str, holds: bool, wanted: str) -> None:
        if not holds:
            raise ValueError(f"{name} must be {wanted}, got {getattr(self, name)!r}")
