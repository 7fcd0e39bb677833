"""optimize_for_inference in bfloat16 where its results are known to the last bit."""

import copy

import pytest
import torch
from sequential_cases import conv
from torch import nn

from colorseg import optimize_for_inference

pytestmark = pytest.mark.usefixtures("bfloat16_kernels")

OPTIONS = [{}, {"stride": 2}, {"dilation": 2}, {"transposed": True}]
OPTIONS += [{"transposed": True, "stride": 2, "kernel_size": 2}, {"kernel_size": (1, 5)}]


@pytest.mark.parametrize("channels", [1, 2, 3, 8, 15])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_integers_are_exact(channels, options):
    """No channel meets another's weight, whether their number is odd or even."""
    options = {"kernel_size": 3, "transposed": False} | options
    kind = nn.ConvTranspose2d if options.pop("transposed") else nn.Conv2d
    norm = nn.BatchNorm2d(channels + 2, eps=0.5)
    norm.running_var.fill_(0.5)  # a deviation of 1
    block = nn.Sequential(kind(channels, channels + 2, **options), norm)
    model = nn.Sequential(block, conv(channels + 2, 5)).eval()
    for layer in (block[0], model[1]):  # few and small, so that no sum needs more than 8 bits
        weight = torch.randint(-2, 3, layer.weight.shape) * (torch.rand(layer.weight.shape) < 0.1)
        layer.weight.data.copy_(weight)
        layer.bias.data.copy_(torch.arange(len(layer.bias)) - 2)
    x = torch.randint(-3, 4, (5, channels, 11, 18)).bfloat16()
    with torch.no_grad():
        want = copy.deepcopy(model).double()(x.double())
    assert torch.equal(optimize_for_inference(model, torch.bfloat16)(x).double(), want)


def test_rounds_to_nearest_even():
    """Between layers and at the end, ties and NaN included."""
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.Conv2d(1, 1, 1, bias=False))
    factors = torch.tensor([1 + 2**-7, 1 + 2**-6 + 2**-7])
    for layer, factor in zip(model, factors, strict=True):
        nn.init.constant_(layer.weight, factor)
    x = torch.randn(1, 1, 50, 21).bfloat16()
    x[..., 0, :4] = torch.tensor([1.0, float("inf"), float("-inf"), float("nan")])
    want = ((x.float() * factors[0]).bfloat16().float() * factors[1]).bfloat16()
    y = optimize_for_inference(model, torch.bfloat16)(x)
    assert torch.equal(y.nan_to_num(7.0), want.nan_to_num(7.0))


@pytest.mark.parametrize("size", [(12, 40), (9, 7)], ids=str)
def test_nan_wins_a_max_pool(size):
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.MaxPool2d(2), nn.BatchNorm2d(3, 0)).eval()
    nn.init.dirac_(model[0].weight), nn.init.zeros_(model[0].bias)
    x = torch.randn(2, 3, *size).bfloat16()
    x[torch.rand(2, 3, *size) < 0.1] = float("nan")
    x[x.isnan().any(1, keepdim=True).expand_as(x)] = float("nan")  # 0 x NaN in other channels
    y = optimize_for_inference(model, torch.bfloat16)(x)
    want = nn.functional.max_pool2d(x, 2)
    assert torch.equal(y.nan_to_num(99.0), want.nan_to_num(99.0))
