"""Every mistake that conv2d names, and what it refuses to differentiate."""

import pytest
import torch
from conftest import assert_close
from torch._subclasses.fake_tensor import FakeTensorMode

from colorseg import ops

ERRORS = [
    ({"x": torch.zeros(1, 4, 8, 8).numpy()}, TypeError, "got ndarray: convert it by torch.as_tens"),
    ({"bias": [0.0, 1.0]}, TypeError, "a convolution takes tensors, got list: pass a tensor"),
    ({"x": torch.zeros(4, 8, 8)}, RuntimeError, "x must be (N, C, H, W), got 3 dimensions"),
    ({"x": torch.zeros(1, 3, 8, 8)}, RuntimeError, "expects 4 input channels, got 3 in x"),
    ({"x": torch.zeros(1, 4, 1, 1), "padding": 0}, RuntimeError, "a kernel of 3 x 3 does not fit"),
    ({"weight": torch.zeros(6, 4, 3)}, RuntimeError, "weight must have 4 dimensions"),
    ({"weight": torch.zeros(6, 4, 3, 3).double()}, RuntimeError, "weight must have the dtype of x"),
    (
        {"x": torch.zeros(1, 4, 8, 8).half()},
        RuntimeError,
        "weight must have the dtype of x, Half, got Float",
    ),
    ({"x": torch.zeros(1, 4, 8, 8).cfloat()}, RuntimeError, "x must be float32, float64, bfloat16"),
    ({"bias": torch.zeros(5)}, RuntimeError, "bias must have shape (6), got (5)"),
    ({"skip": torch.zeros(1, 2, 4, 4)}, RuntimeError, "skip must be (1, any, 8, 8)"),
    ({"groups": 3}, RuntimeError, "expects 12 input channels"),
    ({"stride": 0}, RuntimeError, "stride and dilation must be positive"),
    ({"padding": -1}, RuntimeError, "padding must not be negative"),
    (
        {"transposed": True, "weight": torch.zeros(4, 6, 3, 3), "output_padding": 1},
        RuntimeError,
        "output_padding must be smaller",
    ),
    ({"output_padding": 1}, ValueError, "belongs to transposed"),
    ({"padding": "valid"}, ValueError, "padding must be an int, a pair of ints or 'same'"),
    ({"padding": "same", "stride": 2}, ValueError, "padding='same' needs stride 1"),
    ({"stride": (1, 2, 3)}, TypeError, "stride must be an int or a pair of ints"),
    ({"groups": 1.0}, TypeError, "groups must be an int"),
]


@pytest.mark.parametrize(("change", "error", "message"), ERRORS, ids=[e[2] for e in ERRORS])
def test_errors(change, error, message):
    arguments = {
        "x": torch.zeros(1, 4, 8, 8),
        "weight": torch.zeros(6, 4, 3, 3),
        "bias": torch.zeros(6),
        "padding": 1,
    }
    with pytest.raises(error) as raised:
        ops.conv2d(**{**arguments, **change})
    assert message in str(raised.value)


def test_second_derivative_and_forward_mode_are_refused():
    x, weight = (
        torch.randn(1, 2, 4, 4, requires_grad=True),
        torch.randn(2, 2, 3, 3, requires_grad=True),
    )
    (grad,) = torch.autograd.grad(ops.conv2d(x, weight).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"no second derivative.*colorseg\.unfuse"):
        grad.sum().backward()
    x, weight = x.detach(), weight.detach()
    for function, t in ((lambda t: ops.conv2d(t, weight), x), (lambda t: ops.conv2d(x, t), weight)):
        with pytest.raises(RuntimeError, match="no forward-mode derivative"):
            torch.func.jvp(function, (t,), (t,))


def test_devices_without_kernels_are_named():
    with FakeTensorMode():  # needs no such device
        x, weight = torch.zeros(1, 2, 4, 4, device="xpu"), torch.zeros(2, 2, 3, 3, device="xpu")
    with pytest.raises(RuntimeError, match=r"no kernel for xpu tensors.*unfuse"):
        ops.conv2d(x, weight)


def test_vmap_is_a_loop():
    x, weight = torch.randn(3, 1, 2, 4, 4), torch.randn(2, 2, 3, 3)
    batched = torch.vmap(lambda image: ops.conv2d(image, weight))(x)
    assert_close(batched, torch.stack([ops.conv2d(image, weight) for image in x]))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("channels", "out"), [(0, 2), (2, 0)])
def test_no_channels(channels, out, transposed):
    """For which torch gives results of another shape, or none."""
    shape = (channels, out) if transposed else (out, channels)
    message = f"needs channels to read and to write, got {channels} and {out}"
    with pytest.raises(RuntimeError, match=message):
        ops.conv2d(torch.ones(3, channels, 5, 4), torch.ones(*shape, 3, 3), transposed=transposed)
