"""What all modules that ``optimize_for_inference`` makes have in common."""

from typing import Self

import torch
from torch import Tensor, nn


class InferenceModule(nn.Module):
    """Stays in eval mode; its forward begins with :func:`refuse_gradient`."""

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode; there is no other."""
        if mode:
            raise RuntimeError(
                "a model optimised for inference cannot be trained; "
                "train the model it was made from"
            )
        return super().train(mode)


def refuse_gradient(x: Tensor) -> None:
    """Raise if a gradient of ``x`` is expected."""
    if x.requires_grad and torch.is_grad_enabled():
        raise RuntimeError(
            "a model optimised for inference has no gradients; use the model it was made from"
        )
