"""Convolutions of channels_last maps with many channels, which have kernels of their own.

Channels are multiples of 32, or ATen would convolve.  Winograd's products begin at 1600 pixels.
"""

import pickle

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_close
from parity import check_parity, gradients, lay_out, leaf

from colorseg import ops, reference
from colorseg.nn.folded import FoldedConv2d

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


def packed(x, weight, bias, residual, padding=0, dilation=1, relu=True, exact=True):
    """The inference kernel's result, whose weight must have been packed."""
    layout = [padding] * 4, [dilation] * 2
    packing = _C.conv2d_packing(x, weight, [1, 1], *layout, 1, exact)
    assert packing > 0
    weights = _C.pack_conv2d(weight, packing)
    return _C.packed_conv2d(x, weights, bias, residual, *layout, relu)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(
    ("kernel", "dilation", "size"),
    [
        (1, 1, (2, 7, 9)),
        (1, 1, (1, 1, 1)),
        (3, 1, (2, 7, 9)),
        (3, 2, (2, 14, 15)),
        (3, 4, (1, 28, 28)),
    ],
)
@pytest.mark.parametrize("channels", [(64, 96), (640, 64)], ids=str)
def test_packed(channels, kernel, dilation, size, biased, joined, relu):
    n, h, w = size
    x = lay_out(torch.randn(n, channels[0], h, w), "channels_last")
    weight = 0.1 * torch.randn(channels[1], channels[0], kernel, kernel)
    bias = torch.randn(channels[1]) if biased else None
    residual = torch.randn(n, channels[1], h, w) if joined else None
    padding = dilation * (kernel // 2)
    y = packed(x, weight, bias, residual, padding, dilation, relu)
    want = F.conv2d(
        x.double(), weight.double(), bias.double() if biased else None,
        padding=padding, dilation=dilation,
    )  # fmt: skip
    want = want + residual if joined else want
    assert_close(y, want.relu() if relu else want)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize(
    ("size", "dilation", "padding"),
    [
        ((2, 7, 9), 1, 1),
        ((1, 4, 4), 1, 1),
        ((2, 15, 22), 2, 2),
        ((1, 28, 28), 4, 4),
        ((1, 9, 8), 1, 0),
    ],
    ids=str,
)
@pytest.mark.parametrize("channels", [(64, 96), (640, 64)], ids=str)
def test_larger_squares(channels, size, dilation, padding, joined, biased):
    """F(4x4): errors of up to 6e-6 of the largest value were seen, F(2x2)'s are a fifth of that."""
    n, h, w = size
    x = lay_out(torch.randn(n, channels[0], h, w), "channels_last")
    weight = 0.1 * torch.randn(channels[1], channels[0], 3, 3)
    options = {"padding": padding, "dilation": dilation}
    bias = torch.randn(channels[1]) if biased else None
    want = F.conv2d(x.double(), weight.double(), bias.double() if biased else None, **options)
    residual = torch.randn_like(want, dtype=torch.float32) if joined else None
    want = (want + residual if joined else want).relu()
    y = packed(x, weight, bias, residual, padding, dilation, exact=False)
    assert not torch.equal(y, packed(x, weight, bias, residual, padding, dilation))
    assert (y - want).abs().max() <= 1e-5 * want.abs().max()


@pytest.mark.parametrize(("precision", "side"), [("highest", 2), ("high", 4), ("medium", 4)])
def test_torch_says_whether_errors_may_be_larger(precision, side):
    conv = FoldedConv2d(
        torch.nn.Conv2d(64, 64, 3, padding=1), torch.nn.BatchNorm2d(64), torch.float32
    )
    before = torch.get_float32_matmul_precision()
    try:
        for setting in ("highest", precision):  # it may change between calls
            torch.set_float32_matmul_precision(setting)
            with torch.no_grad():
                conv(lay_out(torch.randn(1, 64, 8, 8), "channels_last"))
    finally:
        torch.set_float32_matmul_precision(before)
    products = {len(weights) for weights in conv._own.values()}
    assert products == {16, (side + 2) ** 2}


# depths of one and of two panels, and Winograd's products
@pytest.mark.parametrize(("channels", "kernel"), [((64, 96), 1), ((640, 64), 1), ((64, 96), 3)])
def test_packed_onto_the_residual(channels, kernel):
    x = lay_out(torch.randn(2, channels[0], 9, 11), "channels_last")
    weight, bias = 0.1 * torch.randn(channels[1], channels[0], kernel, kernel), torch.randn(96)
    y, options = lay_out(torch.randn(2, channels[1], 9, 11), "channels_last"), [kernel // 2] * 4
    bias = bias[: channels[1]]
    want = y + F.conv2d(x.double(), weight.double(), bias.double(), padding=kernel // 2)
    weights = _C.pack_conv2d(weight, 1 if kernel == 1 else 2)
    _C.packed_conv2d_(x, weights, bias, y, options, [1, 1], True)
    assert_close(y, want.relu())


@pytest.mark.parametrize(
    "y",
    [
        torch.randn(1, 64, 8, 8),
        lay_out(torch.randn(1, 64, 8, 7), "channels_last"),
        lay_out(torch.randn(1, 64, 8, 8).double(), "channels_last"),
    ],
)
def test_what_is_overwritten_must_fit(y):
    x = lay_out(torch.randn(1, 64, 8, 8), "channels_last")
    weights = _C.pack_conv2d(torch.randn(64, 64, 1, 1), 1)
    with pytest.raises(RuntimeError, match="y does not fit"):
        _C.packed_conv2d_(x, weights, None, y, [0] * 4, [1, 1], False)
    with pytest.raises(RuntimeError, match="y must not be x"):
        _C.packed_conv2d_(x, weights, None, x, [0] * 4, [1, 1], False)


def test_packed_keeps_nan():
    x = lay_out(torch.randn(1, 64, 5, 6), "channels_last")
    x[0, 3, 2, 2] = torch.nan
    y = packed(x, torch.ones(64, 64, 1, 1), None, None)
    assert y.isnan().sum() == 64
    assert y[0, :, 2, 2].isnan().all()


def test_a_pickle_forgets_what_suits_this_machine():
    x = lay_out(torch.randn(1, 64, 5, 6), "channels_last")
    conv = FoldedConv2d(torch.nn.Conv2d(64, 64, 1), torch.nn.BatchNorm2d(64), torch.float32)
    with torch.no_grad():
        want = conv(x)
        assert conv._own
        read = pickle.loads(pickle.dumps(conv))
        assert not read._own
        assert not read._packings
        assert torch.equal(read(x), want)


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


@pytest.mark.parametrize(
    ("channels", "kernel", "stride", "groups", "dtype"),
    [
        ((36, 64), 1, 1, 1, torch.float32),
        ((64, 36), 3, 1, 1, torch.float32),
        ((32, 32), 3, 1, 1, torch.float32),  # too few for Winograd
        ((64, 64), 3, 2, 1, torch.float32),
        ((64, 64), 1, 1, 2, torch.float32),
        ((64, 64), 5, 1, 1, torch.float32),
        ((64, 64), 1, 1, 1, torch.float64),
    ],
)
def test_left_to_aten(channels, kernel, stride, groups, dtype):
    x = torch.randn(1, channels[0], 40, 40, dtype=dtype)
    weight = torch.randn(channels[1], channels[0] // groups, kernel, kernel, dtype=dtype)
    padding = [kernel // 2] * 4
    assert _C.conv2d_packing(x, weight, [stride] * 2, padding, [1, 1], groups, False) == 0


def test_few_live_products_are_left_to_aten():
    """With dilation 12 on 28 x 28 pixels most of Winograd's products would be of zeros."""
    x, weight = torch.randn(1, 64, 28, 28), torch.randn(64, 64, 3, 3)
    assert _C.conv2d_packing(x, weight, [1, 1], [12] * 4, [12, 12], 1, True) == 0


@pytest.mark.parametrize("change", ["channels", "dtype", "packed"])
def test_what_was_not_packed_for_it_is_refused(change):
    x, weight = torch.randn(1, 64, 8, 8), torch.randn(64, 64, 1, 1)
    weights = _C.pack_conv2d(weight, 1)
    if change == "channels":
        x = x[:, :32]
    elif change == "dtype":
        x = x.double()
    else:
        weights = weights[:, :, :4]
    with pytest.raises(RuntimeError, match="what pack_conv2d made for such an x"):
        _C.packed_conv2d(x, weights, None, None, [0] * 4, [1, 1], False)


@pytest.mark.parametrize(
    ("weight", "packing"),
    [((64, 64, 1, 1), 0), ((64, 64, 1, 1), 2), ((64, 64, 3, 3), 1), ((64, 36, 1, 1), 1)],
)
def test_weights_that_cannot_be_packed_so_are_refused(weight, packing):
    with pytest.raises(RuntimeError, match="what conv2d_packing says of it"):
        _C.pack_conv2d(torch.randn(weight), packing)


def test_a_precision_per_backend_leaves_errors_small(monkeypatch):
    """torch puts such settings into no word, and raises."""

    def refuses():
        raise RuntimeError("a mix of the legacy and new APIs")

    monkeypatch.setattr(torch, "get_float32_matmul_precision", refuses)
    conv = FoldedConv2d(
        torch.nn.Conv2d(64, 64, 3, padding=1), torch.nn.BatchNorm2d(64), torch.float32
    )
    with torch.no_grad():
        conv(lay_out(torch.randn(1, 64, 8, 8), "channels_last"))
    assert {len(weights) for weights in conv._own.values()} == {16}


def test_strided_bias_and_weight():
    x = lay_out(torch.randn(1, 64, 40, 41), "channels_last")
    weight = (0.1 * torch.randn(64, 64, 3, 6))[..., ::2]
    check_parity(ops.conv2d, reference.conv2d, [x, weight, torch.randn(128)[::2]], padding=1)


@pytest.mark.parametrize(
    ("bias", "residual"),
    [(torch.randn(3), None), (None, torch.randn(1, 64, 8, 7)), (None, torch.randn(64, 8, 8))],
)
def test_bias_and_residual_must_fit(bias, residual):
    x = torch.randn(1, 64, 8, 8)
    weights = _C.pack_conv2d(torch.randn(64, 64, 1, 1), 1)
    with pytest.raises(RuntimeError, match="does not fit"):
        _C.packed_conv2d(x, weights, bias, residual, [0] * 4, [1, 1], False)
