"""The settings that all training runs have, in one checked record, and its files."""

import dataclasses
import json
import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from colorseg._files import write_atomically

SCHEDULES = ("constant", "poly")
OPTIMIZERS = ("adam", "adamw")


def is_number(value: object) -> bool:
    """Whether it is a finite int or float."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False


@dataclass(frozen=True)
class RunConfig:
    """The settings that all training runs have; every value is checked when the record is made.

    Args:
        data: the pictures, as ``colorseg.data.load`` or ``load_segmentation`` take them.
        epochs: passes over the training pictures, in all (a resumed run counts the old ones).
        batch_size: pictures in a batch; the last batch of an epoch may be smaller.
        lr: learning rate.
        schedule: ``"constant"``, or ``"poly"``: after a fraction t of all steps the rate is
            ``lr * (1 - t) ** 0.9``.
        optimizer: ``"adam"``, or ``"adamw"`` with torch's weight decay of 0.01.
        seed: decides weights, batches and everything else that is random.
        device: anything ``torch.device`` takes.
        amp: forward in bfloat16 where torch's autocast takes that for safe; CUDA only.
        cuda_graphs: on CUDA, replay the steps of full batches as one graph; where that is not
            possible, the log says why.
        out: folder for everything the run writes.
        resume: go on with the run found in ``out``, or start one where there is none.
        reference: plain torch modules and loss instead of the fused ones, to compare with.
        reshuffle: draw new batches in every epoch; False keeps those of one shuffle, as in the
            course (see ``colorseg.training.seeding``).
        download: whether the pictures may be downloaded.
        clip: gradients are scaled down to this norm, over all parameters; 0 leaves them.
        detect_anomaly: name the layer or parameter where numbers that are not finite appear first;
            slow.
        sync_bn: where several processes train, normalize over the batches of all of them.
        tensorboard: write losses, figures and pictures of every epoch for TensorBoard, too, into
            ``tensorboard`` in ``out``.

    Raises:
        ValueError: a value is of the wrong kind or out of range.
    """

    data: str = "sample"
    epochs: int = 25
    batch_size: int = 100
    lr: float = 1e-3
    schedule: str = "constant"
    optimizer: str = "adam"
    seed: int = 0
    device: str = "cpu"
    amp: bool = False
    cuda_graphs: bool = True
    out: str = "runs/unet"
    resume: bool = False
    reference: bool = False
    reshuffle: bool = True
    download: bool = False
    clip: float = 0.0
    detect_anomaly: bool = False
    sync_bn: bool = False
    tensorboard: bool = False

    # the settings that a resumed run may not change: its result would be that of no single run
    fixed: ClassVar[tuple[str, ...]] = (
        "seed",
        "batch_size",
        "lr",
        "schedule",
        "optimizer",
        "amp",
        "clip",
        "reshuffle",
        "reference",
    )

    def __post_init__(self) -> None:
        for name in ("data", "out"):  # a pathlib.Path is welcome too
            object.__setattr__(self, name, str(getattr(self, name)))
        self._one_of("optimizer", OPTIMIZERS)
        self._one_of("schedule", SCHEDULES)
        for name in ("epochs", "batch_size"):
            self._integer(name, 1, None)
        self._integer("seed", 0, 2**32 - 1)
        switches = ("amp", "cuda_graphs", "resume", "reference", "reshuffle", "download")
        for name in (*switches, "detect_anomaly", "sync_bn", "tensorboard"):
            self._require(name, isinstance(getattr(self, name), bool), "true or false")
        self._require(
            "lr",
            is_number(self.lr) and self.lr > 0,
            "a number above 0, usually between 0.0001 and 0.1",
        )
        clips = is_number(self.clip) and self.clip >= 0
        self._require("clip", clips, "a number, 0 for none or above")
        self._check_device()
        cuda = self.device.split(":")[0] == "cuda"
        self._require("amp", cuda or not self.amp, "false on devices other than cuda")

    def identity(self) -> dict[str, Any]:
        """The fixed settings; the number of epochs too where the learning rate depends on it."""
        names = (*self.fixed, "epochs") if self.schedule == "poly" else self.fixed
        return {name: getattr(self, name) for name in names}

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

    @classmethod
    def from_toml(cls, path: str | Path) -> Self:
        """Read settings from a TOML file of ``name = value`` lines; others get their default.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is no TOML, names a setting that is not there, or a value is wrong.
        """
        settings = cls.read_toml(path)
        try:
            return cls(**settings)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    @classmethod
    def read_toml(cls, path: str | Path) -> dict[str, Any]:
        """The settings that a TOML file names, their values unchecked.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is no TOML, or names a setting that is not there.
        """
        try:
            settings = tomllib.loads(Path(path).read_text())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"{path} is no TOML file: {error}") from None
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(settings.keys() - set(known))
        if unknown:
            raise ValueError(
                f"{path} has the unknown setting {unknown[0]}; known are {', '.join(known)}"
            )
        return settings

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
