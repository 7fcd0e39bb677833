"""Which chains of blocks the library's own convolutions take, on the CPU and on CUDA."""

from collections.abc import Sequence

import torch
from torch import Tensor

from colorseg.ops._precision import allows_tf32
from colorseg.ops.chain import Layer, fits, pack

# what own_convolution in csrc/cpu/conv_plan.cpp takes
MAX_CHANNELS, MAX_WEIGHTS, MAX_SPAN = 256, 1 << 20, 64
HALF = (torch.float16, torch.bfloat16)
MAX_KNOWN = 1024
_known: dict[object, bool] = {}  # what the CUDA kernels said of layers on a shape


def map_dtype(x: Tensor) -> torch.dtype | None:
    """Of the maps in a chain of ``x``; None where there is no kernel for ``x``."""
    if x.device.type == "cpu":
        plain = x.dtype == torch.float32 and x.is_contiguous()
        return x.dtype if plain and not torch._C._is_any_autocast_enabled() else None
    if x.device.type != "cuda":
        return None
    autocast = torch.is_autocast_enabled("cuda") and x.dtype != torch.float64
    dtype = torch.get_autocast_dtype("cuda") if autocast else x.dtype
    return dtype if dtype in (torch.float32, *HALF) else None


def without_kernel(x: Tensor, layers: Sequence[Layer]) -> int | None:
    """The first layer that has no kernel for a chain of ``x``, in its ``map_dtype``; None if all
    have one.  On CUDA it is the whole chain that fits or not.
    """
    if x.device.type == "cpu":
        return without_cpu_kernel(layers)
    return None if all(_suits(layer, x) for layer in layers) and _fits(x, layers) else 0


def without_cpu_kernel(layers: Sequence[Layer]) -> int | None:
    """As ``without_kernel``, for float32 on the CPU."""
    for i, layer in enumerate(layers):
        conv, weight = layer.conv, layer.parameters[0]
        assert weight is not None
        upsampled = [layers[j - 1].resample == "upsample2" if j > 0 else False for j in layer[:2]]
        plain = conv.stride == [1, 1] and not conv.transposed and layer.skip < 0
        taps = zip(weight.shape[2:], conv.dilation, strict=True)
        if not (
            weight.dtype == torch.float32
            and weight.device.type == "cpu"
            and conv.groups == 1
            and conv.stride[0] == conv.stride[1] <= 2
            and max(weight.shape[:2]) <= MAX_CHANNELS
            and weight.numel() <= MAX_WEIGHTS
            and max(k * d for k, d in taps) <= MAX_SPAN
            and layer.main != layer.skip
            and not upsampled[1]
            and (plain or not upsampled[0])
        ):
            return i
    return None


def _suits(layer: Layer, x: Tensor) -> bool:
    dtypes = (x.dtype, torch.float32) if x.dtype in HALF else (x.dtype,)
    conv = [t for t in layer.parameters[:2] if t is not None]
    norm = [t for t in (*layer.parameters[2:], *layer.running[:2]) if t is not None]
    return (
        layer.conv.groups == 1
        and layer.conv.stride[0] == layer.conv.stride[1]
        and layer.main != layer.skip
        and all(t.device == x.device for t in (*conv, *norm))
        and all(t.dtype in dtypes for t in conv)
        and all(t.dtype in (torch.float32, *HALF) for t in norm)
    )


def _fits(x: Tensor, layers: Sequence[Layer]) -> bool:
    shapes = tuple(layer.parameters[0].shape for layer in layers)  # type: ignore[union-attr]
    key = (x.shape, x.dtype, x.device, allows_tf32(), tuple(pack(layers)[0]), shapes)
    if key not in _known:
        if len(_known) >= MAX_KNOWN:  # of inputs whose shape never comes twice
            _known.clear()
        _known[key] = fits(x, layers)
    return _known[key]
