"""Everything that decides a training run, in one checked record."""

import dataclasses
import json
import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from colorseg._files import write_atomically
from colorseg.palette import Palette

SCHEDULES = ("constant", "poly")
NETWORKS = ("pool_upsample", "conv_transpose", "unet", "own")
OPTIMIZERS = ("adam", "adamw")
TASKS = ("colorize", "super-resolution")
LOSSES = ("ce", "iou", "sum")


def _is_number(value: object) -> bool:
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
            _is_number(self.lr) and self.lr > 0,
            "a number above 0, usually between 0.0001 and 0.1",
        )
        clips = _is_number(self.clip) and self.clip >= 0
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


@dataclass(frozen=True)
class Config(RunConfig):
    """The settings of a run that learns to colorize, beside those of every run.

    Args:
        network: a key of ``colorseg.models.NETWORKS``, or ``"own"`` for a network of yours.
        kernel: side of the convolutions.
        num_filters: filters of the first convolution.
        dilation: of the second convolution.
        task: what the network sees: ``"colorize"``, the grey picture, or ``"super-resolution"``,
            the colored one at a quarter of its height and width.
        palette: a name or path that ``Palette.named`` takes; ``"auto"`` is sample24 for the
            embedded sample and horse24 for everything else.
        classes: CIFAR-10 classes to use, by name or number; None or ``"all"`` for all.
        image_size: side of the squares that are cut from a folder's photographs, to train anew at
            each use.
        short_side: what the shorter side of such a photograph is scaled to first, 0 for
            ``image_size``; the larger, the smaller the parts that squares show.
        flips: mirror each training picture left to right with probability 1/2.
        label_smoothing: of the training loss, see ``colorseg.ops.color_cross_entropy``.
        soft_neighbors: the same.
        soft_sigma: the same.
        rebalance: weigh the colors of the training loss by 1 / (r p + (1 - r) / K), with p how
            often a color is and K how many there are, scaled to mean 1 over the pixels, as in
            Zhang, Isola, Efros, "Colorful Image Colorization", 2016 (their lambda is 1 - r); in
            0 .. 1, 0 for no weights.
    """

    network: str = "unet"
    kernel: int = 3
    num_filters: int = 32
    dilation: int = 1
    task: str = "colorize"
    palette: str = "auto"
    classes: tuple[str | int, ...] | None = ("horse",)
    image_size: int = 32
    short_side: int = 0
    flips: bool = False
    label_smoothing: float = 0.0
    soft_neighbors: int = 0
    soft_sigma: float = 0.05
    rebalance: float = 0.0

    fixed: ClassVar[tuple[str, ...]] = (
        "network",
        "kernel",
        "num_filters",
        "dilation",
        "task",
        *RunConfig.fixed,
        "palette",
        "flips",
        "label_smoothing",
        "soft_neighbors",
        "soft_sigma",
        "rebalance",
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "palette", str(self.palette))
        if self.classes in ("all", ["all"], ("all",)):  # TOML has no None
            object.__setattr__(self, "classes", None)
        if self.classes is not None:  # a single name, or the list that JSON made of the tuple
            single = not isinstance(self.classes, list | tuple)
            names = (self.classes,) if single else tuple(self.classes)
            kinds = all(isinstance(n, str | int) and not isinstance(n, bool) for n in names)
            self._require("classes", kinds, "names or numbers of classes")
            object.__setattr__(self, "classes", names)
            self._require("classes", bool(names), "at least one class, or None for all")
        self._one_of("network", NETWORKS)
        self._one_of("task", TASKS)
        for name in ("kernel", "num_filters", "dilation", "image_size"):
            self._integer(name, 1, None)
        for name in ("soft_neighbors", "short_side"):
            self._integer(name, 0, None)
        fits = self.short_side == 0 or self.short_side >= self.image_size
        self._require("short_side", fits, f"0, or at least the image_size of {self.image_size}")
        self._require("flips", isinstance(self.flips, bool), "true or false")
        for name in ("label_smoothing", "rebalance"):
            value = getattr(self, name)
            self._require(name, _is_number(value) and 0 <= value <= 1, "a number in 0 .. 1")
        sigma = _is_number(self.soft_sigma) and self.soft_sigma > 0
        self._require("soft_sigma", sigma, "a number above 0")
        super().__post_init__()

    def choose_palette(self) -> Palette:
        """The palette that ``palette`` names."""
        automatic = "sample24" if self.data == "sample" else "horse24"
        return Palette.named(automatic if self.palette == "auto" else self.palette)


@dataclass(frozen=True)
class SegmentationConfig(RunConfig):
    """The settings of a run that learns to segment, beside those of every run.

    Args:
        network: what the model is, for the record, such as ``"deeplabv3 resnet18"``.
        loss: ``"ce"`` (cross-entropy), ``"iou"`` (soft IoU of the foreground, summed over a batch)
            or ``"sum"`` of the two.
        augment: change the training pictures at random, see ``colorseg.data.Augmentation``.
        mode: how the pictures were read, see ``colorseg.data.load_segmentation``.
    """

    data: str = "scenes"
    batch_size: int = 8
    out: str = "runs/deeplab"
    network: str = "deeplabv3"
    loss: str = "ce"
    augment: bool = True
    mode: str = "clean"

    fixed: ClassVar[tuple[str, ...]] = ("network", *RunConfig.fixed, "loss", "augment")

    def __post_init__(self) -> None:
        self._one_of("loss", LOSSES)
        self._require("augment", isinstance(self.augment, bool), "true or false")
        super().__post_init__()
