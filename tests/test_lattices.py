"""3x3 kernels dilated by a third of a map or more: the few lines that meet are lattices."""

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_close
from parity import lay_out

from colorseg.nn.folded import FoldedConv2d

pytestmark = pytest.mark.cpu_only
_C = torch.ops.colorseg
LATTICES = {1: 4, 2: 5, 3: 6}  # packings, by the most lines


def convolved(x, weight, bias, dilation, residual=None, relu=False):
    """In float64, by torch."""
    y = F.conv2d(
        x.double(), weight.double(), None if bias is None else bias.double(),
        padding=dilation, dilation=dilation,
    )  # fmt: skip
    y = y if residual is None else y + residual
    return y.relu() if relu else y


def layout(dilation):
    return [dilation[0]] * 2 + [dilation[1]] * 2, list(dilation)


# of one to three lines each way, of both numbers of lines and of one, smaller than the dilation too
@pytest.mark.parametrize(
    ("size", "dilation", "lines"),
    [
        ((2, 7, 8), (3, 4), 3),
        ((1, 9, 6), (3, 6), 3),
        ((3, 8, 5), (4, 5), 2),
        ((2, 5, 11), (3, 6), 2),
        ((2, 4, 5), (6, 5), 1),
        ((1, 1, 3), (1, 1), 3),
        ((2, 28, 28), (12, 24), 3),
        ((40, 5, 7), (2, 3), 3),  # more lattices than a part has
    ],
    ids=str,
)
@pytest.mark.parametrize("channels", [(64, 96), (640, 32)], ids=str)
@pytest.mark.parametrize("after", ["nothing", "bias", "residual and relu"])
def test_parity(size, dilation, lines, channels, after):
    n, h, w = size
    x = lay_out(torch.randn(n, channels[0], h, w), "channels_last")
    weight = 0.1 * torch.randn(channels[1], channels[0], 3, 3)
    bias = None if after == "nothing" else torch.randn(channels[1])
    joined = after == "residual and relu"
    residual = torch.randn(n, channels[1], h, w) if joined else None
    want = convolved(x, weight, bias, dilation, residual, joined)
    for most in range(lines, 4):  # a weight that is packed for more lines serves fewer, too
        packed = _C.pack_conv2d(weight, LATTICES[most])
        assert_close(_C.packed_conv2d(x, packed, bias, residual, *layout(dilation), joined), want)
    if residual is not None:
        y = lay_out(residual.clone(), "channels_last")
        _C.packed_conv2d_(x, packed, bias, y, *layout(dilation), True)
        assert_close(y, want)


def test_the_same_bits_with_any_number_of_threads():
    x, weight = lay_out(torch.randn(3, 64, 28, 28), "channels_last"), torch.randn(96, 64, 3, 3)
    packed, threads, results = _C.pack_conv2d(weight, LATTICES[3]), torch.get_num_threads(), []
    for count in (1, 2, 3, 5):  # fewer and more than there are parts
        torch.set_num_threads(count)
        results.append(_C.packed_conv2d(x, packed, None, None, *layout((12, 12)), False))
    torch.set_num_threads(threads)
    assert all(torch.equal(y, results[0]) for y in results)


def test_error_is_at_most_twice_that_of_torch():
    torch.manual_seed(0)
    x = lay_out(torch.rand(2, 512, 14, 14) + 1, "channels_last")
    weight = torch.randn(64, 512, 3, 3)
    want = convolved(x, weight, None, (6, 6))
    y = _C.packed_conv2d(x, _C.pack_conv2d(weight, LATTICES[3]), None, None, *layout((6, 6)), False)
    theirs = F.conv2d(x, weight, padding=6, dilation=6)
    largest = want.abs().max()
    assert (y - want).abs().max() <= 2 * (theirs - want).abs().max() + 3e-7 * largest


@pytest.mark.parametrize(
    ("batch", "size", "dilation", "lines"), [(4, 28, 12, 3), (4, 28, 24, 2), (4, 28, 36, 1)]
)
def test_chosen_by_folded_convolutions(batch, size, dilation, lines):
    conv = torch.nn.Conv2d(64, 64, 3, padding=dilation, dilation=dilation)
    bn = torch.nn.BatchNorm2d(64).eval()
    folded = FoldedConv2d(conv, bn, torch.float32, relu=True)
    x = lay_out(torch.randn(batch, 64, size, size), "channels_last")
    with torch.no_grad():
        assert_close(folded(x), bn.double()(conv.double()(x.double())).relu())
    assert list(folded._own) == [LATTICES[lines]]


@pytest.mark.parametrize(
    ("batch", "size", "padding", "dilation", "packing"),
    [(1, 14, 6, 6, 0), (4, 28, 4, 4, 2), (4, 28, 11, 12, 0)],
    ids=["few pixels a weight", "many lines", "another padding"],
)
def test_not_chosen(batch, size, padding, dilation, packing):
    """Winograd's products serve many lines; of few lines most of them would be of zeros."""
    x = lay_out(torch.randn(batch, 64, size, size), "channels_last")
    options = [padding] * 4, [dilation] * 2, 1, True
    assert _C.conv2d_packing(x, torch.randn(64, 64, 3, 3), [1, 1], *options) == packing


def test_a_dilation_of_zero_is_refused():
    """Of torch's message there is nothing to fall back to: ``nn.Conv2d`` takes it."""
    x, weight = torch.randn(1, 64, 8, 8), torch.randn(64, 64, 3, 3)
    packing = _C.conv2d_packing(x, weight, [1, 1], [0] * 4, [0, 0], 1, True)
    packed = _C.pack_conv2d(weight, max(packing, LATTICES[1]))
    with pytest.raises(RuntimeError, match="dilation must be above 0"):
        _C.packed_conv2d(x, packed, None, None, [0] * 4, [0, 0], False)


def test_forms_that_differ_each_way_are_refused():
    x, packed = torch.randn(1, 64, 8, 8), _C.pack_conv2d(torch.randn(64, 64, 3, 3), LATTICES[3])
    with pytest.raises(RuntimeError, match="as many each way"):
        _C.packed_conv2d(x, packed[:, :1].contiguous(), None, None, [8] * 4, [8, 8], False)


@pytest.mark.parametrize(("padding", "dilation", "size"), [(3, 3, 7), (2, 3, 6)])
def test_weights_packed_for_fewer_lines_are_refused(padding, dilation, size):
    packed = _C.pack_conv2d(torch.randn(32, 64, 3, 3), LATTICES[2])
    x = lay_out(torch.randn(1, 64, size, size), "channels_last")
    with pytest.raises(RuntimeError, match="fewer lines, or another padding"):
        _C.packed_conv2d(x, packed, None, None, [padding] * 4, [dilation] * 2, False)
