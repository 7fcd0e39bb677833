"""``conv_bn_relu`` of two modules: reads a convolution and a batch norm, wherever they stand."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as torch_module

from colorseg.nn.freezing import FrozenBatchNorm2d
from colorseg.nn.sync import run_norm
from colorseg.ops._geometry import ConvOptions
from colorseg.ops._geometry import conv_options as checked_options
from colorseg.ops.conv_bn_relu import check_resample, run

PLAIN_CONVS = (nn.Conv2d, nn.ConvTranspose2d)
PLAIN_NORMS = (nn.BatchNorm2d, FrozenBatchNorm2d)
_GLOBAL_HOOKS = (
    "_global_forward_hooks",
    "_global_forward_pre_hooks",
    "_global_backward_hooks",
    "_global_backward_pre_hooks",
)


def why_not_readable(module: nn.Module) -> str | None:
    """Why a module's forward cannot be replaced by reading its parameters; None if it can."""
    if (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    ):
        return "it has hooks"
    if "forward" in module.__dict__:
        return "its forward was replaced"
    return None


def global_hooks() -> bool:
    """Whether hooks are set that every module's forward runs."""
    return any(getattr(torch_module, name) for name in _GLOBAL_HOOKS)


def one_by_one(x: Tensor) -> bool:
    """Whether modules must run themselves for this input: hooks that all modules run, or what the
    operators have no rules for: transforms of ``torch.func``, forward mode, ``torch.fx``.
    """
    transformed = forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()
    return transformed or not isinstance(x, Tensor) or global_hooks()


def why_not_fusable(conv: nn.Module, bn: nn.Module) -> str | None:
    """Why ``conv`` and ``bn`` have to run as they are; None if one operator computes the same."""
    if type(conv) not in PLAIN_CONVS:  # also what parametrize or a lazy module makes of it
        return f"{type(conv).__name__} is not a plain Conv2d or ConvTranspose2d"
    if type(bn) not in PLAIN_NORMS:
        return f"{type(bn).__name__} is not a plain BatchNorm2d"
    if conv.padding_mode != "zeros":
        return f"padding_mode={conv.padding_mode!r}"
    assert isinstance(bn, nn.BatchNorm2d)
    if bn.num_features != conv.out_channels:
        return (
            f"{conv.out_channels} output channels do not fit {bn.num_features} batch norm features"
        )
    reason = why_not_readable(conv) or why_not_readable(bn)
    if reason is None and ("weight" not in conv._parameters or "weight" not in bn._parameters):
        return "a weight is no parameter"  # somebody put a plain tensor in its place
    return reason


def conv_options(conv: Any) -> ConvOptions:
    """The settings of a convolution module as the operators take them."""
    transposed = isinstance(conv, nn.ConvTranspose2d)
    if isinstance(conv.padding, str):
        named = 0 if conv.padding == "valid" else conv.padding
        return checked_options(conv.weight, conv.stride, named, conv.dilation, conv.groups)
    top, left = conv.padding
    stride, dilation, extra = [*conv.stride], [*conv.dilation], [*conv.output_padding]
    return ConvOptions(stride, [top, top, left, left], dilation, conv.groups, transposed, extra)


def conv_bn_relu(
    conv: nn.Module,
    bn: nn.Module,
    x: Tensor,
    *,
    resample: str | None = None,
    relu: bool = True,
    skip: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """:func:`colorseg.ops.conv_bn_relu` with the parameters, buffers and mode of two modules.

    For networks in which they are siblings (ResNet) instead of neighbors in a Sequential.  Runs the
    modules themselves where one has hooks, is parametrised or is of an unknown type, and inside
    the transforms of ``torch.func``.

    Args:
        conv: ``Conv2d`` or ``ConvTranspose2d``.
        bn: ``BatchNorm2d``; its mode, momentum, eps and counters are those of ``bn.forward``.
        x: (N, C, H, W).
        resample: None, "maxpool2" or "upsample2", between the two.
        relu: apply a ReLU at the end.
        skip: (N, C_skip, H, W), convolved as if concatenated to ``x``.
        residual: (N, C_out, H_y, W_y), added in front of the ReLU.

    Returns:
        (N, C_out, H_y, W_y).
    """
    check_resample(resample)
    if one_by_one(x) or why_not_fusable(conv, bn) is not None:
        return _run_modules(conv, bn, x, resample, relu, skip, residual)
    return run_fused(conv, bn, x, resample, relu, skip, residual)


def run_fused(
    conv: Any,
    bn: Any,
    x: Tensor,
    resample: str | None,
    relu: bool,
    skip: Tensor | None,
    residual: Tensor | None,
) -> Tensor:
    """:func:`conv_bn_relu` of modules that are known to be fusable."""
    weights, norm = conv._parameters, bn._parameters  # spares __getattr__
    (mean, var, tracked), batch_statistics, momentum = batch_norm_state(bn)
    conv_tensors = (x, weights["weight"], weights["bias"], skip, residual)
    tensors = (*conv_tensors, norm["weight"], norm["bias"])
    mode = (resample or "none", batch_statistics, momentum, bn.eps, relu)
    return run(tensors, mean, var, conv_options(conv), *mode, tracked=tracked)


Running = tuple[Tensor | None, Tensor | None, Tensor | None]


def batch_norm_state(bn: Any) -> tuple[Running, bool, float]:
    """Running mean, variance and number of batches, whether the batch's are used, and the momentum.

    As in ``BatchNorm2d.forward``; a negative momentum stands for the cumulative average.
    """
    mean, var = bn._buffers["running_mean"], bn._buffers["running_var"]
    batch_statistics = bn.training or (mean is None and var is None)
    if bn.training and not bn.track_running_stats:
        mean = var = None
    tracked = bn.num_batches_tracked if bn.training and bn.track_running_stats else None
    cumulative = -1.0 if tracked is not None else 0.0
    momentum = cumulative if bn.momentum is None else bn.momentum
    return (mean, var, tracked), batch_statistics, momentum


def _run_modules(
    conv: nn.Module,
    bn: nn.Module,
    x: Tensor,
    resample: str | None,
    relu: bool,
    skip: Tensor | None,
    residual: Tensor | None,
) -> Tensor:
    y = conv(x if skip is None else torch.cat([x, skip], 1))
    if resample == "maxpool2":
        y = nn.functional.max_pool2d(y, 2)
    elif resample == "upsample2":
        y = nn.functional.interpolate(y, scale_factor=2, mode="nearest")
    y = run_norm(bn, y)
    if residual is not None:
        y = y + residual
    return nn.functional.relu(y) if relu else y
