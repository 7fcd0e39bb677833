"""Everything that decides a run that learns to color, or to segment."""

from dataclasses import dataclass
from typing import ClassVar

from colorseg.palette import Palette
from colorseg.training.run_config import RunConfig, is_number

NETWORKS = ("pool_upsample", "conv_transpose", "unet", "own")
TASKS = ("colorize", "super-resolution")
LOSSES = ("ce", "iou", "sum")


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
            self._require(name, is_number(value) and 0 <= value <= 1, "a number in 0 .. 1")
        sigma = is_number(self.soft_sigma) and self.soft_sigma > 0
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
