"""Telling models that ``optimize_for_inference`` made from those they were made from."""

from torch import nn

from colorseg.nn.folded import FoldedConv2d
from colorseg.nn.graphed import GraphedNetwork
from colorseg.nn.packed import PackedChain


def require_original(model: nn.Module, verb: str) -> None:
    """ValueError for a model optimised for inference, or one with such a part."""
    if any(isinstance(m, PackedChain | FoldedConv2d | GraphedNetwork) for m in model.modules()):
        raise ValueError(
            f"cannot {verb} a model optimised for inference, whose weights are prepared for this "
            f"machine; {verb} the model it was made from"
        )
