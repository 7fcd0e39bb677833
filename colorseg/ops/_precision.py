"""float32 convolutions on CUDA are computed in tf32 where torch says that cuDNN's may be."""

import torch
from torch import Tensor

from colorseg._extension import load


def allows_tf32() -> bool:
    """What ``torch.backends.cudnn.conv.fp32_precision`` says, however it was set."""
    return torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]


def follow_tf32(x: Tensor) -> None:
    """Tell the kernels, if ``x`` meets those that want to know.

    Compiled code keeps what was true when an operator last ran, or was traced, outside of it.
    """
    if x.device.type == "cuda" and not torch.compiler.is_compiling():
        load().set_allow_tf32(allows_tf32())
