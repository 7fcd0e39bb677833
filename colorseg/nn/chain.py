"""Runs blocks of a network as one chain, where nobody can tell the difference."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from colorseg.nn.blocks import FusedForward, SkipConv2d, run_block
from colorseg.nn.functional import (
    batch_norm_state,
    conv_options,
    count_batch,
    global_hooks,
    why_not_readable,
)
from colorseg.nn.runs import Run, find_run, is_conv
from colorseg.ops.chain import Layer
from colorseg.ops.chain import run as run_layers

# what own_convolution in csrc/cpu/conv_plan.cpp takes
MAX_CHANNELS, MAX_WEIGHTS, MAX_SPAN = 256, 1 << 20, 64
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
    hook, a replaced child), or where that operator has no kernel.
    """
    layers = read_layers(links) if _eager_float32(x) and _fused(links) else "not fused"
    if not isinstance(layers, str):
        y = run_layers(x, layers)
        for link in links[:-1]:
            for module in link.block.children():
                if isinstance(module, nn.BatchNorm2d):
                    count_batch(module)
        return y
    results = [x]
    for block, main, skip in links:
        results.append(run_block(block, results[main], results[skip] if skip >= 0 else None))
    return results[-1]


def _eager_float32(x: Tensor) -> bool:
    return (
        type(x) is Tensor
        and x.dtype == torch.float32
        and x.device.type == "cpu"
        and x.is_contiguous()
        and x.numel() > 0
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch._C._are_functorch_transforms_active()
        and not torch._C._is_any_autocast_enabled()
        and torch._C._len_torch_function_stack() == 0
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
        if not _has_kernel(layer, layers):
            weight = layer.parameters[0]
            assert weight is not None
            conv = link.block if is_conv(link.block) else next(link.block.children())
            return f"there is no kernel for {conv} with {weight.dtype} weights in its place"
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
            (None, None),
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


def _has_kernel(layer: Layer, before: Sequence[Layer]) -> bool:
    """Whether the library's own convolution takes it, on what the layers ``before`` hand over."""
    conv, weight = layer.conv, layer.parameters[0]
    assert weight is not None
    upsampled = [before[i - 1].resample == "upsample2" if i > 0 else False for i in layer[:2]]
    plain = conv.stride == [1, 1] and not conv.transposed and layer.skip < 0
    return (
        weight.dtype == torch.float32
        and weight.device.type == "cpu"
        and conv.groups == 1
        and conv.stride[0] == conv.stride[1] <= 2
        and max(weight.shape[:2]) <= MAX_CHANNELS
        and weight.numel() <= MAX_WEIGHTS
        and max(k * d for k, d in zip(weight.shape[2:], conv.dilation, strict=True)) <= MAX_SPAN
        and layer.main != layer.skip
        and not upsampled[1]
        and (plain or not upsampled[0])
    )
