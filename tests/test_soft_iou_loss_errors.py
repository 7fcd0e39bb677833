"""Every mistake that soft_iou_loss names."""

import pytest
import torch

from colorseg import ops

LOGITS, LABELS = torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.long)
ERRORS = [
    (
        {"logits": {"out": LOGITS}},
        TypeError,
        "soft_iou_loss takes tensors, got dict: pass model(x)[",
    ),
    ({"logits": torch.zeros(2, 3, 4)}, RuntimeError, "logits must be (N, C, H, W)"),
    (
        {"logits": torch.zeros(2, 1, 4, 4), "classes": "all"},
        RuntimeError,
        "at least 2 channels, background and foreground, got 1",
    ),
    (
        {"target": LABELS + 3},
        RuntimeError,
        "32 labels are outside 0..2 (the logits have 3 channels), the first is 3; pass ignore",
    ),
    ({"target": LABELS[:1]}, RuntimeError, "labels must be (N, H, W) = (2, 4, 4)"),
    ({"target": LABELS.float()}, RuntimeError, "labels must be uint8, int64 or bool, got Float"),
    ({"classes": []}, RuntimeError, "classes selects no class"),
    ({"classes": [3]}, RuntimeError, "class 3 is not in 0..2"),
    ({"classes": [1.0]}, TypeError, "classes must be 'foreground', 'all' or a list of ints"),
    ({"classes": "background"}, ValueError, "classes must be 'foreground', 'all' or a list of ids"),
    ({"per": "pixel"}, ValueError, "per must be 'batch' or 'image'"),
    ({"smooth": -1.0}, ValueError, "smooth must not be negative"),
    ({"weight": torch.ones(3)}, RuntimeError, "weight must have shape (2), got (3)"),
    ({"weight": torch.ones(2).double()}, RuntimeError, "weight must have the dtype of the logits"),
    (
        {"weight": torch.ones(2, requires_grad=True)},
        ValueError,
        "weight is not differentiated here",
    ),
    ({"reduction": "max"}, ValueError, "reduction must be one of"),
    ({"process_group": object(), "per": "image"}, ValueError, "process_group joins batches"),
]


@pytest.mark.parametrize(("change", "error", "message"), ERRORS, ids=[e[2] for e in ERRORS])
def test_errors(change, error, message):
    with pytest.raises(error) as raised:
        ops.soft_iou_loss(**{"logits": LOGITS, "target": LABELS, **change})
    assert message in str(raised.value)
