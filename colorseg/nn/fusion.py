"""``fuse`` and ``unfuse``: swap the class of Sequentials, and nothing else."""

import logging
from typing import Any, TypeVar

from torch import nn
from torch.nn.utils import parametrize

from colorseg.nn.blocks import FusedForward, FusedSequential, SkipConv2d
from colorseg.nn.runs import Run, find_run, is_conv

logger = logging.getLogger("colorseg")
Model = TypeVar("Model", bound=nn.Module)
_TWINS: dict[type[nn.Module], type[nn.Module]] = {nn.Sequential: FusedSequential}
_MARK = "_colorseg_fused_class"  # instance attribute: what unfuse() swapped away


def fuse(model: Model, verbose: bool = False) -> Model:
    """Make every run conv[, pool | upsample], bn[, relu] in Sequentials one operator, in place.

    Swaps ``__class__`` of Sequentials (the root included) that have the stock forward: no
    parameter moves,
    no state-dict key changes, hooks and optimizers stay valid.  Undo with :func:`unfuse`.

    Args:
        model: any module; Sequentials are found at any depth.
        verbose: log, on the logger "colorseg", what was fused and why other convolutions were not.

    Returns:
        The same object.
    """
    for name, module in model.named_modules():
        fused = vars(module).get(_MARK) or _fused_class(type(module))
        if fused is None or "forward" in vars(module):
            if verbose and not isinstance(module, FusedForward):
                _report_outside(name, module)
            continue
        if _MARK in vars(module):
            delattr(module, _MARK)
            module.__class__ = fused
        elif _report(name, module, verbose):
            module.__class__ = fused
    return model


def unfuse(model: Model) -> Model:
    """Turn every fused block back to the plain torch module it stands for, in place."""
    for module in model.modules():
        cls = type(module)
        if parametrize.is_parametrized(module):  # its class holds the parametrised properties
            continue
        if cls.forward is SkipConv2d.forward:
            _swap(module, nn.Conv2d)
        elif issubclass(cls, FusedForward) and cls.forward is FusedForward.forward:
            _swap(module, cls.plain_class)
    return model


def _swap(module: nn.Module, plain: type[nn.Module]) -> None:
    if type(module) is not _fused_class(plain):  # then fuse() could not tell what it had been
        setattr(module, _MARK, type(module))
    module.__class__ = plain


def _fused_class(cls: type[nn.Module]) -> type[nn.Module] | None:
    """The fused twin of a class of Sequentials with the stock forward, else None."""
    if cls in _TWINS:
        return _TWINS[cls]
    if not issubclass(cls, nn.Sequential) or issubclass(cls, FusedForward):
        return None
    if cls.forward is not nn.Sequential.forward:
        return None
    members: dict[str, Any] = {
        "plain_class": cls,
        "__reduce_ex__": _reduce,
        "__module__": cls.__module__,
    }
    _TWINS[cls] = type(cls.__name__, (FusedForward, cls), members)
    return _TWINS[cls]


def _reduce(self: FusedForward, protocol: int) -> tuple[Any, ...]:
    # the twin has no importable name: pickle its plain class and fuse that again
    return _restore, (self.plain_class,), self.__getstate__()


def _restore(plain: type[nn.Sequential]) -> nn.Module:
    fused = _fused_class(plain)
    assert fused is not None
    return fused.__new__(fused)


def _report(name: str, sequential: nn.Module, verbose: bool) -> bool:
    """Whether there is a run to fuse; logs runs, and convolutions left alone with the reason."""
    modules = list(sequential.children())
    found = False
    start = 0
    while start < len(modules):
        run = find_run(modules, start) if is_conv(modules[start]) else None
        where = f"{name or 'the model'}[{start}]"
        if isinstance(run, Run):
            found = True
            if verbose:
                logger.info(
                    "fused %s: %s",
                    where,
                    " -> ".join(type(m).__name__ for m in modules[start : start + run.length]),
                )
            start += run.length
            continue
        if run is not None and verbose:
            logger.info("left %s as it is: %s", where, run)
        start += 1
    return found


def _report_outside(name: str, parent: nn.Module) -> None:
    """Log the convolutions directly in ``parent``, which is no Sequential that could be fused."""
    for child_name, child in parent.named_children():
        if is_conv(child):
            where = f"{name}.{child_name}" if name else child_name
            logger.info(
                "left %s as it is: a %s is no Sequential with the stock forward",
                where, type(parent).__name__,
            )  # fmt: skip
