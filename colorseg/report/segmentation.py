"""Part 2 of the report: DeepLabV3 with cross-entropy and with soft IoU."""

import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from colorseg.data import SegmentationSet, load_segmentation
from colorseg.models import deeplabv3
from colorseg.report.document import Picture, Section, Table
from colorseg.report.published import SEGMENTATION
from colorseg.report.runs import Run, train_missing
from colorseg.training import SegmentationConfig
from colorseg.training.comparison import measure_constant
from colorseg.training.history import SegmentationEpoch
from colorseg.training.plots import save_curves_beside
from colorseg.training.seeding import seed_everything

DAFFODILS = "flowers17-daffodil-seg"  # looked for in a folder of data
LOSSES = {"ce": "cross-entropy", "iou": "soft IoU"}
BACKBONE, STRIDE = "resnet18", 16
SETTINGS: dict[str, Any] = {"epochs": 20, "batch_size": 8, "lr": 1e-3, "schedule": "poly"}
QUICK: dict[str, Any] = {"epochs": 1}
SIZE, QUICK_SIZE = 96, 32


def segmentation_of(data: str, segment: str | None) -> str:
    """What to segment: as asked for, else daffodils beside the other data, else scenes."""
    if segment is not None:
        return segment
    inside = Path(data).expanduser() / DAFFODILS
    return str(inside) if inside.is_dir() else "scenes"


def load_masks(source: str, quick: bool, download: bool) -> tuple[SegmentationSet, SegmentationSet]:
    """The pictures of part 2, to train and to validate on."""
    size = QUICK_SIZE if quick else SIZE
    return load_segmentation(source, image_size=size, download=download)


def segmentation_sections(
    source: str, train: SegmentationSet, val: SegmentationSet, folder: Path, *, seed: int,
    device: str, quick: bool, jobs: int,
) -> list[Section]:  # fmt: skip
    """Train with either loss where that is missing, and say what came of it."""
    base = SegmentationConfig(
        data=source, network=f"deeplabv3 {BACKBONE}, stride {STRIDE}", seed=seed, device=device,
        **SETTINGS | (QUICK if quick else {}),
    )  # fmt: skip
    runs = {
        loss: Run(
            f"deeplabv3-{loss}",
            dataclasses.replace(base, loss=loss, out=str(folder / "runs" / f"deeplabv3-{loss}")),
        )
        for loss in LOSSES
    }
    make = partial(new_segmenter, num_classes=len(train.classes))
    train_missing(list(runs.values()), train, val, jobs, make)
    return [_comparison(runs, train, val, folder), *map(_run_section, runs.values())]


def new_segmenter(config: SegmentationConfig, num_classes: int) -> nn.Module:
    """The untrained network of the settings, with weights by its seed."""
    seed_everything(config.seed)
    return deeplabv3(BACKBONE, num_classes, output_stride=STRIDE)


def _comparison(
    runs: Mapping[str, Run], train: SegmentationSet, val: SegmentationSet, folder: Path
) -> Section:
    histories = {LOSSES[name]: run.history() for name, run in runs.items()}
    heading = [
        "loss", "report: best mIoU", "public runs: course's score", "colorseg: best mIoU",
        "course's score then", "accuracy", "validation loss", "epoch",
    ]  # fmt: skip
    rows = []
    for name, run in runs.items():
        published = SEGMENTATION[name]
        best: SegmentationEpoch = run.history().best
        rows.append([
            LOSSES[name], f"{published.report:.2f}", published.public,
            f"{best.val_miou:.3f}", _course(best.val_course), f"{100 * best.val_accuracy:.1f} %",
            f"{best.val_loss:.4f}", str(best.epoch),
        ])  # fmt: skip
    constant = measure_constant(val)
    rows.append([
        f"(all {val.classes[0]})", "", "", f"{constant['miou']:.3f}", _course(constant["course"]),
        f"{100 * constant['accuracy']:.1f} %", "", "",
    ])  # fmt: skip
    picture = folder / "figures" / "segmentation.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    save_curves_beside(histories, picture)
    return Section(
        "2. DeepLabV3 by two losses",
        [
            f"{train.name}, {len(train)} pictures, and {val.name}, {len(val)}; DeepLabV3 on "
            f"{BACKBONE} with output stride {STRIDE}, from random weights, with augmentation.  "
            "The report fine-tuned the last layer of a ResNet-101 trained on COCO on 1,280 "
            "flowers of 17 kinds, so that its figures say what was published, not what these data "
            "should give.  mIoU is the macro mean of the classes; the course's score, of two "
            "alone, is a mean over thresholds of each picture's IoU, and always lower.",
            Table("segmentation", heading, rows),
            Picture(picture, "Losses and mean IoUs of the two runs."),
        ],
    )


def _course(score: float) -> str:
    return "" if math.isnan(score) else f"{score:.3f}"


def _run_section(run: Run) -> Section:
    number = 1 + list(LOSSES).index(run.config.loss)
    name = LOSSES[run.config.loss]
    return Section(
        f"2.{number} DeepLabV3 with {name}",
        [
            Picture(run.folder / "curves.png", f"Training with {name}."),
            Picture(run.folder / "samples.png", "Input, truth and prediction of the best epoch."),
        ],
    )
