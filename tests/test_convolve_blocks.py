"""Blocks on our own convolution: pieces of images, bands of lines, pools of odd maps."""

import pytest
import torch
from block_cases import CASES, call, make_inputs, running_statistics, settled_cotangent
from conftest import assert_close
from parity import double, gradients, leaf

from colorseg import ops, reference

SIZES = {
    "pieces": (13, 8, 8),
    "odd pieces": (13, 9, 7),
    "many pieces": (100, 4, 4),
    "bands": (1, 92, 94),
    "odd bands": (1, 91, 93),
    "odd bands of two": (2, 71, 66),
    "odd bands of five": (5, 61, 47),
}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("case", [name for name in CASES if "groups" not in name])
def test_matches_float64(case, size, training):
    inputs, options = make_inputs(SIZES[size], torch.float32, **CASES[case])
    stats, exact_stats = running_statistics(torch.float32), running_statistics(torch.float64)
    ours, exact = [leaf(t) for t in inputs], [double(t) for t in inputs]
    y = call(ops, ours, stats, training=training, **options)
    want = call(reference, exact, exact_stats, training=training, **options)
    assert_close(y, want)
    for got, ref in zip(stats, exact_stats, strict=True):
        assert_close(got, ref)
    cotangent = settled_cotangent(exact, training, **options)
    got = gradients(y, ours, cotangent.float())
    for g, ref in zip(got, gradients(want, exact, cotangent), strict=True):
        assert_close(g, ref, torch.float32)
