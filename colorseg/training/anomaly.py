"""Where numbers that are not finite come from first."""

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def watched(model: nn.Module) -> Iterator[None]:
    """Inside the block a module whose result has a NaN or an infinity is named by an error.

    Hooks on all modules without children: fused blocks run child by child, which is slower.

    Raises:
        FloatingPointError: when the model runs; the first such module, or its input.
    """
    leaves = [(n, m) for n, m in model.named_modules() if not list(m.children())]
    handles = [module.register_forward_hook(partial(_check, name)) for name, module in leaves]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def check_gradients(model: nn.Module) -> None:
    """Name the first parameter whose gradient is not finite.

    Raises:
        FloatingPointError: there is one.
    """
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not _is_finite(parameter.grad):
            raise FloatingPointError(f"the gradient of {name} is {_first_bad(parameter.grad)}")


def _check(name: str, module: nn.Module, inputs: tuple[Any, ...], result: Any) -> None:
    for x in inputs:
        if isinstance(x, Tensor) and not _is_finite(x):
            raise FloatingPointError(f"the input of {name} ({module}) has {_first_bad(x)}")
    if isinstance(result, Tensor) and not _is_finite(result):
        raise FloatingPointError(
            f"{name} ({module}) makes {_first_bad(result)} of an input that is finite"
        )


def _is_finite(x: Tensor) -> bool:
    return not x.is_floating_point() or bool(torch.isfinite(x).all())


def _first_bad(x: Tensor) -> str:
    bad = ~torch.isfinite(x)
    where = bad.nonzero()[0].tolist()
    return f"{x[bad][0].item()} at {where}, {int(bad.sum())} of {x.numel()} values"
