"""The peers of an operator: PyTorch eager and compiled, in two memory layouts."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from colorseg.benchmark.case import Case, Contestant, Make
from colorseg.benchmark.parity import EXACT

Function = Callable[..., Tensor]
Layout = Callable[[Tensor], Tensor]
Recorder = Callable[[Callable[[], Any]], Callable[[], Any]]


def default_layout(t: Tensor) -> Tensor:
    """A copy with plain strides: (C*H*W, H*W, W, 1) even where C is 1."""
    return t.detach().clone(memory_format=torch.contiguous_format)


def channels_last(t: Tensor) -> Tensor:
    """A copy with the channels innermost in memory, if it has any."""
    layout = torch.channels_last if t.dim() == 4 else torch.contiguous_format
    return t.detach().clone(memory_format=layout)


def double(t: Tensor) -> Tensor:
    """A copy with the same numbers in float64 (integers stay)."""
    return default_layout(t.double() if t.is_floating_point() else t)


LAYOUTS: dict[str, Layout] = {"eager": default_layout, "channels_last": channels_last}
# name: (layout, whether it is compiled)
SETTINGS: dict[str, tuple[Layout, bool]] = {
    **{name: (layout, False) for name, layout in LAYOUTS.items()},
    "compile": (default_layout, True),
    "compile+channels_last": (channels_last, True),
}


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """``function`` by torch.compile at its best: for these shapes alone, no part left to eager."""
    return torch.compile(function, fullgraph=True, dynamic=False, options=options or None)


def bind(
    function: Function, inputs: Sequence[Tensor], gradients: Sequence[int], lay_out: Layout,
    scaled: bool = True,
) -> Callable[[], list[Tensor]]:  # fmt: skip
    """``function`` of its own copies of the inputs, and the gradients of those at ``gradients``.

    The upstream gradient is random; without ``scaled`` it is 1, as in ``loss.backward()``.
    """
    own = [lay_out(t) for t in inputs]
    leaves = [own[i].requires_grad_() for i in gradients]

    @cache  # made by the first call, which is not timed
    def cotangent(shape: torch.Size, device: torch.device) -> Tensor:
        return lay_out(torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(device))

    def call() -> list[Tensor]:
        with torch.set_grad_enabled(bool(leaves)):
            y = function(*own)
        upstream = cotangent(y.shape, y.device) if scaled else None
        return [y, *(torch.autograd.grad(y, leaves, upstream) if leaves else ())]

    return call


def operator_case(
    labels: tuple[str, str, str], ours: Function, reference: Function, inputs: Sequence[Tensor], *,
    gradients: Sequence[int] = (), plain: Function | None = None, compiles: bool = True,
    allowed: float = EXACT, scaled: bool = True, recorded: Recorder | None = None, **work: Any,
) -> Case:  # fmt: skip
    """The case (op, name, direction): all functions take ``inputs`` and give one tensor.

    The peers run ``plain``, or the reference where that is what one writes in PyTorch.
    ``compiles``: a compiler has something to fuse in it, so it is a peer.  Parity is checked with a
    random upstream gradient.  Without ``scaled``, for losses, what is timed has the upstream
    gradient 1, for all contestants: ``loss.backward()``, which is what training does.  ``recorded``
    makes what is timed of each call.
    """
    op, name, direction = labels

    def make(function: Function, layout: Layout, compiling: bool = False) -> Make:
        def contestant() -> Contestant:
            body = compiled(function) if compiling else function
            results = bind(body, inputs, gradients, layout)
            call = results if scaled else bind(body, inputs, gradients, layout, scaled)
            return Contestant(recorded(call) if recorded else call, results)

        return contestant

    settings = {who: s for who, s in SETTINGS.items() if compiles or not s[1]}
    return Case(
        op, name, tuple(inputs[0].shape), "float32", direction,
        ours=make(ours, default_layout),
        peers={who: make(plain or reference, *setting) for who, setting in settings.items()},
        reference=bind(reference, inputs, gradients, double),
        allowed=allowed, **work,
    )  # fmt: skip
