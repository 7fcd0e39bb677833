"""What a training run measured, epoch by epoch."""

import csv
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from colorseg._files import write_atomically


class Epoch(NamedTuple):
    """The figures of one epoch of a run that learns to colorize, a row of ``metrics.csv``.

    ``train_loss`` is the mean over the batches while the weights change, ``val_loss`` and
    ``val_accuracy`` (a fraction) the exact means over all validation pixels afterwards.
    ``seconds`` counts both, ``images_per_second`` the training alone.
    """

    epoch: int
    train_loss: float
    val_loss: float
    val_accuracy: float
    seconds: float
    images_per_second: float

    @property
    def score(self) -> float:
        """The lowest validation loss is best."""
        return -self.val_loss

    @property
    def words(self) -> str:
        """For the log."""
        return (
            f"train loss {self.train_loss:.4f}, validation loss {self.val_loss:.4f}, accuracy "
            f"{100 * self.val_accuracy:.1f} %, {self.seconds:.1f} s, "
            f"{self.images_per_second:.0f} images/s"
        )


class SegmentationEpoch(NamedTuple):
    """The figures of one epoch of a run that learns to segment.

    As in ``Epoch``, and of the validation pictures ``val_miou``, macro, and ``val_course``, both as
    ``metrics.MeanIoU`` defines them; NaN for the latter if there are more than two classes.
    ``val_loss`` is the mean over batches, weighted by their pictures.
    """

    epoch: int
    train_loss: float
    val_loss: float
    val_accuracy: float
    val_miou: float
    val_course: float
    seconds: float
    images_per_second: float

    @property
    def score(self) -> float:
        """The highest mean IoU is best."""
        return self.val_miou

    @property
    def words(self) -> str:
        """For the log."""
        return (
            f"train loss {self.train_loss:.4f}, validation loss {self.val_loss:.4f}, mIoU "
            f"{self.val_miou:.4f}, accuracy {100 * self.val_accuracy:.1f} %, {self.seconds:.1f} s, "
            f"{self.images_per_second:.1f} images/s"
        )


Row: TypeAlias = Epoch | SegmentationEpoch


@dataclass
class History:
    """The epochs of a run, oldest first."""

    epochs: list[Any] = field(default_factory=list)  # rows of one kind

    def __len__(self) -> int:
        return len(self.epochs)

    @property
    def best(self) -> Any:
        """The epoch with the highest score, the first of equals.

        Raises:
            ValueError: no epoch was finished.
        """
        if not self.epochs:
            raise ValueError("a history without epochs has no best one; train first")
        return max(self.epochs, key=lambda epoch: epoch.score)

    def column(self, name: str) -> list[float]:
        """One figure over all epochs, by its name in ``Epoch``."""
        return [getattr(epoch, name) for epoch in self.epochs]

    def save_csv(self, path: str | Path) -> None:
        """Write a table with a heading and a row per epoch, every digit kept, atomically."""
        text = io.StringIO(newline="")
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(type(self.epochs[0])._fields)
        rows.writerows(self.epochs)
        write_atomically(path, text.getvalue().encode())

    @classmethod
    def load_csv(cls, path: str | Path, row: Any) -> "History":
        """Read the table that ``save_csv`` wrote, of rows of the kind ``row``."""
        with Path(path).open(newline="") as file:
            lines = list(csv.DictReader(file))
        figures = [[float(line[name]) for name in row._fields[1:]] for line in lines]
        return cls([row(int(line["epoch"]), *f) for line, f in zip(lines, figures, strict=True)])
