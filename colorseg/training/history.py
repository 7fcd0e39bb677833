"""What a training run measured, epoch by epoch."""

import csv
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from colorseg._files import write_atomically


class Epoch(NamedTuple):
    """The figures of one epoch, a row of ``metrics.csv``.

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


@dataclass
class History:
    """The epochs of a run, oldest first."""

    epochs: list[Epoch] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.epochs)

    @property
    def best(self) -> Epoch:
        """The epoch with the lowest validation loss, the first of equals.

        Raises:
            ValueError: no epoch was finished.
        """
        if not self.epochs:
            raise ValueError("a history without epochs has no best one; train first")
        return min(self.epochs, key=lambda epoch: epoch.val_loss)

    def column(self, name: str) -> list[float]:
        """One figure over all epochs, by its name in ``Epoch``."""
        return [getattr(epoch, name) for epoch in self.epochs]

    def save_csv(self, path: str | Path) -> None:
        """Write a table with a heading and a row per epoch, every digit kept, atomically."""
        text = io.StringIO(newline="")
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(Epoch._fields)
        rows.writerows(self.epochs)
        write_atomically(path, text.getvalue().encode())
