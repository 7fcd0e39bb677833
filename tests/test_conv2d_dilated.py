"""Weight gradients tap by tap: channels_last, many channels, taps that read beyond the edges."""

import pytest
import torch
from conftest import assert_close
from parity import DTYPES, double, gradients, lay_out, leaf

from colorseg import ops, reference

pytestmark = pytest.mark.every_device

# (image, kernel, options): every tap live, some, one alone, none of a row
CASES = {
    "1x1": ((3, 5, 7), 1, {}),
    "1x1, padded": ((2, 4, 5), 1, {"padding": 1}),
    "1x1, one pixel": ((5, 1, 1), 1, {}),
    "dilated": ((2, 14, 11), 3, {"padding": 6, "dilation": 6}),
    "rates beyond the map": ((2, 6, 7), 3, {"padding": 9, "dilation": 9}),
    "on one axis": ((2, 6, 7), 3, {"padding": (1, 8), "dilation": (1, 8)}),
    "one line": ((2, 1, 7), 3, {"padding": 1}),
    "kernel 5, uneven": ((1, 9, 6), (5, 3), {"padding": (10, 2), "dilation": (5, 4)}),
}


@pytest.mark.parametrize("weight_layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("size", "kernel", "options"), CASES.values(), ids=CASES)
def test_gradients(size, kernel, options, dtype, weight_layout):
    n, height, width = size
    kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
    tensors = [
        lay_out(torch.randn(n, 64, height, width, dtype=dtype), "channels_last"),
        lay_out(torch.randn(70, 64, *kernel, dtype=dtype), weight_layout),
        torch.randn(70, dtype=dtype),
    ]
    ours, exact = [leaf(t) for t in tensors], [double(t) for t in tensors]
    y, want = ops.conv2d(*ours, **options), reference.conv2d(*exact, **options)
    assert_close(y, want)
    cotangent = torch.randn_like(want)
    got = gradients(y, ours, cotangent.to(dtype))
    for g, r in zip(got, gradients(want, exact, cotangent), strict=True):
        assert_close(g, r)
    assert got[1].stride() == ours[1].stride() or got[1].is_contiguous()


@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_one_gradient_alone(wanted):
    x = lay_out(torch.randn(2, 64, 6, 7, dtype=torch.float64), "channels_last")
    tensors = [x, torch.randn(64, 64, 3, 3).double(), torch.randn(64).double()]
    tensors[wanted].requires_grad_()
    options = {"padding": 5, "dilation": 5}
    results = [
        torch.autograd.grad(m.conv2d(*tensors, **options).square().sum(), tensors[wanted])[0]
        for m in (ops, reference)
    ]
    assert_close(*results)


def test_infinities_reach_only_the_taps_that_meet_them():
    x = torch.ones(1, 64, 4, 4).contiguous(memory_format=torch.channels_last)
    x[0, 3, 0, 0] = float("inf")
    weight = torch.zeros(64, 64, 3, 3, requires_grad=True)
    y = ops.conv2d(x, weight, padding=3, dilation=3)
    (grad,) = torch.autograd.grad(y.sum(), weight)
    met = torch.zeros(64, 3, 3, dtype=torch.bool)
    met[3, :2, :2] = True  # the corner, seen from itself, from the right and from below
    assert torch.equal(grad.isfinite().logical_not(), met.expand_as(grad))
