"""What the benchmarks share: eager PyTorch in two memory layouts, and the parity check."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from colorseg.benchmark import Case, ParityError

Function = Callable[..., Tensor]
Layout = Callable[[Tensor], Tensor]

# Errors allowed, see check_parity.  float32 makes 1e-6, a network of PyTorch's 1.4e-5; but where
# rounding decides a ReLU or a nearest color, one value in a million can make 1e-3.
EXACT, TIES = 5e-5, 1e-2


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


def bind(
    function: Function, inputs: Sequence[Tensor], gradients: Sequence[int], lay_out: Layout
) -> Callable[[], list[Tensor]]:
    """``function`` of its own copies of the inputs, and the gradients of those at ``gradients``."""
    own = [lay_out(t) for t in inputs]
    leaves = [own[i].requires_grad_() for i in gradients]

    @cache  # made by the first call, which is not timed
    def cotangent(shape: torch.Size) -> Tensor:
        return lay_out(torch.randn(shape, generator=torch.Generator().manual_seed(1)))

    def call() -> list[Tensor]:
        with torch.set_grad_enabled(bool(leaves)):
            y = function(*own)
        return [y, *(torch.autograd.grad(y, leaves, cotangent(y.shape)) if leaves else ())]

    return call


def check_parity(want: Sequence[Tensor], who: str, got: Sequence[Tensor], allowed: float) -> None:
    """Raise ParityError unless ``got`` is ``want``: a result, and its gradients up to ``allowed``.

    The error is the norm of the difference divided by the norm, so that a few flipped ties pass but
    not one wrong line; the norm of what is 0 but for rounding (the gradient of a bias in front of
    batch norm) is replaced by 1 % of the largest.
    """
    norms = [w.double().norm().item() for w in want]
    for i, (g, w, norm) in enumerate(zip(got, want, norms, strict=True)):
        limit = EXACT if i == 0 < len(want) - 1 else allowed  # a map in front of gradients
        error = (g.double() - w.double()).norm().item() / max(norm, 1e-2 * max(norms))
        if not error <= limit:  # NaN is an error too
            size = "x".join(map(str, w.shape))
            raise ParityError(f"{who}: result {i} ({size}) is {error:.1e} off, limit {limit:.0e}")


def operator_case(
    labels: tuple[str, str, str], ours: Function, reference: Function, inputs: Sequence[Tensor], *,
    gradients: Sequence[int] = (), plain: Function | None = None, allowed: float = EXACT,
    **work: Any,
) -> Case:  # fmt: skip
    """The case (op, name, direction): all functions take ``inputs`` and give one tensor.

    The peers run ``plain``, or the reference where that is what one writes in PyTorch.
    """
    op, name, direction = labels
    mine = bind(ours, inputs, gradients, default_layout)
    peers = {who: bind(plain or reference, inputs, gradients, f) for who, f in LAYOUTS.items()}

    def check() -> None:
        want = bind(reference, inputs, gradients, double)()
        for who, call in {"ours": mine, **peers}.items():
            check_parity(want, f"{op} {name} {direction}, {who}", call(), allowed)

    return Case(op, name, tuple(inputs[0].shape), "float32", direction, mine, peers, check, **work)
