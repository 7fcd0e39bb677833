"""Runs blocks of a network as one chain, where nobody can tell the difference."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from colorseg.nn.blocks import FusedForward, SkipConv2d, run_block
from colorseg.nn.functional import (
    batch_norm_state,
    conv_options,
    global_hooks,
    why_not_readable,
)
from colorseg.nn.kernels import map_dtype, without_kernel
from colorseg.nn.runs import Run, find_run, is_conv
from colorseg.ops.chain import Layer
from colorseg.ops.chain import run as run_layers

STOCK_FORWARDS = (nn.Sequential.forward, FusedForward.forward)  # others may do anything


class Link(NamedTuple):
    """A block and what it reads: 0 is the chain's input, i + 1 the result of link i."""

    block: nn.Module
    main: int
    skip: int = -1


def run_chain(x: Tensor, links: Sequence[Link]) -> Tensor:
    """The result of the last link for ``x``, (N, C, H, W).

    Blocks hand each other the map in front of batch norm with what is still to be done to it, in
    one operator for all.  They run one by one where somebody could see what lies between them (a
    hook, a replaced child), or where that operator has no kernel.  On CUDA its result is
    channels_last, also for an image of one channel, which is of both layouts.
    """
    dtype = map_dtype(x)
    if dtype is not None and _eager(x) and _fused(links):
        layers, maps = read_layers(links), x.to(dtype)
        if not isinstance(layers, str) and without_kernel(maps, layers) is None:
            y = run_layers(maps, layers)
            last = x.is_contiguous(memory_format=torch.channels_last)
            return y if last else y.contiguous()
    results = [x]
    for block, main, skip in links:
        results.append(run_block(block, results[main], results[skip] if skip >= 0 else None))
    return results[-1]


def _eager(x: Tensor) -> bool:
    """Whether nothing looks at the operators or changes them on the way."""
    return (
        type(x) is Tensor
        and x.numel() > 0
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch._C._are_functorch_transforms_active()
        and all(isinstance(mode, DeviceContext) for mode in _get_current_function_mode_stack())
        and torch._C._len_torch_dispatch_stack() == 0
        and forward_ad._current_level < 0
        and not global_hooks()
    )


def _fused(links: Sequence[Link]) -> bool:
    """Whether all are this library's own blocks, and the last one its convolution."""
    *blocks, last = (link.block for link in links)
    return type(last) is SkipConv2d and all(isinstance(b, FusedForward) for b in blocks)


def read_layers(links: Sequence[Link]) -> list[Layer] | str:
    """What the operators need to know of each link, or why one of them has to run by itself."""
    layers: list[Layer] = []
    for link in links:
        layer = _layer(link)
        if isinstance(layer, str):
            return layer
        layers.append(layer)
    return layers


def _layer(link: Link) -> Layer | str:
    block: Any = link.block
    reason = why_not_readable(block)
    if reason is not None:
        return f"{type(block).__name__} cannot be read: {reason}"
    if isinstance(block, nn.Conv2d):
        if type(block) not in (nn.Conv2d, SkipConv2d) or block.padding_mode != "zeros":
            return f"{block} is not a plain convolution"
        tensors = (block.weight, block.bias, None, None)
        return Layer(
            link.main, link.skip, conv_options(block), None, False, False, False, 0.0, 0.0, tensors,
            (None, None, None),
        )  # fmt: skip
    modules = list(block._modules.values())
    if not isinstance(block, nn.Sequential) or not modules or not is_conv(modules[0]):
        return f"{type(block).__name__} is not a Sequential that starts with a convolution"
    if type(block).forward not in STOCK_FORWARDS:
        return f"{type(block).__name__} has a forward of its own"
    run = find_run(modules, 0)
    if not isinstance(run, Run):
        return f"{modules[0]} cannot be joined with what follows: {run}"
    if run.length != len(modules):
        return f"{modules[run.length]} follows a block"
    conv: Any = run.conv
    bn: Any = run.bn
    weights, norm = conv._parameters, bn._parameters
    running, batch_statistics, momentum = batch_norm_state(bn)
    tensors = (weights["weight"], weights["bias"], norm["weight"], norm["bias"])
    return Layer(
        link.main, link.skip, conv_options(conv), run.resample, True, run.relu, batch_statistics,
        bn.eps, momentum, tensors, running,
    )  # fmt: skip
