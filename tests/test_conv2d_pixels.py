"""Convolutions of channels_last maps with many channels, which have kernels of their own.

Channels are multiples of 32, or ATen would convolve.  Winograd's products begin at 1600 pixels.
"""

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_close
from parity import check_parity, gradients, lay_out, leaf

from colorseg import ops, reference

pytestmark = pytest.mark.cpu_only
_C = torch.ops.colorseg


def kernels_differ_from_aten():
    """Whether a 3x3 convolution of this many pixels has other bits than ATen's."""
    x = lay_out(torch.randn(1, 64, 40, 40), "channels_last")
    w = torch.randn(64, 64, 3, 3)
    return not torch.equal(ops.conv2d(x, w, padding=1), F.conv2d(x, w, padding=1))


@pytest.mark.parametrize("channels", [(64, 64), (96, 128)], ids=str)
@pytest.mark.parametrize(
    ("size", "dilation", "padding"),
    [
        ((2, 40, 41), 1, 1),
        ((3, 29, 30), 2, 2),
        ((1, 45, 50), 3, 3),
        ((2, 37, 39), 4, 4),
        ((1, 41, 43), 1, (2, 0)),
        ((2, 38, 40), 2, (3, 4)),
        ((1, 60, 40), (1, 2), (1, 2)),
        ((1, 44, 46), 1, 0),
    ],
    ids=str,
)
def test_winograd_of_pixels(size, dilation, padding, channels):
    assert kernels_differ_from_aten()
    n, h, w = size
    x = lay_out(torch.randn(n, channels[0], h, w), "channels_last")
    weight = 0.1 * torch.randn(channels[1], channels[0], 3, 3)
    inputs = [x, weight, torch.randn(channels[1])]
    y = check_parity(ops.conv2d, reference.conv2d, inputs, padding=padding, dilation=dilation)
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("kernel", [3, 1])
def test_sides_that_differ(kernel):
    """The blocks pad "same" and even kernels so; the operator takes (top, bottom, left, right)."""
    x = lay_out(torch.randn(1, 64, 41, 43), "channels_last")
    weight, sides = 0.1 * torch.randn(64, 64, kernel, kernel), [0, 2, 1, 3]
    weight.requires_grad_(), x.requires_grad_()
    options = [1, 1], sides, [1, 1], 1, False, [0, 0]
    y = _C.conv2d(x, weight, None, None, None, None, False, False, *options)
    wide = F.pad(x.double(), (1, 3, 0, 2))
    want = F.conv2d(wide, weight.double())
    assert_close(y, want)
    cotangent = torch.randn_like(y)
    for got, exact in zip(
        gradients(y, [x, weight], cotangent),
        gradients(want, [x, weight], cotangent.double()),
        strict=True,
    ):
        assert_close(got, exact)


@pytest.mark.parametrize("weight_layout", ["contiguous", "channels_last"])
def test_any_layout_of_the_weight(weight_layout):
    x = lay_out(torch.randn(1, 64, 41, 42), "channels_last")
    weight = lay_out(0.1 * torch.randn(96, 64, 3, 3), weight_layout)
    check_parity(ops.conv2d, reference.conv2d, [x, weight, None], padding=1)


# channels whose 1x1 kernels are above the least size of the weight gradient, and tiles of all sizes
@pytest.mark.parametrize("pixels", [1, 5, 13, 300, 1700])
def test_one_by_one(pixels):
    x = lay_out(torch.randn(1, 160, pixels, 1), "channels_last")
    weight = 0.1 * torch.randn(256, 160, 1, 1)
    check_parity(ops.conv2d, reference.conv2d, [x, weight, torch.randn(256)])


@pytest.mark.parametrize("dilation", [1, 5, 12])
def test_weight_gradient_of_dilated_kernels(dilation):
    x = lay_out(torch.randn(2, 192, 13, 11), "channels_last")
    weight = 0.1 * torch.randn(192, 192, 3, 3)
    check_parity(
        ops.conv2d, reference.conv2d, [x, weight, None], padding=dilation, dilation=dilation
    )


def test_threads_give_the_same_bits():
    x = lay_out(torch.randn(3, 160, 41, 43), "channels_last")
    weight, results, threads = 0.1 * torch.randn(256, 160, 3, 3), [], torch.get_num_threads()
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        inputs = leaf(x), leaf(weight)
        y = ops.conv2d(*inputs, padding=1)
        results.append([y, *gradients(y, inputs, torch.ones_like(y))])
    torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_strided_bias_and_weight():
    x = lay_out(torch.randn(1, 64, 40, 41), "channels_last")
    weight = (0.1 * torch.randn(64, 64, 3, 6))[..., ::2]
    check_parity(ops.conv2d, reference.conv2d, [x, weight, torch.randn(128)[::2]], padding=1)
