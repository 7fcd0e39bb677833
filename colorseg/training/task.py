"""What the training loop asks of a set of pictures and of what is to be learned from it."""

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Task(Protocol):
    """Pictures of one set, the loss on them, and how to measure and show what was learned."""

    row: Any  # the kind of rows that the history has
    name: str  # of the set, for reports
    smallest_batch: int  # a last batch with fewer pictures is left out
    device: torch.device  # where the loss is computed
    why_no_graph: str | None  # why steps on it cannot be recorded as a CUDA graph, if they cannot
    over_ranks: bool  # whether `loss` knows of the pictures of other ranks

    def __len__(self) -> int:
        """Number of pictures."""

    def sha256(self) -> str:
        """Hash of all pictures."""

    def prepare(self, model: nn.Module) -> None:
        """Called once, before the first step, with the model as it is going to be trained.

        Raises:
            ValueError: its results are not what the set needs.
        """

    def loss(self, model: nn.Module, index: Tensor) -> Tensor:
        """The loss to be lowered, on the pictures of that index.

        With ``over_ranks`` the mean over the ranks is the loss, and the gradient, of all their
        pictures; otherwise ``loss`` is a mean over these ones.
        """

    def measure(self, model: nn.Module, batch_size: int) -> dict[str, float]:
        """Figures of all pictures, in eval mode and without gradients.

        Those that the row has with ``val_`` in front are kept.
        """

    def pictures(self, model: nn.Module, index: Tensor) -> list[Tensor]:
        """Input, truth and prediction, each uint8 ``(n, 3, H, W)``."""

    def save(self, model: nn.Module, path: Path) -> None:
        """Write the weights, and what is needed to use them."""


def require_channels(logits: Tensor, count: int, needed: str) -> None:
    """Raise a ``ValueError`` that says what is ``needed`` unless there are so many channels."""
    if logits.dim() != 4 or logits.shape[1] != count:
        raise ValueError(f"the network gives results of shape {tuple(logits.shape)}, but {needed}")


def usable_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        ValueError: it is not there.
    """
    try:
        return torch.empty(0, device=name).device
    except (AssertionError, RuntimeError) as error:  # AssertionError: torch without CUDA
        reason = str(error).split("\n")[0].rstrip(".")
        raise ValueError(f"device {name} cannot be used: {reason}; use --device cpu") from None
