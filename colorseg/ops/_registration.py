"""What every operator registers alike: layout rule, derivative, the refusal of a second one."""

from collections.abc import Callable, Sequence
from functools import cache, wraps
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._pytree import tree_leaves

from colorseg._extension import load

# a lookup that torch.compile can trace
_WITH_KERNELS = ("cpu", "meta", "cuda") if load().cuda_built else ("cpu", "meta")
_AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU) | torch._C.DispatchKeySet(
    torch._C.DispatchKey.AutocastCUDA
)


def check_usable(op: str, *tensors: Tensor | None) -> None:
    """Raise if ``op`` has no kernel for the device of the first tensor, or one has a tangent."""
    assert tensors[0] is not None
    try:  # costs nothing where it is a tensor
        device = tensors[0].device.type
    except AttributeError:
        raise no_tensor(f"{op} takes tensors", tensors[0]) from None
    if device not in _WITH_KERNELS and not _has_kernel(op, device):
        build = (
            " (colorseg was built without CUDA: with a CUDA build of torch and nvcc, reinstall it)"
            if device == "cuda" and not load().cuda_built
            else ""
        )
        raise RuntimeError(
            f"{op} has no kernel for {device} tensors in this build of colorseg{build}; move them "
            f"to the CPU, or use plain torch: colorseg.reference.{op}, and "
            "colorseg.unfuse(model) for a whole model"
        )
    if forward_ad._current_level < 0:
        return
    for t in tensors:  # forward mode would drop the tangent without a word
        if t is not None and forward_ad.unpack_dual(t).tangent is not None:
            raise RuntimeError(
                f"{op} has no forward-mode derivative; use reverse mode or plain torch: "
                f"colorseg.reference.{op}, and colorseg.unfuse(model) for a whole model"
            )


def no_tensor(rule: str, *values: Any) -> TypeError:
    """The error of the first of the values that is neither a tensor nor None."""
    value = next(v for v in values if v is not None and not isinstance(v, Tensor))
    advice = "pass a tensor"
    if isinstance(value, dict) and "out" in value:
        advice = "pass model(x)['out']"
    elif hasattr(value, "__array__"):
        advice = "convert it by torch.as_tensor"
    return TypeError(f"{rule}, got {type(value).__name__}: {advice}")


@cache
def _has_kernel(op: str, device: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"colorseg::{op}", device.upper())


def check_constant(name: str, tensor: Tensor | None) -> None:
    """Raise if it is no tensor, or one of which a gradient is expected that is not made."""
    if tensor is None:
        return
    if not isinstance(tensor, Tensor):
        raise no_tensor(f"{name} must be a tensor", tensor)
    if tensor.requires_grad:
        raise ValueError(f"{name} is not differentiated here; pass {name}.detach()")


def needs_grad(*tensors: Tensor | None) -> bool:
    """Whether autograd will ask for a gradient of any of the tensors."""
    try:
        return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    except AttributeError:
        raise no_tensor("a convolution takes tensors", *tensors) from None


def traced() -> bool:
    """Whether operators are recorded or transformed instead of run."""
    return (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch.jit.is_tracing()
    )


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


def register_fake(name: str) -> Callable[..., Any]:
    """Decorate what the results of ``colorseg::name`` look like; its tensors must be on one device.

    Where one is on meta alone, torch would call this with the others as they are.
    """

    def decorate(fake: Callable[..., Any]) -> Callable[..., Any]:
        @torch.library.register_fake(f"colorseg::{name}")
        def checked(*args: Any) -> Any:
            devices = {str(t.device): None for t in tree_leaves(args) if isinstance(t, Tensor)}
            torch._check(
                len(devices) <= 1,
                lambda: f"all tensors of {name} must be on one device, got {' and '.join(devices)}",
            )
            return fake(*args)

        return fake

    return decorate


def defined(grad: Tensor) -> Tensor | None:
    """None for the empty tensor that stands for a gradient nobody asked for."""
    return None if grad.dim() == 1 and grad.numel() == 0 else grad


def register_autograd(
    name: str, backward: Callable[..., Any], setup_context: Callable[..., None]
) -> Callable[..., Any]:
    """Register the derivative of ``colorseg::name`` and return how to call the operator.

    The result takes the operator's arguments, ``grad``, whether autograd will want a gradient, and
    ``then``, which gets the outputs before any tensor is saved: saving the last one that it needs
    ends the second run of ``torch.utils.checkpoint``.  ``ctx.eager``: the function that ``call`` is
    part of alone sees the outputs, so that its backward pass may change them.
    In eager mode it is an ``autograd.Function`` around the kernel, or the kernel alone: what
    ``torch.library`` makes of a registered derivative costs 100 us a call, a network's whole
    forward at batch 1.  Tracing, functorch and autocast get the operator itself.
    """
    op = getattr(torch.ops.colorseg, name).default
    backward = without_autocast(backward)

    def set_up(ctx: Any, inputs: Any, output: Any, eager: bool = False) -> None:
        ctx.eager = eager
        setup_context(ctx, inputs, output)

    torch.library.register_autograd(f"colorseg::{name}", backward, setup_context=set_up)

    def forward(ctx: Any, *args_then: Any) -> Any:
        *args, then = args_then
        with torch._C._AutoDispatchBelowAutograd():
            output = op(*args)
        if then is not None:
            then(output)
        set_up(ctx, args, output, eager=True)
        return output

    members = {
        "forward": staticmethod(forward),
        "backward": staticmethod(lambda *args: (*backward(*args), None)),
    }
    eager = type(name, (torch.autograd.Function,), members)

    def call(*args: Any, grad: bool, then: Callable[[Any], None] | None = None) -> Any:
        dispatched = traced() or torch._C._is_any_autocast_enabled()
        if grad and torch._C._are_functorch_transforms_active():
            raise RuntimeError(
                f"{name} has no gradient inside torch.func's transforms; use "
                f"colorseg.reference.{name} there, or a module of colorseg.nn, which does"
            )
        if grad and not dispatched:
            return eager.apply(*args, then)  # type: ignore[attr-defined]
        if dispatched:
            output = op(*args)
        else:
            with torch._C._AutoDispatchBelowAutograd():
                output = op(*args)
        if then is not None:
            then(output)
        return output

    _register_refusal(f"{name}_backward", name)
    return call


def without_autocast(backward: Callable[..., Any]) -> Callable[..., Any]:
    """``backward`` as outside of autocast, which would cast what its kernels ask torch for."""

    @wraps(backward)
    def guarded(*args: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):
            return backward(*args)

    return guarded


def one_at_a_time(grad_loss: Tensor) -> bool:
    """Whether a backward pass has one gradient, and not a batch of them (``is_grads_batched``)."""
    return not torch._C._functorch.is_legacy_batchedtensor(grad_loss)


def refuse_second_derivative(what: str, instead: str) -> None:
    """Raise in a backward pass that is to be differentiated itself."""
    if torch.is_grad_enabled():
        raise _no_second_derivative(what, instead)


def _register_refusal(name: str, forward: str) -> None:
    """Make differentiating the backward operator an error instead of a silent zero."""

    def backward(ctx: Any, *grads: Tensor | None) -> NoReturn:
        raise _no_second_derivative(
            f"colorseg.ops.{forward}",
            f"colorseg.reference.{forward}, and colorseg.unfuse(model) for a whole model",
        )

    torch.library.register_autograd(f"colorseg::{name}", backward)


def _no_second_derivative(what: str, instead: str) -> RuntimeError:
    return RuntimeError(
        f"{what} has no second derivative; for gradients of gradients use {instead}"
    )


def is_half(value: Any) -> bool:
    """Whether it is a tensor of bfloat16 or float16."""
    return isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)


def widened(t: Any) -> Any:
    """A half tensor on the CPU in float32; others, which kernels can read, and None as they are."""
    return t.float() if is_half(t) and t.device.type == "cpu" else t


def arithmetic_dtype(t: Tensor) -> torch.dtype:
    """What the losses of logits ``t`` are computed and returned in."""
    return torch.float32 if is_half(t) else t.dtype
