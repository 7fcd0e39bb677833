"""``optimize_for_inference``: a model as it computes in eval mode, as fast as it goes."""

import copy
from collections.abc import Iterator
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from colorseg.models.color import ColorNetwork
from colorseg.models.deeplabv3 import DeepLabV3
from colorseg.nn.folded import FoldedConv2d, fold
from colorseg.nn.forms import Form
from colorseg.nn.functional import why_not_readable
from colorseg.nn.graphed import GraphedNetwork
from colorseg.nn.kernels import HALF
from colorseg.nn.packed import PackedChain, check_dtype, links_of
from colorseg.nn.stage import make_stages
from colorseg.palette import Palette


class OptimizedNetwork(nn.Module):
    """A colorisation network for inference; takes and returns what the network does."""

    palette: Palette | None
    grey: str

    def __init__(self, network: ColorNetwork, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.chain = PackedChain(network.links(), dtype)
        self.frame, self.palette, self.grey = network.frame(), network.palette, network.grey
        self.num_in_channels, self.num_colors = network.num_in_channels, network.num_colors
        super().train(False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_colors, H, W) of an image (N, num_in_channels, H, W), in the dtype
        it was optimised for.
        """
        return self.frame.run(x, self.chain)

    def train(self, mode: bool = True) -> "OptimizedNetwork":
        """Stay in eval mode; there is no other."""
        self.chain.train(mode)
        return self


def optimize_for_inference(model: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A copy of ``model`` for inference: batch norm folded, weights packed, blocks chained.

    The copy computes what the model computes in eval mode, up to rounding, and is independent of
    it from then on.  Threads may share it.  On the CPU,
    ``torch.set_float32_matmul_precision("high")`` or less lets 3x3 kernels of many channels err
    two to four times as much as PyTorch's, for a third less time (Winograd's F(4x4)).  Of a model
    on CUDA, the whole is replayed as one CUDA graph for each shape of its input, the last 8 of
    them; what cannot be recorded runs as it is, and the log says why.

    Args:
        model: a colorisation network, a DeepLabV3, a ``Sequential`` of convolution blocks that
            ends in a convolution, or a model with such parts, or fused ResNet blocks, in it (the
            rest is copied as it is); on CUDA any model of one tensor.
        dtype: torch.float32; on CUDA also torch.bfloat16 and torch.float16; on the CPU, where
            ``colorseg.build_info()["cpu_bfloat16"]`` is true (it has AVX512_BF16), torch.bfloat16,
            with sums in float32.  ``model`` itself is in float32; what is not replaced of the copy
            is converted.

    Returns:
        A module in eval mode, without gradients, that takes the inputs of ``model`` in ``dtype``.

    Raises:
        ValueError: nothing in the model can be optimised, or not in this dtype.
    """
    if any(p.device.type == "cuda" for p in model.parameters()):
        return _graphed(model, dtype)
    check_dtype(dtype)
    if _is_stock(model):
        return OptimizedNetwork(model, dtype)
    optimized = _replaced(copy.deepcopy(model).eval(), dtype)
    if not any(isinstance(module, PackedChain | FoldedConv2d) for module in optimized.modules()):
        raise ValueError(
            f"nothing in this {type(model).__name__} can be optimised: it has no Sequential of "
            "convolution, batch norm and ReLU, and no residual block, on the CPU in float32"
        )
    return optimized.to(dtype) if dtype == torch.bfloat16 else optimized


def _graphed(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    if dtype not in (torch.float32, *HALF):
        raise ValueError(
            f"on CUDA a model computes in float32, bfloat16 or float16, got {dtype}; choose one"
        )
    devices = sorted({str(p.device) for p in model.parameters()})
    if len(devices) > 1:
        raise ValueError(f"the model is on {' and '.join(devices)}; move all of it to one device")
    network = copy.deepcopy(model).eval()
    if dtype in HALF:  # cuDNN fuses what follows a convolution on tensor cores
        for part in [*_foldable(network)]:
            fold(part, dtype)
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    exact = [copy.deepcopy(norm.state_dict()) for norm in norms]
    network.to(dtype)
    for norm, state in zip(norms, exact, strict=True):
        norm.float().load_state_dict(state)  # kernels read them in float32: no cast in each run
    return GraphedNetwork(network)


def _foldable(module: nn.Module) -> Iterator[nn.Module]:
    """The parts whose blocks run one by one, without what is in them."""
    if isinstance(module, DeepLabV3 | Form):
        yield module
        return
    for child in module.children():
        yield from _foldable(child)


def _is_stock(module: nn.Module) -> TypeGuard[ColorNetwork]:
    """Whether it is a network that does nothing but what its blocks do."""
    return (
        isinstance(module, ColorNetwork)
        and type(module).forward is ColorNetwork.forward
        and why_not_readable(module) is None
    )


def _replaced(module: Any, dtype: torch.dtype) -> Any:
    """``module`` with all networks, chains and residual blocks in it replaced, however deep."""
    if isinstance(module, DeepLabV3 | Form):
        fold(module, dtype)  # type: ignore[arg-type]
        make_stages(module)  # type: ignore[arg-type]
        return module
    try:
        if _is_stock(module):
            return OptimizedNetwork(module, dtype)
        if isinstance(module, nn.Sequential):
            return PackedChain(links_of(module), dtype)
    except ValueError:
        pass  # perhaps a part of it can
    for name, child in list(module.named_children()):
        setattr(module, name, _replaced(child, dtype))
    return module
