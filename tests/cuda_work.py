"""What the operators do on a GPU, forward and backward, as calls without arguments."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from colorseg import ops
from colorseg.models import NETWORKS
from colorseg.nn import ConvBNReLU
from colorseg.palette import Palette

Call = Callable[[], list[Tensor]]


def _leaf(*size: int, dtype: torch.dtype = torch.float32, last: bool = False) -> Tensor:
    layout = torch.channels_last if last else torch.contiguous_format
    return torch.randn(size).to(dtype).contiguous(memory_format=layout).requires_grad_()


def _with_gradients(function: Callable[[], Tensor], leaves: list[Tensor]) -> list[Tensor]:
    y = function()
    scale = torch.linspace(-1, 1, y.numel(), device=y.device, dtype=y.dtype).view_as(y)
    return [y.detach(), *torch.autograd.grad(y, leaves, scale)]


def losses() -> dict[str, Call]:
    """Of labels, of RGB pictures, of two classes and of more."""
    calls = {}
    palette = Palette.horse24().colors.to("cuda")
    rgb, labels = torch.rand(3, 3, 33, 40), torch.randint(24, (3, 33, 40))
    for dtype in (torch.float32, torch.bfloat16):
        z = _leaf(3, 24, 33, 40, dtype=dtype)
        for name, target in {"labels": (labels,), "rgb": (rgb, palette)}.items():
            loss = partial(ops.color_cross_entropy, z, *target, label_smoothing=0.1)
            calls[f"color_cross_entropy {name} {dtype}"] = partial(_with_gradients, loss, [z])
        for classes in (2, 5):
            masks = _leaf(3, classes, 33, 40, dtype=dtype)
            loss = partial(ops.soft_iou_loss, masks, labels % classes)
            calls[f"soft_iou_loss {classes} {dtype}"] = partial(_with_gradients, loss, [masks])
    calls["nearest_color"] = lambda: [ops.nearest_color(rgb, palette)]
    return calls


def convolutions() -> dict[str, Call]:
    """The library's own, alone, in a block and in networks."""
    calls: dict[str, Call] = {}
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        x, weight = _leaf(2, 16, 20, 24, dtype=dtype, last=True), _leaf(40, 16, 3, 3, dtype=dtype)
        conv = partial(ops.conv2d, x, weight, padding=1)
        calls[f"conv2d {dtype}"] = partial(_with_gradients, conv, [x, weight])
        for resample in (None, "maxpool2", "upsample2"):
            block = ConvBNReLU(16, 24, 3, resample=resample).to(dtype)
            leaves = [x, *block.parameters()]
            calls[f"{resample} {dtype}"] = partial(_with_gradients, partial(block, x), leaves)
    images = torch.rand(5, 1, 32, 32)
    for name, network in NETWORKS.items():
        model = network(num_filters=8)
        leaves = list(model.parameters())
        calls[name] = partial(_with_gradients, partial(model, images), leaves)
        calls[f"{name} autocast"] = partial(
            _with_gradients, partial(_autocast, model, images), leaves
        )
    return calls


def _autocast(model: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
        return model(images)


def aten_convolutions() -> dict[str, Call]:
    """Those that cuDNN does, surrounded by ours."""
    x, many = _leaf(2, 16, 20, 24), _leaf(2, 256, 9, 11, last=True)
    block, large = ConvBNReLU(16, 24, 3, groups=2), ConvBNReLU(256, 160, 3, dilation=2)
    return {
        "contiguous": partial(_with_gradients, partial(block, x), [x, *block.parameters()]),
        "many channels": partial(
            _with_gradients, partial(large, many), [many, *large.parameters()]
        ),
    }
