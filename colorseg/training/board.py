"""What a run tells TensorBoard, beside its files."""

from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn

from colorseg.training.history import Row
from colorseg.training.task import Task

SHOWN = 8  # pictures


class Board:
    """Writes event files into the folder ``tensorboard`` of a run.

    Args:
        out: the run's folder.
        epochs: those done before; what an interrupted run told of later ones is hidden.

    Raises:
        ImportError: TensorBoard is not installed.
    """

    def __init__(self, out: Path, epochs: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ImportError(
                "--tensorboard needs TensorBoard, which is not installed; "
                "pip install 'colorseg[tensorboard]'"
            ) from None
        self._writer = SummaryWriter(out / "tensorboard", purge_step=epochs + 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._writer.close()

    def tell(self, row: Row, rate: float, val: Task, model: nn.Module) -> None:
        """The figures of an epoch, the learning rate at its end, and pictures as they are now."""
        for name, value in row._asdict().items():
            if name != "epoch":
                self._writer.add_scalar(name, value, row.epoch)
        self._writer.add_scalar("learning_rate", rate, row.epoch)
        index = torch.linspace(0, len(val) - 1, min(SHOWN, len(val))).long()
        grid = _grid(val.pictures(model, index))
        self._writer.add_image("input, truth, prediction", grid, row.epoch)
        self._writer.flush()


def _grid(rows: list[Tensor]) -> Tensor:
    """(3, rows * H, n * W) of rows (n, 3, H, W)."""
    lines = [row.permute(1, 2, 0, 3).flatten(2) for row in rows]
    return torch.cat(lines, 1)
