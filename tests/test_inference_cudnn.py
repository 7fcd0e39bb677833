"""What optimize_for_inference has cuDNN do in a convolution's pass, where there is no GPU."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_close
from test_fuse_forms import Basic
from test_inference_deeplab import exact, randomized
from torch import nn

import colorseg
from colorseg import models, optimize_for_inference
from colorseg.nn import cudnn
from colorseg.nn.folded import FoldedConv2d, fold
from colorseg.nn.forms import BasicBlock, Bottleneck


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
def test_what_cudnn_fuses(backbone, monkeypatch):
    """Its convolutions with all that follows, as half types on CUDA call them."""
    calls = []

    def relu(x, weight, bias, stride, padding, dilation, groups):
        calls.append("relu")
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups).relu()

    def add_relu(x, weight, z, alpha, bias, *options):
        calls.append("add_relu")
        return (F.conv2d(x, weight, bias, *options) + alpha * z).relu()

    monkeypatch.setattr(cudnn, "fits", lambda x, weight, residual: True)
    monkeypatch.setattr(torch, "cudnn_convolution_relu", relu)
    monkeypatch.setattr(torch, "cudnn_convolution_add_relu", add_relu)
    deeplab, x = randomized(models.deeplabv3(backbone, 3, aux=True)), torch.randn(2, 3, 33, 40)
    optimized = optimize_for_inference(deeplab)
    assert_close(optimized(x)["out"], exact(deeplab, x)["out"])
    folds = [m for m in optimized.modules() if isinstance(m, FoldedConv2d)]
    blocks = sum(isinstance(m, BasicBlock | Bottleneck) for m in optimized.modules())
    shortcuts = sum(getattr(m, "downsample", None) is not None for m in optimized.modules())
    assert calls.count("add_relu") == blocks
    assert len(calls) == len(folds) - shortcuts


HALF_MAP = {"device": "cuda", "dtype": torch.float16, "shape": (2, 8, 5, 5)}
REFUSED = {
    "on the CPU": {"x": {"device": "cpu"}},
    "float32": {"x": {"dtype": torch.float32}},
    "another dtype": {"x": {"dtype": torch.bfloat16}},
    "another residual": {"residual": {"dtype": torch.float32}},
    "no batch": {"x": {"shape": (8, 5, 5)}},
    "groups": {"x": {"shape": (2, 16, 5, 5)}},
    "disabled": {"enabled": False},
    "deterministic": {"deterministic": True},
}


def tensor_like(device, dtype, shape):
    """What decides about a tensor on CUDA, where there is no CUDA."""
    place = SimpleNamespace(type=device)
    return SimpleNamespace(device=place, dtype=dtype, shape=shape, dim=lambda: len(shape))


@pytest.mark.parametrize("case", ["plain", *REFUSED])
def test_what_cudnn_is_asked(case, monkeypatch):
    changes = REFUSED.get(case, {})
    x, weight, residual = (
        tensor_like(**(HALF_MAP | changes.get(name, {}))) for name in ("x", "weight", "residual")
    )
    backend = {"is_available": lambda: True, "enabled": True, "deterministic": False} | changes
    for name in ("is_available", "enabled", "deterministic"):
        monkeypatch.setattr(torch.backends.cudnn, name, backend[name])
    assert cudnn.fits(x, weight, residual) == (case == "plain")
    assert not cudnn.fits(torch.rand(1, 2, 3, 3), torch.rand(4, 2, 1, 1), None)


def test_what_cudnn_has_no_engine_for(monkeypatch):
    """Runs as it would without; other errors are passed on."""

    def refuse(message):
        def call(*args):
            raise RuntimeError(message)

        return call

    monkeypatch.setattr(cudnn, "fits", lambda x, weight, residual: True)
    model = randomized(colorseg.fuse(Basic()))
    optimized, x = optimize_for_inference(model), torch.randn(2, 4, 9, 8)
    for name in ("relu", "add_relu"):
        message = "GET was unable to find an engine to execute this computation"
        monkeypatch.setattr(torch, f"cudnn_convolution_{name}", refuse(message))
    assert_close(optimized(x), exact(model, x))
    monkeypatch.setattr(torch, "cudnn_convolution_relu", refuse("out of memory"))
    with pytest.raises(RuntimeError, match="out of memory"):
        optimized(x)


def test_what_float16_cannot_hold_is_not_folded():
    model = randomized(colorseg.fuse(Basic()))
    model.bn1.running_mean.fill_(1e6)
    fold(model, torch.float16)
    assert type(model.conv1) is nn.Conv2d
    assert type(model.bn1) is nn.BatchNorm2d
    assert isinstance(model.conv2, FoldedConv2d)
