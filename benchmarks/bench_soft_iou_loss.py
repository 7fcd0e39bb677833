"""``soft_iou_loss`` of foreground and background, on logits of a segmentation network.

The backward pass is that of ``loss.backward()``; in the case "scaled" the loss has a factor.
"""

import sys
from collections.abc import Iterator

import torch
from torch import Tensor

from colorseg import ops, reference
from colorseg.benchmark import Case, main
from colorseg.benchmark.peers import operator_case

SHAPES = [(4, 2, 64, 64), (16, 2, 224, 224)]


def plain(logits: Tensor, target: Tensor) -> Tensor:
    """The formula as one writes it for two classes."""
    x = logits.softmax(1)[:, 1]
    intersection = (x * target).sum()
    union = (x + target - x * target).sum()
    return 1 - (intersection + 1e-6) / (union + 1e-6)


def cases() -> Iterator[Case]:
    for shape in SHAPES:
        torch.manual_seed(0)
        logits, target = torch.randn(shape), torch.randint(2, (shape[0], *shape[2:]))
        for name, direction, gradients in [
            ("foreground", "forward", ()),
            ("foreground", "forward+backward", (0,)),
            ("foreground scaled", "forward+backward", (0,)),
        ]:
            labels = ("soft_iou_loss", name, direction)
            # logits and labels are read, the gradient is written
            size = 4 * logits.numel() * (1 + len(gradients)) + 8 * target.numel()
            pair = (ops.soft_iou_loss, reference.soft_iou_loss)
            yield operator_case(
                labels, *pair, [logits, target], gradients=gradients, plain=plain, bytes=size,
                scaled=name.endswith("scaled"),
            )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(cases()))
