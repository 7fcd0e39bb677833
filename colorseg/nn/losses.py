"""The loss operators as modules."""

from typing import Any

import torch
from torch import Tensor, nn

from colorseg import ops, reference
from colorseg.nn.functional import one_by_one


def _functions(logits: Tensor) -> Any:
    """The operators, or plain torch where transforms take it apart."""
    return reference if one_by_one(logits) else ops


class SoftIoULoss(nn.Module):
    """:func:`colorseg.ops.soft_iou_loss` with its options fixed.

    Args:
        **options: the keyword arguments of the operator (classes, per, smooth, ignore_index,
            weight, ...); a weight becomes a buffer and moves with the module.
    """

    weight: Tensor | None

    def __init__(self, *, weight: Tensor | None = None, **options: Any) -> None:
        super().__init__()
        self.register_buffer("weight", weight, persistent=False)
        self.options = options

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Loss of logits (N, C, H, W) against labels (N, H, W)."""
        functions = _functions(logits)
        return functions.soft_iou_loss(logits, target, weight=self.weight, **self.options)

    def extra_repr(self) -> str:
        """The options, in the printed module."""
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())


class ColorCrossEntropyLoss(nn.Module):
    """:func:`colorseg.ops.color_cross_entropy` with its palette and options fixed.

    Args:
        palette: (K, 3) tensor, a :class:`colorseg.palette.Palette`, or None for ready labels only.
        weight: (K,) or None; palette and weight become buffers and move with the module.
        **options: the other keyword arguments of the operator.
    """

    palette: Tensor | None
    weight: Tensor | None

    def __init__(
        self, palette: Any = None, *, weight: Tensor | None = None, **options: Any
    ) -> None:
        super().__init__()
        colors = getattr(palette, "colors", palette)
        self.register_buffer(
            "palette", colors if colors is None else torch.as_tensor(colors), persistent=False
        )
        self.register_buffer("weight", weight, persistent=False)
        self.options = options

    def forward(self, logits: Tensor, target: Tensor) -> Any:
        """Loss of logits (N, K, H, W) against labels (N, H, W) or RGB (N, 3, H, W)."""
        return _functions(logits).color_cross_entropy(
            logits, target, self.palette, weight=self.weight, **self.options
        )

    def extra_repr(self) -> str:
        """The options, in the printed module."""
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())
