"""Every mistake that color_cross_entropy names."""

import pytest
import torch

from colorseg import ops
from colorseg.palette import Palette

LOGITS, LABELS = torch.zeros(2, 5, 4, 4), torch.zeros(2, 4, 4, dtype=torch.long)
RGB, PALETTE = torch.zeros(2, 3, 4, 4), torch.rand(5, 3)
SOFT = {"target": RGB, "palette": PALETTE, "soft_neighbors": 2}


def labels_with(*values):
    """Labels 0 but for the given values."""
    labels = LABELS.clone()
    labels[1, 2, : len(values)] = torch.tensor(values)
    return labels


ERRORS = [
    ({"logits": {"out": LOGITS}}, TypeError, "got dict: pass model(x)['out']"),
    ({"palette": Palette.horse24()}, TypeError, "got Palette: pass palette.colors"),
    ({"palette": [[0.0, 0.0, 0.0]]}, TypeError, "got list: pass torch.as_tensor(palette)"),
    ({"target": LABELS.numpy()}, TypeError, "target must be a tensor, got ndarray: convert it by"),
    ({"weight": [1.0] * 5}, TypeError, "weight must be a tensor, got list: pass a tensor"),
    ({"ignore_index": None}, TypeError, "a whole number, got None; leave it out (-100)"),
    (
        {"logits": torch.zeros(2, 5, 4)},
        RuntimeError,
        "logits must be (N, C, H, W), got 3 dimensions",
    ),
    ({"logits": torch.zeros(2, 0, 4, 4)}, RuntimeError, "logits must have at least one channel"),
    (
        {"target": LABELS[:, :2]},
        RuntimeError,
        "labels must be (N, H, W) = (2, 4, 4), got (2, 2, 4)",
    ),
    ({"target": LABELS.int()}, RuntimeError, "labels must be uint8, int64 or bool, got Int"),
    (
        {"target": labels_with(7, 9)},
        RuntimeError,
        "2 labels are outside 0..4 (the logits have 5 channels), the first is 7",
    ),
    (
        {"target": labels_with(-1)},
        RuntimeError,
        "1 labels are outside 0..4 (the logits have 5 channels), the first is -1",
    ),
    (
        {"target": labels_with(255).byte()},
        RuntimeError,
        "the first is 255; only ignore_index=-100 may be",
    ),
    ({"target": RGB}, RuntimeError, "an RGB target needs a palette"),
    (
        {"target": RGB, "palette": PALETTE[:4]},
        RuntimeError,
        "the palette has 4 colors, the logits have 5 channels",
    ),
    (
        {"target": RGB, "palette": PALETTE[:0]},
        RuntimeError,
        "palette must be (K, 3) with at least one color",
    ),
    ({"target": RGB, "palette": PALETTE[:, :2]}, RuntimeError, "palette must be (K, 3)"),
    ({"target": RGB[:, :2], "palette": PALETTE}, RuntimeError, "RGB images must be (N, 3, H, W)"),
    (
        {"target": RGB[:1], "palette": PALETTE},
        RuntimeError,
        "the RGB target must be (2, 3, 4, 4) to match the logits",
    ),
    (
        {"target": RGB.int(), "palette": PALETTE},
        TypeError,
        "an RGB target must be uint8 or floating point",
    ),
    ({"target": RGB, "palette": (PALETTE * 255).byte()}, TypeError, "divide 8-bit colors by 255"),
    ({"weight": torch.ones(4)}, RuntimeError, "weight must have shape (5), got (4)"),
    ({"weight": torch.ones(5, requires_grad=True)}, ValueError, "weight is not differentiated"),
    ({"label_smoothing": 1.5}, RuntimeError, "label_smoothing must be in 0..1, got 1.5"),
    ({"reduction": "max"}, ValueError, "reduction must be one of none, mean, sum, got 'max'"),
    ({"soft_neighbors": 2}, ValueError, "soft_neighbors needs an RGB target"),
    ({"soft_neighbors": True}, ValueError, "soft_neighbors must be a whole number, at least 0"),
    (SOFT | {"soft_neighbors": 6}, ValueError, "at most the number of palette colors, 5, got 6"),
    (SOFT | {"soft_sigma": 0}, ValueError, "soft_sigma must be above 0, got 0"),
]


@pytest.mark.parametrize(("change", "error", "message"), ERRORS, ids=[e[2] for e in ERRORS])
def test_errors(change, error, message):
    with pytest.raises(error) as raised:
        ops.color_cross_entropy(**{"logits": LOGITS, "target": LABELS, **change})
    assert message in str(raised.value)


def test_bad_labels_are_found_in_backward_too():
    """A label changed between forward and backward is an error, not a read out of bounds."""
    logits, labels = LOGITS.clone().requires_grad_(), LABELS.clone()
    loss = ops.color_cross_entropy(logits, labels, reduction="none")
    labels.data[0, 0, 0] = 99
    with pytest.raises(RuntimeError, match="outside 0"):
        loss.sum().backward()
