"""How far the exponentials and logarithms of color_cross_entropy are from float64."""

import pytest
import torch
import torch.nn.functional as F

from colorseg import ops

pytestmark = pytest.mark.every_device


def largest_ulp_error(got, want):
    """In units of the last place that ``want`` has in float32."""
    _, exponent = torch.frexp(want)
    ulp = torch.ldexp(torch.ones_like(want), exponent - 24)
    return ((got.double() - want).abs() / ulp).max().item()


def test_error_of_exp():
    """Within 4 ulp of float64 (0.8 measured, 1.1 without fma): backward of a log-sum-exp of 0."""
    x = torch.linspace(-86.9, 86.9, 100_001)
    logits = torch.stack([torch.zeros_like(x), x])[None, :, None]
    labels, zero = torch.zeros(1, 1, len(x), dtype=torch.long), torch.zeros(1, 1, len(x))
    grad = torch.ops.colorseg.color_cross_entropy_backward.default(
        torch.ones(()),
        logits,
        labels,
        None,
        None,
        zero,
        torch.ones(()).double(),
        -100,
        0,
        0,
        0.05,
        "sum",
    )
    assert largest_ulp_error(grad[0, 1, 0], x.double().exp()) <= 4


def test_error_of_log():
    """Within 4 ulp of float64 (0.6 measured): the log-sum-exp of n zeros is log(n)."""
    counts = range(2, 257)
    label = torch.zeros(1, 1, 1, dtype=torch.long)
    got = [ops.color_cross_entropy(torch.zeros(1, n, 1, 1), label) for n in counts]
    want = torch.tensor(list(counts), dtype=torch.float64).log()
    assert largest_ulp_error(torch.stack(got), want) <= 4


def test_error_of_log_sum_exp():
    """-log softmax of two logits 0 and x is log(1 + exp(x)): 4 ulp (1.2 measured)."""
    x = torch.linspace(-80, 80, 100_001)
    logits = torch.stack([torch.zeros_like(x), x])[None, :, None]
    labels = torch.zeros(1, 1, len(x), dtype=torch.long)
    got = ops.color_cross_entropy(logits, labels, reduction="none").flatten()
    want = F.softplus(x.double())
    large = want > 1  # below, the ulp that counts is that of the sum, of which the log is taken
    assert largest_ulp_error(got[large], want[large]) <= 4
    assert (got - want)[~large].abs().max() <= 4 * torch.finfo(torch.float32).eps
