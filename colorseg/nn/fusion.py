"""``fuse`` and ``unfuse``: swap the class of modules, and nothing else."""

import logging
from typing import TypeVar

from torch import nn
from torch.nn.utils import parametrize

from colorseg.nn.blocks import FusedForward, FusedSequential, SkipConv2d
from colorseg.nn.forms import Form, form_class
from colorseg.nn.runs import Run, find_run, is_conv
from colorseg.nn.twins import twin

logger = logging.getLogger("colorseg")
Model = TypeVar("Model", bound=nn.Module)
_MARK = "_colorseg_fused_class"  # instance attribute: what unfuse() swapped away


def fuse(model: Model, verbose: bool = False) -> Model:
    """Make every run conv[, pool | upsample], bn[, relu] one operator, in place.

    Swaps ``__class__`` of modules (the root included): no parameter moves, no state-dict key
    changes, hooks and optimizers stay valid.  Undo with :func:`unfuse`.  Runs are found in
    Sequentials with the stock forward, and in the residual blocks, the stem and the image pooling
    of ResNet and DeepLabV3 as torchvision writes them: such a module is recognised by its children
    and by tracing its forward, which runs once without them.

    Args:
        model: any module; the parts are found at any depth.
        verbose: log, on the logger "colorseg", what was fused, why other convolutions were not, and
            in the last line how many blocks are fused now.

    Returns:
        The same object.
    """
    count = 0
    for name, module in model.named_modules():
        fused = vars(module).get(_MARK) or _fused_class(type(module))
        if fused is None and "forward" not in vars(module):
            fused = form_class(module)
        if fused is None or "forward" in vars(module):
            if issubclass(type(module), FusedForward | Form):
                count += _report(name, module, False)
            elif verbose:
                _report_outside(name, module)
            continue
        blocks = _report(name, module, verbose)
        count += blocks
        if _MARK in vars(module):
            delattr(module, _MARK)
            module.__class__ = fused
        elif issubclass(fused, Form):
            if verbose:
                logger.info("fused %s: a %s", name or "the model", fused.__name__)
            module.__class__ = fused
        elif blocks:
            module.__class__ = fused
    if verbose:
        logger.info("blocks fused: %d", count)
    return model


def unfuse(model: Model) -> Model:
    """Turn every fused block back to the plain torch module it stands for, in place."""
    for module in model.modules():
        cls = type(module)
        if parametrize.is_parametrized(module):  # its class holds the parametrised properties
            continue
        if cls.forward is SkipConv2d.forward:
            _swap(module, nn.Conv2d)
        elif issubclass(cls, Form):
            module.__class__ = cls.plain_class
        elif issubclass(cls, FusedForward) and cls.forward is FusedForward.forward:
            _swap(module, cls.plain_class)
    return model


def _swap(module: nn.Module, plain: type[nn.Module]) -> None:
    if type(module) is not _fused_class(plain):  # then fuse() could not tell what it had been
        setattr(module, _MARK, type(module))
    module.__class__ = plain


def _fused_class(cls: type[nn.Module]) -> type[nn.Module] | None:
    """The fused twin of a class of Sequentials with the stock forward, else None."""
    if cls is nn.Sequential:
        return FusedSequential
    if not issubclass(cls, nn.Sequential) or issubclass(cls, FusedForward):
        return None
    return twin(cls, FusedForward) if cls.forward is nn.Sequential.forward else None


def _report(name: str, module: nn.Module, verbose: bool) -> int:
    """The number of runs among the children; logs them, and convolutions left alone with the
    reason, of a Sequential.
    """
    modules = list(module.children())
    if not isinstance(module, nn.Sequential):  # a form, whose convolutions all have a batch norm
        return sum(isinstance(child, nn.BatchNorm2d) for child in modules)
    found, start = 0, 0
    while start < len(modules):
        run = find_run(modules, start) if is_conv(modules[start]) else None
        where = f"{name or 'the model'}[{start}]"
        if isinstance(run, Run):
            found += 1
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
