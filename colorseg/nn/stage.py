"""Residual blocks behind one another, for inference."""

from torch import Tensor, nn

from colorseg.nn.blocks import FusedSequential
from colorseg.nn.folded import FoldedConv2d
from colorseg.nn.forms import BasicBlock, Bottleneck
from colorseg.nn.functional import one_by_one, why_not_readable

_KEEP_NOTHING = {FoldedConv2d, nn.Identity, nn.ReLU, nn.Sequential, FusedSequential}


class Stage(nn.Sequential):
    """A Sequential of folded blocks that write their results over what they add.

    A map that a block adds to its result is not read again, unless it came from outside or a hook
    has seen it: then, and where a block runs itself, the result is a new map.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Result of a map (N, C, H, W)."""
        unseen = False
        for block in self:
            if isinstance(block, BasicBlock | Bottleneck) and not _is_watched(block, x):
                x, unseen = block.forward(x, unseen), True
            else:
                x, unseen = block(x), False
        return x


def _is_watched(block: nn.Module, x: Tensor) -> bool:
    """Whether anything but the block may have kept a map of it: a hook, or a module of a user's."""
    return one_by_one(x) or any(
        why_not_readable(module) or (module is not block and type(module) not in _KEEP_NOTHING)
        for module in block.modules()
    )


def make_stages(model: nn.Module) -> None:
    """Turn the Sequentials of residual blocks in ``model`` into stages, in place."""
    for module in model.modules():
        stock = type(module) is nn.Sequential and why_not_readable(module) is None
        if stock and all(isinstance(block, BasicBlock | Bottleneck) for block in module.children()):
            module.__class__ = Stage
