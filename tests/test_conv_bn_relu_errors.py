"""Every mistake that conv_bn_relu names, and its registration."""

import pytest
import torch
from block_cases import call, make_inputs, running_statistics
from parity import leaf

from colorseg import ops

ARGUMENTS = {
    "x": torch.zeros(2, 4, 8, 8),
    "weight": torch.zeros(6, 4, 3, 3),
    "bias": torch.zeros(6),
    "bn_weight": torch.ones(6),
    "bn_bias": torch.zeros(6),
    "running_mean": torch.zeros(6),
    "running_var": torch.ones(6),
}
ERRORS = [
    ({"x": torch.zeros(4, 8, 8)}, RuntimeError, "x must be (N, C, H, W), got 3 dimensions"),
    ({"x": torch.zeros(2, 5, 8, 8)}, RuntimeError, "expects 4 input channels, got 5 in x"),
    (
        {"skip": torch.zeros(2, 1, 8, 8)},
        RuntimeError,
        "expects 4 input channels, got 4 in x and 1 in skip",
    ),
    ({"bn_weight": torch.ones(5)}, RuntimeError, "bn_weight must have shape (6), got (5)"),
    (
        {"bn_bias": torch.zeros(6).half()},
        RuntimeError,
        "bn_bias must have the dtype of x, Float, or float32, got Half",
    ),
    (
        {"running_mean": torch.zeros(6, 1)},
        RuntimeError,
        "running_mean must have shape (6), got (6, 1)",
    ),
    ({"running_mean": None, "running_var": None}, RuntimeError, "needed outside training"),
    ({"running_mean": None}, ValueError, "running_mean and running_var go together"),
    (
        {"x": torch.zeros(1, 4, 3, 3), "training": True},
        RuntimeError,
        "needs more than 1 value per channel",
    ),
    (
        {"x": torch.zeros(1, 4, 3, 3), "resample": "maxpool2"},
        RuntimeError,
        "maxpool2 needs a map of at least 2 x 2",
    ),
    (
        {"resample": "maxpool3"},
        ValueError,
        "resample must be None, 'maxpool2' or 'upsample2', got 'maxpool3'",
    ),
    (
        {"residual": torch.zeros(2, 6, 6, 1)},
        RuntimeError,
        "residual must have the shape of the result, (2, 6, 6, 6), got (2, 6, 6, 1)",
    ),
    (
        {"residual": torch.zeros(2, 6, 6, 6), "resample": "maxpool2"},
        RuntimeError,
        "residual must have the shape of the result, (2, 6, 3, 3), got (2, 6, 6, 6)",
    ),
    (
        {"residual": torch.zeros(2, 6, 6, 6).double()},
        RuntimeError,
        "residual must have the dtype of x, Float, got Double",
    ),
]


@pytest.mark.parametrize(("change", "error", "message"), ERRORS, ids=[e[2] for e in ERRORS])
def test_errors(change, error, message):
    with pytest.raises(error) as raised:
        ops.conv_bn_relu(**{**ARGUMENTS, **change})
    assert message in str(raised.value)


def test_one_pixel_upsampled_is_enough_for_statistics():
    """Batch norm stands behind the upsample: four values, as in torch."""
    x = torch.zeros(1, 4, 3, 3)
    y = ops.conv_bn_relu(**{**ARGUMENTS, "x": x}, training=True, resample="upsample2")
    assert y.shape == (1, 6, 2, 2)


def schema_arguments(training, resample, residual):
    """Positional arguments of ``colorseg::conv_bn_relu``."""
    case = {"skip": True, "padding": 1, "residual": residual}
    case["resample"] = None if resample == "none" else resample
    inputs, _ = make_inputs((2, 6, 4), torch.float32, "channels_last", **case)
    x, weight, bias, skip, bn_weight, bn_bias, *added = (leaf(t) for t in inputs)
    conv = (False, False, [1, 1], [1, 1, 1, 1], [1, 1], 1, False, [0, 0])
    tensors = (x, weight, bias, skip, *(added or [None]), bn_weight, bn_bias)
    stats = running_statistics(torch.float32)
    return *tensors, *stats, None, None, *conv, resample, training, 1e-5, True


@pytest.mark.parametrize("resample", ["none", "maxpool2", "upsample2"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
def test_opcheck(residual, training, resample):
    arguments = schema_arguments(training, resample, residual)
    torch.library.opcheck(torch.ops.colorseg.conv_bn_relu.default, arguments)
    inference = (*arguments[:-3], *arguments[-2:])
    detached = [t.detach() if isinstance(t, torch.Tensor) else t for t in inference]
    torch.library.opcheck(torch.ops.colorseg.conv_bn_relu_inference.default, tuple(detached))


@pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize("resample", ["none", "maxpool2", "upsample2"])
def test_opcheck_backward(resample, residual):
    arguments = [
        t.detach() if isinstance(t, torch.Tensor) else t
        for t in schema_arguments(True, resample, residual)
    ]
    y, *saved = torch.ops.colorseg.conv_bn_relu.default(*arguments)
    x, weight, _, skip, _, bn_weight, bn_bias = arguments[:7]
    backward = (
        torch.randn_like(y),
        x,
        weight,
        skip,
        y if residual else None,
        bn_weight,
        bn_bias,
        *saved,
        *arguments[9:],
        True,
        True,
        True,
        True,
    )
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(
        torch.ops.colorseg.conv_bn_relu_backward.default, backward, test_utils=checks
    )


def test_second_derivative_is_refused():
    inputs, options = make_inputs((2, 8, 10), torch.float32, padding=1)
    leaves = [leaf(t) for t in inputs]
    y = call(ops, leaves, running_statistics(torch.float32), training=True, **options)
    (grad,) = torch.autograd.grad(y.square().sum(), leaves[0], create_graph=True)
    with pytest.raises(RuntimeError, match=r"no second derivative.*colorseg\.unfuse"):
        grad.square().sum().backward()
