"""Super-resolution by the same networks, as in the assignment of 2019, against bilinear."""

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from colorseg.data import ImageSet
from colorseg.data.images import COARSE
from colorseg.metrics import psnr
from colorseg.models import load_network
from colorseg.palette import Palette
from colorseg.report.document import Picture, Section, Table
from colorseg.report.figures import save_networks
from colorseg.report.published import TITLES
from colorseg.report.runs import Run

BATCH = 500
DILATED = "UNet with a dilated middle"


def super_resolution_sections(
    runs: Mapping[str, Run], val: ImageSet, folder: Path
) -> list[Section]:
    """The comparison, and curves and pictures of each network."""
    titles = {name: TITLES.get(name, DILATED) for name in runs}
    histories = {titles[name]: run.history() for name, run in runs.items()}
    palette = runs["unet"].config.choose_palette()
    truth = palette.quantize(val.images)
    coarse = val.coarse()
    rows = [
        [name, "", *_quality(colors, palette, truth, val)]
        for name, colors in {"repeated pixels": coarse, "bilinear": bilinear(val)}.items()
    ]
    for name, run in runs.items():
        model = load_network(run.folder / "model.safetensors")
        with torch.inference_mode():
            labels = torch.cat([model(part).argmax(1) for part in coarse.split(BATCH)])
        colors = palette.decode(labels).float() / 255
        loss = f"{run.history().best.val_loss:.4f}"
        rows.append([titles[name], loss, *_quality(colors, palette, truth, val, labels)])
    best = palette.decode(truth).float() / 255
    rows.append(["(the right palette colors)", "0", *_quality(best, palette, truth, val, truth)])
    picture = save_networks(histories, folder / "figures" / "networks.png")
    first = Section(
        "Super-resolution",
        [
            f"The networks see means of {COARSE} x {COARSE} pixels, in color, and are asked for "
            "the palette color of every pixel.  Accuracy is that of the nearest palette color; "
            "PSNR is against the picture itself, so that the palette bounds it.  Bilinear "
            "interpolation is not bound by a palette, and was not asked for one.",
            Table("super-resolution", ["method", "loss", "accuracy", "PSNR, dB"], rows),
            Picture(picture, "Losses and accuracies of the networks."),
        ],
    )
    return [first, *(_network(titles[name], run) for name, run in runs.items())]


def bilinear(pictures: ImageSet) -> Tensor:
    """Coarse pictures (N, 3, H, W), float32 in [0, 1), enlarged bilinearly instead of repeated."""
    small = F.avg_pool2d(pictures.images.float() / 256, COARSE)
    return F.interpolate(small, scale_factor=COARSE, mode="bilinear", align_corners=False)


def _quality(
    colors: Tensor, palette: Palette, truth: Tensor, val: ImageSet, labels: Tensor | None = None
) -> list[str]:
    """Accuracy and PSNR of (N, 3, H, W) in [0, 1]."""
    if labels is None:
        labels = palette.quantize(colors)
    accuracy = (labels == truth).double().mean().item()
    ratio = psnr(colors.clamp(0, 1), val.images.float() / 255).mean().item()
    return [f"{100 * accuracy:.1f} %", f"{ratio:.2f}"]


def _network(title: str, run: Run) -> Section:
    return Section(
        title,
        [
            Picture(run.folder / "curves.png", f"{title}: training and validation."),
            Picture(run.folder / "samples.png", f"{title}: input, truth and prediction."),
        ],
    )
