"""What every operator registers alike: layout rule, autocast, the refusal of second derivatives."""

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd import forward_ad

_autocast_library = torch.library.Library("colorseg", "IMPL")


def check_device(op: str, x: Tensor | None) -> None:
    """Raise if ``op`` has no kernel for the device of ``x``, or ``x`` carries a tangent."""
    assert x is not None
    if x.device.type not in ("cpu", "meta"):
        raise RuntimeError(
            f"{op} has no kernel for {x.device.type} tensors in this build of colorseg; "
            "move them to the CPU, or run the model in plain torch: colorseg.unfuse(model)"
        )
    # forward mode would drop the tangent without a word
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(x).tangent is not None:
        raise RuntimeError(
            f"{op} has no forward-mode derivative; "
            f"use reverse mode, colorseg.reference.{op}, or colorseg.unfuse(model)"
        )


def needs_grad(*tensors: Tensor | None) -> bool:
    """Whether autograd will ask for a gradient of any of the tensors."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def memory_format(x: Tensor) -> torch.memory_format:
    """The layout of outputs: channels_last iff ``x`` is dense in that order alone."""
    if (
        x.dim() == 4
        and not x.is_contiguous()
        and x.is_contiguous(memory_format=torch.channels_last)
    ):
        return torch.channels_last
    return torch.contiguous_format


def empty(like: Tensor, size: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    """A tensor of ``size`` in the layout that ``like`` decides, for fake kernels."""
    layout = memory_format(like) if len(size) == 4 else torch.contiguous_format
    return torch.empty(size, dtype=dtype or like.dtype, device=like.device, memory_format=layout)


def defined(grad: Tensor) -> Tensor | None:
    """None for the empty tensor that stands for a gradient nobody asked for."""
    return None if grad.dim() == 1 and grad.numel() == 0 else grad


def register_autograd(
    name: str, backward: Callable[..., Any], setup_context: Callable[..., None]
) -> Callable[..., Any]:
    """Register the derivative of ``colorseg::name`` and return how to call the operator.

    The result takes the operator's arguments and ``grad``, whether autograd will want a gradient.
    In eager mode it is an ``autograd.Function`` around the kernel, or the kernel alone: what
    ``torch.library`` makes of a registered derivative costs 100 us a call, a network's whole
    forward at batch 1.  Tracing, functorch and autocast get the operator itself.
    """
    op = getattr(torch.ops.colorseg, name).default
    torch.library.register_autograd(f"colorseg::{name}", backward, setup_context=setup_context)

    def forward(ctx: Any, *args: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            output = op(*args)
        setup_context(ctx, args, output)
        return output

    members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    eager = type(name, (torch.autograd.Function,), members)

    def call(*args: Any, grad: bool) -> Any:
        if (
            torch.compiler.is_compiling()
            or torch._C._are_functorch_transforms_active()
            or torch._C._is_any_autocast_enabled()
        ):
            return op(*args)
        if grad:
            return eager.apply(*args)  # type: ignore[attr-defined]
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args)

    _refuse_second_derivative(f"{name}_backward", name)
    return call


def _refuse_second_derivative(name: str, forward: str) -> None:
    """Make differentiating the backward operator an error instead of a silent zero."""

    def backward(ctx: Any, *grads: Tensor | None) -> NoReturn:
        raise RuntimeError(
            f"colorseg.ops.{forward} has no second derivative; for gradients of gradients use "
            f"colorseg.reference.{forward}, or colorseg.unfuse(model)"
        )

    torch.library.register_autograd(f"colorseg::{name}", backward)


def register_autocast(name: str, cast: Sequence[int]) -> None:
    """Autocast the arguments at the positions ``cast``; batch-norm tensors are left in float32.

    CPU training and dtypes without CPU kernels compute in float32.
    """
    op = getattr(torch.ops.colorseg, name).default

    def implement(device: str, key: str) -> None:
        keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

        def kernel(*args: Any) -> Any:
            dtype = torch.get_autocast_dtype(device)
            tensors = [args[i] for i in cast]
            if device == "cpu" and (needs_grad(*tensors) or dtype != torch.bfloat16):
                dtype = torch.float32
            with torch._C._ExcludeDispatchKeyGuard(keys):
                return op(*(_cast(a, dtype) if i in cast else a for i, a in enumerate(args)))

        _autocast_library.impl(name, kernel, key)

    implement("cpu", "AutocastCPU")
    implement("cuda", "AutocastCUDA")


def _cast(value: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    if value is None or value.dtype == torch.float64:  # as torch's own autocast
        return value
    return value.to(dtype)


def computed_in_float32(call: Callable[..., Any], *tensors: Tensor | None) -> Any:
    """``call(*tensors)`` with half tensors widened, the result back in the dtype of the first."""
    y = call(*(None if t is None else t.float() for t in tensors))
    assert tensors[0] is not None
    return y.to(tensors[0].dtype)
