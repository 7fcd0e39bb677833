"""Finds runs conv[, pool | upsample], bn[, relu] in a list of modules."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from colorseg.nn.functional import why_not_fusable, why_not_readable


class Run(NamedTuple):
    """A run that one operator computes: ``length`` modules from the convolution on."""

    conv: nn.Module
    bn: nn.Module
    resample: str | None
    relu: bool
    length: int


def resample_name(module: nn.Module) -> str | None:
    """ "maxpool2" or "upsample2" if the module is exactly that, else None."""
    if type(module) is nn.MaxPool2d:
        plain = not module.ceil_mode and not module.return_indices
        sizes = (
            _pair(module.kernel_size),
            _pair(module.stride),
            _pair(module.padding),
            _pair(module.dilation),
        )
        return "maxpool2" if plain and sizes == ((2, 2), (2, 2), (0, 0), (1, 1)) else None
    if type(module) in (nn.Upsample, nn.UpsamplingNearest2d):
        exact = (
            module.size is None
            and module.mode == "nearest"
            and _pair(module.scale_factor) == (2, 2)
        )
        return "upsample2" if exact else None
    return None


def _pair(value: object) -> tuple[object, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value, value)


def find_run(modules: Sequence[nn.Module], start: int) -> Run | str:
    """The run that starts at ``modules[start]``, or the reason why there is none."""
    conv, rest = modules[start], modules[start + 1 :]
    resample, position = None, 0
    if rest and not isinstance(rest[0], nn.BatchNorm2d | nn.SyncBatchNorm):
        resample, position = resample_name(rest[0]), 1
        reason = (
            why_not_readable(rest[0])
            if resample
            else "it is no batch norm, MaxPool2d(2) or Upsample(2)"
        )
        if reason is not None:
            return f"{rest[0]} follows the convolution, and {reason}"
    if len(rest) <= position:
        return "no batch norm follows the convolution"
    bn = rest[position]
    reason = why_not_fusable(conv, bn)
    if reason is not None:
        return reason
    after = rest[position + 1] if len(rest) > position + 1 else None
    relu = type(after) is nn.ReLU and why_not_readable(after) is None
    return Run(conv, bn, resample, relu, 2 + position + relu)


def is_conv(module: nn.Module) -> bool:
    """Whether a run may start here."""
    return isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
