"""Pictures of a run: its curves, and what the network makes of some validation pictures."""

import io
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from colorseg._files import write_atomically
from colorseg.training.history import Epoch, History, SegmentationEpoch
from colorseg.training.task import Task

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 100
TRAIN, VALIDATION = "#c62828", "#2e7d32"  # red and green as in the course
COURSE = "#1565c0"
COLORS = (COURSE, "#ef6c00", "#6a1b9a")  # of runs beside one another
ROWS = ("input", "truth", "prediction")


class Panel(NamedTuple):
    """A part of the curves' picture."""

    title: str
    unit: str
    lines: tuple[tuple[str, str, str], ...]  # column of the history, color, label
    marked: str  # the column whose value in the best epoch is written out
    form: str  # of that value
    factor: float = 1


_LOSS = (("train_loss", TRAIN, "training"), ("val_loss", VALIDATION, "validation"))
PANELS = {
    Epoch: (
        Panel("Loss", "cross-entropy per pixel", _LOSS, "val_loss", ".3f"),
        Panel(
            "Accuracy",
            "pixels with the right color (%)",
            (("val_accuracy", VALIDATION, "validation"),),
            "val_accuracy",
            ".1f",
            100,
        ),
    ),
    SegmentationEpoch: (
        Panel("Loss", "loss", _LOSS, "val_loss", ".3f"),
        Panel(
            "Mean IoU of the validation pictures",
            "mean IoU",
            (("val_miou", VALIDATION, "macro"), ("val_course", COURSE, "course")),
            "val_miou",
            ".3f",
        ),
    ),
}


def save_curves(history: History, path: str | Path) -> None:
    """Draw loss and accuracy (or mean IoU) over the epochs as PNG and, beside it, as SVG."""
    figure = _figure(1200, 460)
    figure.set_layout_engine("constrained", w_pad=0.15, h_pad=0.12)
    best = history.best
    panels = PANELS[type(best)]
    for axes, panel in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for name, color, label in panel.lines:
            _curve(axes, history, name, color, label, panel.factor)
        shown = panel.factor * getattr(best, panel.marked)
        where = f"weights kept (epoch {best.epoch})"
        label = f"{where}: {shown:{panel.form}}"
        axes.plot(best.epoch, shown, "o", color=VALIDATION, label=label)
        _label(axes, panel.unit, panel.title)
        if panel.lines is _LOSS:
            _end_at_training(axes, [history])
    _save(figure, path, vectors=True)


def save_curves_beside(histories: dict[str, History], path: str | Path) -> None:
    """Draw losses and mean IoUs of several runs that segment as PNG and, beside it, as SVG."""
    figure = _figure(1200, 460)
    figure.set_layout_engine("constrained", w_pad=0.15, h_pad=0.12)
    loss, miou = figure.subplots(1, 2)
    for (name, history), color in zip(histories.items(), cycle(COLORS)):
        _curve(loss, history, "train_loss", color, f"{name}, training", style="--")
        _curve(loss, history, "val_loss", color, f"{name}, validation")
        best = history.best.val_miou
        _curve(miou, history, "val_miou", color, f"{name}, macro (best {best:.3f})")
        _curve(miou, history, "val_course", color, f"{name}, course's score", style=":")
    _label(loss, "loss", "Loss, each of its own kind")
    _end_at_training(loss, list(histories.values()))
    _label(miou, "mean IoU", "Mean IoU of the validation pictures")
    _save(figure, path, vectors=True)


def save_samples(
    model: nn.Module, task: Task, path: str | Path, title: str = "", columns: int = 10
) -> None:
    """Draw input, truth and prediction of evenly spaced pictures, atomically.

    Each pixel becomes a square of whole screen pixels, so that nothing is blurred.
    """
    index = torch.linspace(0, len(task) - 1, min(columns, len(task))).long()
    rows = task.pictures(model, index)
    height, width = rows[0].shape[2:]
    scale = max(1, 128 // max(height, width))
    gap, left, top = 8, 130, 48
    cell_height, cell_width = height * scale + gap, width * scale + gap
    figure = _figure(left + cell_width * len(index), top + cell_height * len(ROWS))
    for row, (name, images) in enumerate(zip(ROWS, rows, strict=True)):
        bottom = gap + (len(ROWS) - 1 - row) * cell_height
        centre = (bottom + height * scale / 2) / figure.bbox.height
        figure.text((left - 14) / figure.bbox.width, centre, name, ha="right", va="center", size=13)
        for column, pixels in enumerate(_enlarge(images, scale)):
            figure.figimage(pixels, left + column * cell_width, bottom, origin="upper")
    height_of_title = 1 - top / 2 / figure.bbox.height
    figure.text(left / figure.bbox.width, height_of_title, title, va="center", size=13)
    _save(figure, path)


def _enlarge(images: Tensor, scale: int) -> np.ndarray:
    large = images.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    return large.permute(0, 2, 3, 1).numpy()


def _figure(width: int, height: int) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # late: takes half a second
    from matplotlib.figure import Figure

    figure = Figure((width / DPI, height / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)  # neither pyplot nor the user's backend is touched
    return figure


def _curve(
    axes: "Axes",
    history: History,
    name: str,
    color: str,
    label: str,
    factor: float = 1,
    style: str = "-",
) -> None:
    values = [factor * value for value in history.column(name)]
    marker = "o" if len(values) == 1 else None  # one point makes no line
    axes.plot(history.column("epoch"), values, style, color=color, label=label, lw=2, marker=marker)


def _end_at_training(axes: "Axes", histories: list[History]) -> None:
    """Cut off the first validations, which batch norm's young statistics can make huge."""
    top = 2 * max(max(history.column("train_loss")) for history in histories)
    if axes.get_ylim()[1] > top:
        axes.set_ylim(0, top)


def _label(axes: "Axes", unit: str, title: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title, loc="left", size=14, pad=10)
    axes.set_xlabel("epoch", size=12)
    axes.set_ylabel(unit, size=12)
    axes.xaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    axes.grid(color="#e6e6e6")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(y=0.12)
    axes.legend(frameon=False, fontsize=12)


def _save(figure: "Figure", path: str | Path, vectors: bool = False) -> None:
    for suffix in (".png", ".svg") if vectors else (".png",):
        content = io.BytesIO()
        figure.savefig(content, format=suffix[1:], dpi=DPI)
        write_atomically(Path(path).with_suffix(suffix), content.getvalue())
