"""Sequentials whose forward is fused, and a convolution of two inputs."""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from colorseg import ops
from colorseg.nn.functional import conv_bn_relu, conv_options, why_not_readable
from colorseg.nn.runs import Run, find_run, is_conv


class FusedForward:
    """Forward of a Sequential that computes every run conv[, pool | upsample], bn[, relu] by one operator.

    Mixed in front of ``torch.nn.Sequential`` or a subclass with the stock forward.  Runs are looked up at
    each call, so a child that gets hooks or is replaced runs as plain PyTorch from then on.
    """

    plain_class: type[nn.Sequential] = nn.Sequential

    def forward(self, x: Tensor, skip: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        """Apply the children to ``x`` (N, C, H, W).

        Args:
            x: (N, C, H, W).
            skip: (N, C_skip, H, W), taken by the first child as if concatenated to ``x``.
            residual: not available yet; needs a block that is a single run.
        """
        for step in self._steps():
            if isinstance(step, Run):
                x = conv_bn_relu(step.conv, step.bn, x, resample=step.resample, relu=step.relu, skip=skip, residual=residual)
            elif residual is not None:
                raise NotImplementedError(
                    "residual is not built yet; add it after a block with relu=False, then apply the ReLU"
                )
            else:
                x = step(x if skip is None else torch.cat([x, skip], 1))
            skip = residual = None
        return x

    def _steps(self) -> Iterator[Run | nn.Module]:
        modules = list(self)  # type: ignore[call-overload]
        start = 0
        while start < len(modules):
            run = find_run(modules, start) if is_conv(modules[start]) else ""
            yield run if isinstance(run, Run) else modules[start]
            start += run.length if isinstance(run, Run) else 1

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return nn.Sequential(OrderedDict(list(self._modules.items())[index]))  # type: ignore[attr-defined]
        return super().__getitem__(index)  # type: ignore[misc]


class FusedSequential(FusedForward, nn.Sequential):
    """What :func:`colorseg.fuse` makes of a ``torch.nn.Sequential``."""


class ConvBNReLU(FusedForward, nn.Sequential):
    """Convolution, optional 2x2 resampling, batch norm and ReLU: a Sequential with a fused forward.

    Its children are the plain modules, in this order, so state-dict names, initialisation and checkpoints
    are those of the ``torch.nn.Sequential`` it replaces.

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
        forward(x, skip=None, residual=None): (N, C, H, W), (N, C_skip, H, W) -> (N, out_channels, H_y, W_y).
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
        common = {"stride": stride, "dilation": dilation, "groups": groups, "bias": bias, **where}
        sizes = conv_padding(kernel_size, stride, padding, dilation, transposed, output_padding)
        make = nn.ConvTranspose2d if transposed else nn.Conv2d
        children: list[nn.Module] = [make(in_channels, out_channels, kernel_size, **common, **sizes)]  # type: ignore[arg-type]
        if resample is not None:
            children.append(_resample_module(resample))
        children.append(nn.BatchNorm2d(out_channels, eps, momentum, affine, track_running_stats, **where))
        super().__init__(*children, *([nn.ReLU()] if relu else []))


def conv_padding(
    kernel: int, stride: int, padding: int | None, dilation: int, transposed: bool, output_padding: int | None
) -> dict[str, int | str]:
    """Padding, and output_padding of a transposed convolution, that keep ``size / stride`` or ``size * stride``.

    With kernel k, stride s, dilation d: padding ``(k - 1) // 2 * d`` and output_padding
    ``s + 2 * padding - d * (k - 1) - 1``; for stride 1 and even k torch's uneven ``"same"``.
    """
    _check_int("kernel_size", kernel, 1)
    _check_int("stride", stride, 1)
    _check_int("dilation", dilation, 1)
    _check_int("padding", 0 if padding is None else padding, 0)
    _check_int("output_padding", 0 if output_padding is None else output_padding, 0)
    if padding is None and stride == 1 and not transposed and kernel % 2 == 0:
        return {"padding": "same"}
    chosen = (kernel - 1) // 2 * dilation if padding is None else padding
    if not transposed:
        if output_padding is not None:
            raise ValueError("output_padding belongs to transposed convolutions; pass transposed=True or leave it out")
        return {"padding": chosen}
    extra = stride + 2 * chosen - dilation * (kernel - 1) - 1 if output_padding is None else output_padding
    if extra < 0:
        raise ValueError(
            f"a transposed convolution with kernel {kernel}, stride {stride}, dilation {dilation} and padding {chosen} "
            f"would need output_padding {extra}; use an odd kernel or a larger padding"
        )
    return {"padding": chosen, "output_padding": extra}


def _check_int(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an int of at least {least}, got {value!r}")


def _resample_module(name: str) -> nn.Module:
    if name not in ("maxpool2", "upsample2"):
        raise ValueError(f"resample must be None, 'maxpool2' or 'upsample2', got {name!r}")
    return nn.MaxPool2d(2) if name == "maxpool2" else nn.Upsample(scale_factor=2)


class SkipConv2d(nn.Conv2d):
    """``torch.nn.Conv2d`` that also convolves a second input, without joining the two first.

    Shape:
        forward(x, skip=None): (N, C, H, W), (N, C_skip, H, W) -> (N, out_channels, H_out, W_out), where
        ``in_channels`` is C + C_skip.
    """

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """``Conv2d.forward(torch.cat([x, skip], 1))``."""
        if self.padding_mode != "zeros":
            return super().forward(x if skip is None else torch.cat([x, skip], 1))
        return ops.conv2d(x, self.weight, self.bias, skip=skip, **conv_options(self))


def run_block(block: nn.Module, x: Tensor, skip: Tensor | None = None) -> Tensor:
    """``block(x, skip)`` for a fused block or SkipConv2d, ``block(torch.cat([x, skip], 1))`` for a plain one."""
    if skip is None:
        return block(x)
    if isinstance(block, FusedForward | SkipConv2d):
        return block(x, skip)
    return block(torch.cat([x, skip], 1))


__all__ = ["ConvBNReLU", "FusedForward", "FusedSequential", "SkipConv2d", "conv_padding", "run_block", "why_not_readable"]
