"""Convolutions for inference on CUDA with all that follows, in cuDNN's own pass."""

import torch
from torch import Tensor
from torch.backends import cudnn

from colorseg.nn.kernels import HALF
from colorseg.ops._registration import traced

Pair = tuple[int, int]


def conv_relu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
) -> Tensor | None:
    """``relu(conv(x) + bias + residual)``, or None where cuDNN does not do it in one pass.

    Args:
        x: (N, C, H, W).
        weight: (C_out, C, K_y, K_x).
        bias: (C_out,).
        residual: (N, C_out, H_y, W_y), if any.
        stride, padding, dilation: as ``F.conv2d`` takes them.
    """
    if not fits(x, weight, residual):
        return None
    options = stride, padding, dilation, 1
    try:
        if residual is None:
            return torch.cudnn_convolution_relu(x, weight, bias, *options)
        return torch.cudnn_convolution_add_relu(x, weight, residual, 1.0, bias, *options)
    except RuntimeError as error:
        if "unable to find an engine" not in str(error):
            raise
        return None


def fits(x: Tensor, weight: Tensor, residual: Tensor | None) -> bool:
    """Whether cuDNN may be asked: its operators check nothing, and cannot be traced."""
    dtypes = {x.dtype, weight.dtype, x.dtype if residual is None else residual.dtype}
    return (
        x.device.type == "cuda"
        and x.dtype in HALF  # on tensor cores
        and len(dtypes) == 1
        and x.dim() == 4
        and x.shape[1] == weight.shape[1]  # one group
        and cudnn.is_available()
        and cudnn.enabled
        and not (cudnn.deterministic or torch.are_deterministic_algorithms_enabled())
        and not traced()
    )
