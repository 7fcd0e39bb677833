"""How an operator is compared with its float64 reference, forward and backward, in any layout."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from conftest import assert_close
from torch import Tensor

LAYOUTS = ("contiguous", "channels_last", "sliced", "expanded")
DTYPES = (torch.float32, torch.float64)


def lay_out(x: Tensor, layout: str) -> Tensor:
    """The 4-D tensor ``x`` with other strides; "expanded" repeats its first image."""
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "sliced":
        wide = torch.empty(*x.shape[:3], 2 * x.shape[3] + 1, dtype=x.dtype)
        view = wide[..., 1::2]
        return view.copy_(x)
    if layout == "expanded" and x.shape[0] > 0:
        return x[:1].expand_as(x)
    return x.contiguous()


def leaf(x: Tensor | None) -> Tensor | None:
    """``x`` as an autograd leaf with the same strides."""
    return x if x is None else x.detach().requires_grad_(x.is_floating_point())


def double(x: Tensor | None) -> Tensor | None:
    """The same numbers in float64 (integers stay), as an autograd leaf."""
    if x is None or not x.is_floating_point():
        return x
    return x.detach().double().requires_grad_()


def gradients(y: Tensor, inputs: Sequence[Tensor | None], cotangent: Tensor) -> list[Tensor]:
    """Gradients of every input that requires one."""
    return list(
        torch.autograd.grad(y, [t for t in inputs if t is not None and t.requires_grad], cotangent)
    )


def check_parity(
    op: Callable[..., Tensor],
    reference: Callable[..., Tensor],
    inputs: Sequence[Tensor | None],
    **options: Any,
) -> Tensor:
    """Compare result and gradients of ``op`` with ``reference`` in float64; return the result.

    On a GPU the gradients may be as far off as those of ``reference`` are in the dtype of the
    inputs: cuDNN has fast algorithms for some shapes that are.
    """
    ours, exact = [leaf(t) for t in inputs], [double(t) for t in inputs]
    y, want = op(*ours, **options), reference(*exact, **options)
    assert_close(y, want)
    assert y.dtype == ours[0].dtype
    cotangent = torch.randn_like(want)
    got = gradients(y, ours, cotangent.to(y.dtype))
    wanted = gradients(want, exact, cotangent)
    rough = wanted
    if y.device.type == "cuda":
        leaves = [leaf(t) for t in inputs]
        rough = gradients(reference(*leaves, **options), leaves, cotangent.to(y.dtype))
    needed = [t for t in ours if t is not None and t.requires_grad]
    for g, t, ref, torchs in zip(got, needed, wanted, rough, strict=True):
        assert g.dtype == t.dtype
        if torchs is ref or not (g - ref).norm() <= 1.01 * (torchs - ref).norm():
            assert_close(g, ref)
    return y.detach()
