"""Blocks in half types and under autocast: what trains, trains in float32."""

import copy

import pytest
import torch
from conftest import assert_close
from torch import nn

from colorseg.nn import ConvBNReLU

pytestmark = pytest.mark.every_device


def make_block() -> ConvBNReLU:
    """A block whose parameters and statistics bfloat16 holds exactly, as its input below."""
    block = ConvBNReLU(3, 4, 3)
    for tensor in block.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.bfloat16())
    return block


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_a_half_block_computes_in_float32(training, dtype):
    block, x = make_block().train(training), torch.randn(2, 3, 8, 8).to(dtype)
    exact, half = copy.deepcopy(block).double(), copy.deepcopy(block).to(dtype)
    y = half(x)
    assert y.dtype == dtype
    assert_close(y, exact(x.double()))
    assert half[1].running_var.dtype == dtype
    assert_close(half[1].running_var, exact[1].running_var)
    y.float().sum().backward()
    assert {p.grad.dtype for p in half.parameters()} == {dtype}


@pytest.mark.parametrize("frozen", ["nothing", "convolution", "batch norm"])
def test_autocast_fine_tuning(frozen, device):
    block, x = make_block(), torch.randn(2, 3, 8, 8)
    kinds = {"convolution": nn.Conv2d, "batch norm": nn.BatchNorm2d}
    for child in block:
        if isinstance(child, kinds.get(frozen, ())):
            child.requires_grad_(False)
    exact = copy.deepcopy(block).double()
    with torch.autocast(device, torch.bfloat16):
        y = block(x)
    want = exact(x.double())
    maps = torch.float32 if device == "cpu" else torch.bfloat16  # the CPU trains in float32
    assert y.dtype == maps
    assert_close(y, want)
    cotangent = torch.randn_like(want)
    y.backward(cotangent.to(maps)), want.backward(cotangent)
    for p, q in zip(block.parameters(), exact.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None) == (not p.requires_grad)
        if p.grad is not None:
            assert p.grad.dtype == torch.float32
            assert_close(p.grad, q.grad, maps)


@pytest.mark.parametrize("channels", [8, 300], ids=["own kernels", "torch's"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_backward_pass_inside_autocast(channels, layout, device):
    """Advised against, and done: the same as outside."""
    block = ConvBNReLU(channels, channels, 3).to(memory_format=layout)
    x = torch.randn(2, channels, 4, 4).contiguous(memory_format=layout)
    gradients = []
    for inside in (False, True):
        with torch.autocast(device, torch.bfloat16):
            loss = block(x).float().square().sum()
            if inside:
                loss.backward()
        if not inside:
            loss.backward()
        gradients.append([p.grad for p in block.parameters()])
        block.zero_grad()
    for got, want in zip(*gradients, strict=True):
        assert_close(got, want, torch.float32 if device == "cpu" else torch.bfloat16)


def test_autocast_of_a_half_model(device):
    block, x = make_block().eval(), torch.randn(2, 3, 8, 8)
    with torch.autocast(device, torch.bfloat16), torch.no_grad():
        y = copy.deepcopy(block).bfloat16()(x)
    assert_close(y, block.double()(x.double()), torch.bfloat16)


def test_batch_norm_is_recalibrated_in_float32_under_autocast(device):
    block, x = make_block(), torch.randn(2, 3, 8, 8)
    exact = copy.deepcopy(block).double()
    with torch.autocast(device, torch.bfloat16), torch.no_grad():
        block(x), exact(x.double())
    maps = torch.float32 if device == "cpu" else torch.bfloat16
    assert_close(block[1].running_var, exact[1].running_var, maps)


def test_a_plain_tensor_in_place_of_a_weight():
    """As hypernetworks do: the children run themselves."""
    block, x = make_block(), torch.randn(2, 3, 8, 8)
    want = block(x).detach()
    weight = block[0].weight.detach().clone()
    del block[0].weight
    block[0].weight = weight
    assert_close(block(x), want)
