"""Figures over several runs, as PNG and SVG."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colorseg._files import write_atomically
from colorseg.training.history import History

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = ("#1565c0", "#ef6c00", "#2e7d32", "#6a1b9a", "#c62828")


def _figure(columns: int) -> tuple["Figure", list[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # late: takes half a second
    from matplotlib.figure import Figure

    figure = Figure((12, 4.6), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def save_networks(histories: Mapping[str, History], path: Path) -> Path:
    """Losses and accuracies of networks over the epochs; returns the PNG's path."""
    from matplotlib.ticker import MaxNLocator

    figure, (loss, accuracy) = _figure(2)
    for (name, history), color in zip(histories.items(), COLORS, strict=False):
        epochs = history.column("epoch")
        marker = "o" if len(epochs) == 1 else ""
        loss.plot(epochs, history.column("train_loss"), "--", color=color, lw=1, marker=marker)
        label = f"{name} ({history.column('val_loss')[-1]:.3f})"
        loss.plot(epochs, history.column("val_loss"), color=color, lw=2, marker=marker, label=label)
        percent = [100 * value for value in history.column("val_accuracy")]
        label = f"{name} ({percent[-1]:.1f} %)"
        accuracy.plot(epochs, percent, color=color, lw=2, marker=marker, label=label)
    for axes in (loss, accuracy):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    _label(loss, "epoch", "cross-entropy per pixel", "Validation loss (training dashed)")
    _label(accuracy, "epoch", "pixels with the right color (%)", "Validation accuracy")
    return _save(figure, path)


def save_batch_sizes(
    losses: Mapping[int, float], seconds: Mapping[int, float], published: Mapping[int, float],
    path: Path,
) -> Path:  # fmt: skip
    """Validation losses and times by batch size; returns the PNG's path."""
    figure, (left, right) = _figure(2)
    left.plot(list(losses), list(losses.values()), "o-", color=COLORS[0], lw=2, label="colorseg")
    left.plot(list(published), list(published.values()), "s:", color="#777", label="the report")
    right.plot(list(seconds), list(seconds.values()), "o-", color=COLORS[0], lw=2, label="colorseg")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(losses), [str(size) for size in losses])
        axes.minorticks_off()
    _label(left, "batch size", "cross-entropy per pixel", "Validation loss after the same epochs")
    _label(right, "batch size", "seconds", "Time of the run")
    return _save(figure, path)


def save_recipes(losses: Mapping[str, Sequence[float]], path: Path) -> Path:
    """A line per recipe with a dot per seed; returns the PNG's path."""
    figure, (axes,) = _figure(1)
    names = list(losses)[::-1]
    for place, name in enumerate(names):
        values = losses[name]
        mean = sum(values) / len(values)
        axes.plot(values, [place] * len(values), "o", color=COLORS[0], alpha=0.6, ms=9)
        axes.plot([mean], [place], "|", color=COLORS[4], ms=22, mew=2)
    axes.set_yticks(range(len(names)), names)
    axes.plot([], [], "o", color=COLORS[0], alpha=0.6, label="a seed")
    axes.plot([], [], "|", color=COLORS[4], mew=2, label="mean")
    _label(axes, "validation loss, cross-entropy per pixel", "", "Recipes at the same epochs")
    return _save(figure, path)


def _label(axes: Any, x: str, y: str, title: str) -> None:
    axes.set_title(title, loc="left", size=14)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(color="#e6e6e6")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)


def _save(figure: "Figure", path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    for suffix in (".png", ".svg"):
        content = io.BytesIO()
        figure.savefig(content, format=suffix[1:], dpi=120)
        write_atomically(path.with_suffix(suffix), content.getvalue())
    return path.with_suffix(".png")
