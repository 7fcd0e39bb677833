"""Sequentials whose forward is fused, and a convolution of two inputs."""

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from colorseg.nn.functional import conv_options, one_by_one, run_fused
from colorseg.nn.padding import conv_padding
from colorseg.nn.runs import Run, find_run, is_conv
from colorseg.nn.sync import run_norm
from colorseg.ops.conv2d import run as run_conv2d
from colorseg.ops.conv_bn_relu import check_resample


class FusedForward:
    """Forward of a Sequential whose runs conv[, pool | upsample], bn[, relu] are one operator each.

    Mixed in front of ``torch.nn.Sequential`` or a subclass with the stock forward.  Runs are
    looked up at each call, so a child that gets hooks or is replaced runs as plain PyTorch from
    then on; so do all inside the transforms of ``torch.func``.
    """

    plain_class: type[nn.Sequential] = nn.Sequential

    def forward(
        self, x: Tensor, skip: Tensor | None = None, residual: Tensor | None = None
    ) -> Tensor:
        """Apply the children to ``x`` (N, C, H, W).

        Args:
            x: (N, C, H, W).
            skip: (N, C_skip, H, W), taken by the first child as if concatenated to ``x``.
            residual: in the shape of the result, added in front of the last child if that is a
                ReLU, else to the result.
        """
        modules = list(self._modules.values())  # type: ignore[attr-defined]
        fusable = not one_by_one(x)
        skip, residual = _given(skip), _given(residual)
        start = 0
        while start < len(modules):
            module = modules[start]
            run = find_run(modules, start) if fusable and is_conv(module) else None
            if isinstance(run, Run):
                last = start + run.length == len(modules)
                added = residual if last else None
                x = run_fused(run.conv, run.bn, x, run.resample, run.relu, skip, added)
                residual = None if last else residual
                start += run.length
            else:
                x = x if skip is None else torch.cat([x, skip], 1)
                rest = modules[start + 1 :]
                if residual is not None and not rest and isinstance(module, nn.ReLU):
                    x, residual = x + residual, None
                if residual is not None and _is_folded(module, rest):
                    x, residual = module(x, residual), None
                else:
                    x = run_norm(module, x)
                start += 1
            skip = None
        return x if residual is None else x + residual

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return nn.Sequential(OrderedDict(list(self._modules.items())[index]))  # type: ignore[attr-defined]
        return super().__getitem__(index)  # type: ignore[misc]


def _is_folded(module: nn.Module, rest: list[nn.Module]) -> bool:
    """Whether a module does all that is left, as ``optimize_for_inference`` makes it."""
    return getattr(module, "folded", False) and all(type(m) is nn.Identity for m in rest)


def _given(value: Any) -> Any:
    """None for an argument left out, of which torch.fx makes a placeholder."""
    node = None if value is None or isinstance(value, Tensor) else value.node
    return value if node is None or node.op != "placeholder" or node.args != (None,) else None


class FusedSequential(FusedForward, nn.Sequential):
    """What :func:`colorseg.fuse` makes of a ``torch.nn.Sequential``."""


class ConvBNReLU(FusedForward, nn.Sequential):
    """Convolution, optional 2x2 resampling, batch norm and ReLU: a Sequential with a fused forward.

    Its children are the plain modules, in this order, so state-dict names, initialisation and
    checkpoints are those of the ``torch.nn.Sequential`` it replaces.

    Args:
        in_channels: channels of ``x``, plus those of ``skip`` where forward gets one.
        out_channels: channels of the result.
        kernel_size: int.
        stride: int, as dilation.
        padding: int; None means ``(k - 1) // 2 * dilation``, for stride 1 and even k ``"same"``.
        dilation: spacing of the kernel's taps.
        groups: as in ``torch.nn.Conv2d``.
        bias: whether the convolution has one; batch norm cancels it in training.
        transposed: ``ConvTranspose2d`` instead of ``Conv2d``.
        output_padding: int; None doubles the size at stride 2.
        resample: None, "maxpool2" or "upsample2" (nearest).
        relu: end with a ReLU.
        eps: of the batch norm, as momentum, affine and track_running_stats.
        momentum: weight of the batch in the running statistics; None for their plain average.
        affine: whether the batch norm scales and shifts.
        track_running_stats: whether the batch norm keeps running statistics.
        device: of the parameters.
        dtype: of the parameters.

    Shape:
        forward(x, skip=None, residual=None): (N, C, H, W), (N, C_skip, H, W) -> (N, out_channels,
        H_y, W_y).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int | None = None,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        transposed: bool = False,
        output_padding: int | None = None,
        resample: str | None = None,
        relu: bool = True,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        where = {"device": device, "dtype": dtype}
        sizes = conv_padding(kernel_size, stride, padding, dilation, transposed, output_padding)
        make: Any = nn.ConvTranspose2d if transposed else nn.Conv2d
        conv = make(
            in_channels, out_channels, kernel_size,
            stride=stride, dilation=dilation, groups=groups, bias=bias, **sizes, **where,
        )  # fmt: skip
        bn = nn.BatchNorm2d(out_channels, eps, momentum, affine, track_running_stats, **where)
        between = [] if resample is None else [_resample_module(resample)]
        super().__init__(conv, *between, bn, *([nn.ReLU()] if relu else []))


def _resample_module(name: str) -> nn.Module:
    check_resample(name)
    return nn.MaxPool2d(2) if name == "maxpool2" else nn.Upsample(scale_factor=2)


class SkipConv2d(nn.Conv2d):
    """``torch.nn.Conv2d`` that also convolves a second input, without joining the two first.

    Shape:
        forward(x, skip=None): (N, C, H, W), (N, C_skip, H, W) -> (N, out_channels, H_out, W_out),
        where ``in_channels`` is C + C_skip.
    """

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """``Conv2d.forward(torch.cat([x, skip], 1))``."""
        if self.padding_mode != "zeros" or one_by_one(x):
            return super().forward(x if skip is None else torch.cat([x, skip], 1))
        return run_conv2d((x, self.weight, self.bias, skip), conv_options(self))


def run_block(block: nn.Module, x: Tensor, skip: Tensor | None = None) -> Tensor:
    """``block(x, skip)``; a plain block gets the two concatenated instead."""
    if skip is None:
        return block(x)
    if isinstance(block, FusedForward | SkipConv2d):
        return block(x, skip)
    return block(torch.cat([x, skip], 1))
