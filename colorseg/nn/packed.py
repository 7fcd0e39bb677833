"""Blocks for inference: batch norm folded, weights packed once, all in one operator call."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from colorseg._extension import build_info
from colorseg.nn.chain import STOCK_FORWARDS, Link, read_layers
from colorseg.nn.functional import why_not_readable
from colorseg.nn.inference import InferenceModule, refuse_gradient
from colorseg.nn.kernels import without_cpu_kernel
from colorseg.nn.runs import Run, find_run, is_conv
from colorseg.ops.chain import Layer

MAX_LAYERS = 64  # of a packed chain


class PackedChain(InferenceModule):
    """A chain of blocks as it computes in eval mode, with a copy of its weights.

    Later changes of the blocks change nothing here.  May be called by several threads at once.

    Args:
        links: the blocks, see :class:`colorseg.nn.chain.Link`; float32, on the CPU.
        dtype: of images and results, torch.float32 or torch.bfloat16.

    Shape:
        (N, C, H, W) in ``dtype``, on the CPU -> what the last block makes of it.

    Raises:
        ValueError: a block has no kernel, or the dtype; it says which one and why.
    """

    packed: Tensor  # weights in the order the kernels of `isa` read them
    layers: Tensor

    def __init__(self, links: Sequence[Link], dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        check_dtype(dtype)
        layers = read_layers(links) if links else "there is no block"
        if not isinstance(layers, str) and (index := without_cpu_kernel(layers)) is not None:
            layers = _no_kernel(links[index].block, layers[index])
        if len(layers) > MAX_LAYERS and not isinstance(layers, str):
            layers = f"a chain has at most {MAX_LAYERS} blocks, not {len(layers)}"
        if isinstance(layers, str):
            raise ValueError(f"{layers}; run the model as it is, under torch.inference_mode()")
        numbers, parameters = [], []
        for layer in layers:
            if layer.batch_norm and layer.running[0] is None:
                raise ValueError("a batch norm without running statistics cannot be folded")
            weight = layer.parameters[0]
            assert weight is not None
            numbers += [*layer.numbers(), *weight.shape]
            none = weight.new_empty(0)
            tensors = (*layer.parameters, *layer.running[:2])
            parameters += [none if t is None else t.detach() for t in tensors]
        eps, bfloat16 = [layer.eps for layer in layers], dtype == torch.bfloat16
        packed = torch.ops.colorseg.pack_chain(parameters, numbers, eps, bfloat16)
        self.dtype, self.isa = dtype, _instruction_set(dtype)
        self.register_buffer("packed", packed, persistent=False)
        self.register_buffer("layers", torch.tensor(numbers), persistent=False)

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> "PackedChain":
        if fn(torch.empty(0, dtype=self.dtype)).dtype != self.dtype:
            raise RuntimeError(
                f"this model was optimised for {self.dtype}, which it keeps; optimise the model it "
                "was made from for another one: optimize_for_inference(model, dtype)"
            )
        super()._apply(fn, *args, **kwargs)
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take what was pickled, unless kernels of another width packed its weights."""
        isa = _instruction_set(state["dtype"])
        if state["isa"] != isa:
            raise RuntimeError(
                f"this model was optimised for {state['isa']} and {isa} runs here; save the model "
                "it was made from, and optimise that where it is to run"
            )
        super().__setstate__(state)

    def forward(self, x: Tensor) -> Tensor:
        """The result of the last block."""
        refuse_gradient(x)
        # Module.__getattr__ would take a microsecond, of some fifty for a small image
        packed, layers = self._buffers["packed"], self._buffers["layers"]
        return torch.ops.colorseg.packed_chain.default(x, packed, layers)


def _no_kernel(block: nn.Module, layer: Layer) -> str:
    conv, weight = block if is_conv(block) else next(block.children()), layer.parameters[0]
    assert weight is not None
    return f"there is no kernel for {conv} with {weight.dtype} weights in its place"


def check_dtype(dtype: torch.dtype) -> None:
    """Raise ValueError if there are no kernels for it on this machine."""
    if dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(
            f"there are kernels for float32 and bfloat16 only, got {dtype}; choose one of them"
        )
    info = build_info()
    if dtype == torch.bfloat16 and not info["cpu_bfloat16"]:
        raise ValueError(
            f"bfloat16 needs the AVX512_BF16 instructions, but {info['cpu_isa']} runs here without "
            "them; leave dtype out for float32, or run the model under torch.autocast"
        )


def _instruction_set(dtype: torch.dtype) -> str:
    """Whose kernels read packed weights."""
    info = build_info()
    paired = dtype == torch.bfloat16 and info["cpu_bfloat16"]
    return f"{info['cpu_isa']}_bf16" if paired else str(info["cpu_isa"])


def links_of(sequential: nn.Sequential) -> list[Link]:
    """The blocks of a Sequential, one behind the other: its Sequentials, runs and convolutions.

    ValueError if it does more than to call them.
    """
    reason = why_not_readable(sequential)
    if type(sequential).forward not in STOCK_FORWARDS:
        reason = "it has a forward of its own"
    if reason is not None:
        raise ValueError(f"{type(sequential).__name__} cannot be read: {reason}")
    modules, blocks = list(sequential._modules.values()), []  # children() drops repeated ones
    start = 0
    while start < len(modules):
        run = find_run(modules, start) if is_conv(modules[start]) else None
        length = run.length if isinstance(run, Run) else 1
        run_modules = modules[start : start + length]
        blocks.append(nn.Sequential(*run_modules) if length > 1 else modules[start])
        start += length
    return [Link(block, i) for i, block in enumerate(blocks)]
