"""Several runs on the same data beside one another: a table, all figures, and curves."""

import csv
import io
import math
from pathlib import Path

import torch

from colorseg._files import make_folder, write_atomically
from colorseg.data import SegmentationSet
from colorseg.training.history import History, SegmentationEpoch
from colorseg.training.plots import save_curves_beside
from colorseg.training.segmentation import measure_masks


def save_comparison(
    histories: dict[str, History],
    measured: dict[str, dict[str, float]],
    val: SegmentationSet,
    out: str | Path,
) -> str:
    """Write ``comparison.md``, ``comparison.png`` and ``metrics.csv`` of runs that segment.

    Args:
        histories: of the runs, by name.
        measured: what ``evaluate`` gives for their best weights, by the same names.
        val: the pictures they were validated on, which all in one class is compared on too.
        out: folder.

    Returns:
        The table, as Markdown.

    Raises:
        OSError: the folder cannot be written to.
    """
    folder = make_folder(out)
    table = _table(histories, measured, val)
    write_atomically(folder / "comparison.md", f"{table}\n".encode())
    write_atomically(folder / "metrics.csv", _rows(histories).encode())
    save_curves_beside(histories, folder / "comparison.png")
    return table


def measure_constant(val: SegmentationSet, label: int = 0) -> dict[str, float]:
    """What ``evaluate`` would give for a network that sees one class everywhere, but the loss."""
    return measure_masks([(torch.full_like(val.masks, label), val.masks)], val.classes)


def _table(
    histories: dict[str, History], measured: dict[str, dict[str, float]], val: SegmentationSet
) -> str:
    shown = ["miou", *(f"iou {name}" for name in val.classes), "course", "accuracy"]
    names = ["mIoU (macro)", *(f"IoU {name}" for name in val.classes), "course's score", "accuracy"]
    heading = ["loss", *names, "best epoch", "seconds"]
    lines = [heading, ["---"] * len(heading)]
    for name, history in histories.items():
        seconds = sum(history.column("seconds"))
        figures = [_four_digits(measured[name][key]) for key in shown]
        lines.append([name, *figures, str(history.best.epoch), f"{seconds:.0f}"])
    constant = measure_constant(val)
    figures = [_four_digits(constant[key]) for key in shown]
    lines.append([f"(all {val.classes[0]})", *figures, "", ""])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _four_digits(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.4f}"


def _rows(histories: dict[str, History]) -> str:
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("loss", *SegmentationEpoch._fields))
    for name, history in histories.items():
        rows.writerows((name, *epoch) for epoch in history.epochs)
    return text.getvalue()
