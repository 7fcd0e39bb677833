"""Pictures of a run: its curves, and what the network makes of some validation pictures."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from colorseg._files import write_atomically
from colorseg.training.evaluation import eval_mode
from colorseg.training.history import History
from colorseg.training.task import Task

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 100
TRAIN, VALIDATION = "#c62828", "#2e7d32"  # red and green as in the course
ROWS = ("input", "truth", "prediction")


def save_curves(history: History, path: str | Path) -> None:
    """Draw loss and accuracy over the epochs as a PNG, written atomically."""
    figure = _figure(1200, 460)
    figure.set_layout_engine("constrained", w_pad=0.15, h_pad=0.12)
    loss, accuracy = figure.subplots(1, 2)
    _curve(loss, history, "train_loss", TRAIN, "training")
    _curve(loss, history, "val_loss", VALIDATION, "validation")
    _curve(accuracy, history, "val_accuracy", VALIDATION, "validation", factor=100)
    best = history.best
    where = f"weights kept (epoch {best.epoch})"
    loss.plot(
        best.epoch, best.val_loss, "o", color=VALIDATION, label=f"{where}: {best.val_loss:.3f}"
    )
    shown = 100 * best.val_accuracy
    accuracy.plot(best.epoch, shown, "o", color=VALIDATION, label=f"{where}: {shown:.1f} %")
    _label(loss, "cross-entropy per pixel", "Loss")
    _label(accuracy, "pixels with the right color (%)", "Accuracy")
    _save(figure, path)


def save_samples(
    model: nn.Module, task: Task, path: str | Path, title: str = "", columns: int = 10
) -> None:
    """Draw input, true palette colors and prediction of evenly spaced pictures, atomically.

    Each pixel becomes a square of whole screen pixels, so that nothing is blurred.
    """
    index = torch.linspace(0, len(task) - 1, min(columns, len(task))).long()
    rows = _rows(model, task, index)
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


def _rows(model: nn.Module, task: Task, index: Tensor) -> list[Tensor]:
    """The three rows as uint8 pictures ``(n, 3, H, W)``."""
    grey, _ = task.batch(index)
    with torch.no_grad(), eval_mode(model):
        predicted = model(grey).argmax(1).cpu()
    palette = task.palette
    shown = (grey.cpu() * 256).round().to(torch.uint8).expand(-1, 3, -1, -1)
    truth = palette.quantize(task.images.images[index])
    return [shown, palette.decode(truth), palette.decode(predicted)]


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
    axes: "Axes", history: History, name: str, color: str, label: str, factor: float = 1
) -> None:
    values = [factor * value for value in history.column(name)]
    marker = "o" if len(values) == 1 else None  # one point makes no line
    axes.plot(history.column("epoch"), values, color=color, label=label, lw=2, marker=marker)


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


def _save(figure: "Figure", path: str | Path) -> None:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=DPI)
    write_atomically(path, content.getvalue())
