"""The library's own CUDA convolutions, which take maps in channels_last: on a GPU or emulated.

Half types, tf32, and the channel counts and kernels at which tiles and fragments end.
"""

import os

import pytest
import torch
from conftest import assert_close, skip
from simt.build import count_launches, set_allow_tf32
from torch import Tensor

from colorseg import _C, ops, reference

pytestmark = pytest.mark.every_device

STRICT = 1e-6  # of float32 in three products of tf32 each
KERNELS = {
    "1x1": {"kernel": 1},
    "3x3": {},
    "4x4": {"kernel": 4, "padding": [1, 2, 1, 2]},
    "7x7": {"kernel": 7, "padding": [3, 3, 3, 3]},
    "stride 2": {"stride": 2},
    "transposed": {"stride": 2, "transposed": True, "output_padding": 1},
    "upsampled": {"upsample": True},
    "upsampled 5x5": {"upsample": True, "kernel": 5, "padding": [2, 2, 2, 2]},
    "skip": {"skip": 5},
    "wide skip": {"skip": 40},
}


@pytest.fixture(autouse=True)
def set_tf32(device):
    """Sets whether the kernels may use it; they may not without a call, nor after the test."""
    if device == "cpu" and not os.environ.get("COLORSEG_SIMT"):
        skip("simt")
    set_to = _C.set_allow_tf32 if device == "cuda" else set_allow_tf32
    set_to(False)
    yield set_to
    set_to(False)


def run(
    dtype, channels=(24, 40), size=(2, 9, 11), kernel=3, padding=(1, 1, 1, 1), stride=1,
    transposed=False, output_padding=0, upsample=False, skip=0, skip_gradient=True,
):  # fmt: skip
    """(got, want) of the result and of the gradients of x, skip, weight and bias, in that order."""
    n, height, width = size
    scale = 2 if upsample else 1
    shape = (channels[0] + skip, channels[1]) if transposed else (channels[1], channels[0] + skip)
    x = torch.randn(n, channels[0], height, width)
    skipped = torch.randn(n, skip, scale * height, scale * width) if skip else None
    weight, bias = torch.randn(*shape, kernel, kernel), torch.randn(channels[1])
    tensors = [None if t is None else t.to(dtype) for t in (x, weight, bias, skipped)]
    x, weight, bias, skipped = tensors
    x = x.contiguous(memory_format=torch.channels_last)
    tail = (
        None, None, False, upsample, [stride] * 2, list(padding), [1, 1], 1, transposed,
        [output_padding] * 2,
    )  # fmt: skip
    launches = count_launches() if x.device.type == "cpu" else 0
    y = torch.ops.colorseg.conv2d.default(x, weight, bias, skipped, *tail)
    if x.device.type == "cpu":
        assert count_launches() == launches + 2, "a weight packed, and a convolution"
    leaves = [None if t is None else t.double().requires_grad_() for t in tensors]
    seen = torch.nn.functional.interpolate(leaves[0], scale_factor=2) if upsample else leaves[0]
    inputs = seen if skipped is None else torch.cat([seen, leaves[3]], 1)
    top, bottom, left, right = padding
    if not transposed:
        inputs = torch.nn.functional.pad(inputs, (left, right, top, bottom))
    want = reference.conv2d(
        inputs, leaves[1], leaves[2], stride=stride, padding=top if transposed else 0,
        transposed=transposed, output_padding=output_padding,
    )  # fmt: skip
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    cotangent = torch.randn_like(want).to(dtype)
    skips = bool(skip and skip_gradient)
    x_grad, weight_grad, bias_grad, skip_grad, *_ = torch.ops.colorseg.conv2d_backward.default(
        cotangent, x, weight, skipped, *tail, True, skips, True, True
    )
    wanted = [leaves[0], *([leaves[3]] if skips else []), *leaves[1:3]]
    exact = torch.autograd.grad(want, wanted, cotangent.double())
    got = [x_grad, *([skip_grad] if skips else []), weight_grad, bias_grad]
    return [(y, want), *zip(got, exact, strict=True)]


def error(got: Tensor, want: Tensor) -> float:
    return ((got - want).abs().max() / want.abs().max()).item()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_half_types(kernel, dtype):
    for got, want in run(dtype, **KERNELS[kernel]):
        assert got.dtype == dtype
        assert_close(got, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels", [(2, 1), (3, 8), (17, 33), (64, 72), (128, 100)], ids=str)
def test_channels(channels, dtype):
    # in half types cuDNN is faster at many channels of one map
    skip = 2 if channels[0] >= 64 else 0
    for got, want in run(dtype, (channels[0] - skip, channels[1]), size=(3, 5, 6), skip=skip):
        assert_close(got, want)


@pytest.mark.parametrize("kernel", KERNELS)
def test_strict_float32(kernel):
    """No worse than float32 itself, whose own rounding is 6e-8 of each product."""
    for got, want in run(torch.float32, **KERNELS[kernel]):
        assert error(got, want) < STRICT


@pytest.mark.parametrize("kernel", KERNELS)
def test_tf32(kernel, set_tf32):
    """Where torch allows it: ten bits of each factor, and all of the sum."""
    set_tf32(True)
    errors = [error(got, want) for got, want in run(torch.float32, **KERNELS[kernel])]
    assert max(errors) < 2e-3
    assert max(errors[:-1]) > STRICT, "float32 was meant to be shortened"


@pytest.mark.parametrize("size", [(1, 1, 2), (40, 2, 1), (1, 40, 3), (1, 3, 70)], ids=str)
def test_sizes(size):
    """One image over many tiles, and many images in one."""
    for got, want in run(torch.float32, (4, 4), size):
        assert_close(got, want)


@pytest.mark.parametrize("skip", [63, 62])
def test_pixels_of_more_vectors_than_a_warp_has_threads(skip):
    """128 channels of float32 in two maps, each of which ends in a vector of its own."""
    for got, want in run(torch.float32, (65, 8), kernel=1, padding=(0,) * 4, skip=skip):
        assert_close(got, want)


@pytest.mark.parametrize("kilobytes", [99, 163])
@pytest.mark.parametrize("skip_gradient", [True, False])
@pytest.mark.parametrize(("dtype", "out"), [(torch.float32, 48), (torch.float16, 128)], ids=str)
def test_devices_with_less_shared_memory(dtype, out, skip_gradient, kilobytes, monkeypatch):
    """The emulated one; those of GPUs are what they are."""
    monkeypatch.setenv("COLORSEG_SIMT_SHARED_KB", str(kilobytes))
    wide = {"skip": 40, "skip_gradient": skip_gradient}
    for got, want in run(dtype, (24, out), size=(2, 20, 20), **wide):
        assert_close(got, want, dtype)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_max_pool_of_a_result_in_phases(training, relu):
    """The squares of a convolution that doubles its map lie in four phases."""
    draw = [torch.randint(-9, 10, size) for size in ((2, 8, 8, 6), (8, 8, 4, 4), (8,))]
    x, weight, bias = (t.double() for t in draw)  # no rounding, so no ties in one dtype only
    tensors = [x, weight / 4, bias, torch.rand(8).double() + 0.5, torch.randn(8).double()]
    exact = [t.requires_grad_() for t in tensors]
    ours = [t.detach().float().requires_grad_() for t in tensors]
    ours[0] = ours[0].detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    results = []
    for module, (x, *parameters) in ((ops, ours), (reference, exact)):
        stats = [torch.zeros(8, dtype=x.dtype), torch.ones(8, dtype=x.dtype)]
        y = module.conv_bn_relu(
            x, *parameters, *stats, stride=2, padding=1, transposed=True, resample="maxpool2",
            training=training, relu=relu,
        )  # fmt: skip
        results.append((y, *stats, *torch.autograd.grad(y.square().sum(), (x, *parameters))))
        with torch.no_grad():
            alone = module.conv_bn_relu(
                x, *parameters, *stats, stride=2, padding=1, transposed=True, resample="maxpool2"
            )
        results[-1] += (alone,)
    for got, want in zip(*results, strict=True):
        assert_close(got, want, torch.float32)
