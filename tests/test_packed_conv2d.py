"""The inference operators of channels_last maps with many channels: weights packed beforehand."""

import pickle

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_close
from parity import lay_out

from colorseg.nn.folded import FoldedConv2d

pytestmark = pytest.mark.cpu_only
_C = torch.ops.colorseg


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


@pytest.mark.parametrize(
    ("bias", "residual"),
    [(torch.randn(3), None), (None, torch.randn(1, 64, 8, 7)), (None, torch.randn(64, 8, 8))],
)
def test_bias_and_residual_must_fit(bias, residual):
    x = torch.randn(1, 64, 8, 8)
    weights = _C.pack_conv2d(torch.randn(64, 64, 1, 1), 1)
    with pytest.raises(RuntimeError, match="does not fit"):
        _C.packed_conv2d(x, weights, bias, residual, [0] * 4, [1, 1], False)
