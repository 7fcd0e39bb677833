"""Half types, which only the CUDA kernels read: they run on a GPU or in the emulation."""

import os

import pytest
import torch
from conftest import TOLERANCE, assert_close, skip

from colorseg import ops, reference
from colorseg.palette import Palette

pytestmark = pytest.mark.every_device

HALF = (torch.float16, torch.bfloat16)
PALETTE = Palette.horse24().colors


@pytest.fixture(autouse=True)
def cuda_kernels(device):
    if device == "cpu" and not os.environ.get("COLORSEG_SIMT"):
        skip("simt")


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("rgb", "neighbors"), [(False, 0), (True, 0), (True, 5)])
def test_color_cross_entropy(dtype, channels_last, rgb, neighbors, device):
    layout = torch.channels_last if channels_last else torch.contiguous_format
    logits = (3 * torch.randn(2, 24, 9, 11)).to(dtype).contiguous(memory_format=layout)
    target = torch.rand(2, 3, 9, 11) if rgb else torch.randint(0, 24, (2, 9, 11))
    weight, palette = torch.rand(24) + 0.5, PALETTE.to(device) if rgb else None
    loss, lse, normalizer, argmax, correct, valid, grad = (
        torch.ops.colorseg.color_cross_entropy.default(
            logits, target, palette, weight, -100, 0.1, neighbors, 0.2, "mean", True, True
        )
    )
    exact = logits.double().requires_grad_()
    want, want_argmax, want_correct, want_valid = reference.color_cross_entropy(
        exact, target, palette, weight=weight.double(), label_smoothing=0.1,
        soft_neighbors=neighbors, soft_sigma=0.2, return_stats=True,
    )  # fmt: skip
    (want_grad,) = torch.autograd.grad(want, exact)
    assert loss.dtype == lse.dtype == torch.float32
    assert grad.dtype == dtype
    assert grad.stride() == logits.stride()
    assert_close(loss, want)
    assert torch.equal(argmax, want_argmax)
    assert (correct.item(), valid.item()) == (want_correct.item(), want_valid.item())
    assert_close(grad, want_grad)
    backward = torch.ops.colorseg.color_cross_entropy_backward.default(
        torch.tensor(2.0),
        logits,
        target,
        palette,
        weight,
        lse,
        normalizer,
        -100,
        0.1,
        neighbors,
        0.2,
        "mean",
    )
    assert_close(backward, 2 * want_grad)
    assert (backward - 2 * want_grad).abs().max() <= TOLERANCE[dtype] * want_grad.abs().max()


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("channels", [2, 5])
def test_soft_iou_loss(dtype, channels):
    logits = (3 * torch.randn(2, channels, 9, 11)).to(dtype)
    target = torch.randint(0, channels, (2, 9, 11))
    options = ([*range(1, channels)], True, 1e-6, 1e-6, None, None, "mean")
    loss, sums, kept = torch.ops.colorseg.soft_iou_loss.default(logits, target, *options, True)
    exact = logits.double().requires_grad_()
    want = reference.soft_iou_loss(exact, target, per="image")
    (want_grad,) = torch.autograd.grad(want, exact)
    assert loss.dtype == torch.float32
    assert_close(loss, want)
    ignore = None if channels == 2 else 255
    grad = torch.ops.colorseg.soft_iou_loss_backward.default(
        torch.tensor(1.0), logits, kept, sums, *options[:4], ignore, *options[5:]
    )
    assert grad.dtype == dtype
    assert (grad - want_grad).abs().max() <= 2 * TOLERANCE[dtype] * want_grad.abs().max()


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("resample", ["none", "maxpool2", "upsample2"])
def test_conv_bn_relu(dtype, channels_last, resample):
    """Through a convolution that changes nothing: what is ours is what surrounds it."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(2, 40, 7, 9).to(dtype).contiguous(memory_format=layout)
    weight = torch.eye(40, dtype=dtype)[:, :, None, None].clone()
    gamma, beta = torch.rand(40) + 0.5, torch.randn(40)
    geometry = ([1, 1], [0, 0, 0, 0], [1, 1], 1, False, [0, 0])
    mode = (resample, True, 1e-5, True)
    args = (x, weight, None, None, None, gamma, beta, None, None, None, None, False, False)
    y, *saved = torch.ops.colorseg.conv_bn_relu.default(*args, *geometry, *mode)
    leaves = [t.double().requires_grad_() for t in (x, gamma, beta)]
    want = reference.conv_bn_relu(
        leaves[0], weight.double(), None, *leaves[1:], None, None, training=True,
        resample=None if resample == "none" else resample,
    )  # fmt: skip
    assert y.dtype == saved[0].dtype == dtype
    assert (y - want).abs().max() <= TOLERANCE[dtype] * want.abs().max()
    cotangent = torch.randn_like(want).to(dtype)
    grads = torch.ops.colorseg.conv_bn_relu_backward.default(
        cotangent.contiguous(memory_format=layout), x, weight, None, None, gamma, beta, *saved,
        None, None, False, False, *geometry, *mode, True, False, False, False,
    )  # fmt: skip
    wanted = torch.autograd.grad(want, leaves, cotangent.double())
    for got, exact in zip((grads[0], grads[5], grads[6]), wanted, strict=True):
        assert (got - exact).abs().max() <= 2 * TOLERANCE[dtype] * exact.abs().max()


def test_gradients_of_float16_that_are_scaled_up():
    """As by a GradScaler: what is in front of its factor is below float16's smallest number."""
    logits = torch.randn(1, 24, 256, 256).half().requires_grad_()
    target = torch.randint(0, 24, (1, 256, 256))
    loss = ops.color_cross_entropy(logits, target)
    (got,) = torch.autograd.grad(65536 * loss, logits)
    exact = logits.detach().double().requires_grad_()
    (want,) = torch.autograd.grad(65536 * reference.color_cross_entropy(exact, target), exact)
    assert_close(got, want)
    assert ((got - want).norm() / want.norm()) < 1e-3
