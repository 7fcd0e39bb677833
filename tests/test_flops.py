"""FlopCounterMode sees fused networks as it sees their plain twins."""

import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import colorseg
from colorseg.models import NETWORKS


def flops(model: torch.nn.Module, x: torch.Tensor, train: bool) -> int:
    """Total of a forward, and with ``train`` of a backward pass."""
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(train):
        y = model.train(train)(x)
        if train:
            y.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("train", [True, False], ids=["train", "infer"])
@pytest.mark.parametrize("name", NETWORKS)
def test_fused_and_plain_count_alike(name, train):
    model = NETWORKS[name]()
    plain = colorseg.unfuse(copy.deepcopy(model))
    for size in ((2, 1, 32, 32), (1, 1, 20, 12)):
        x = torch.randn(size)
        assert flops(model, x, train) == flops(plain, x, train) > 0


def test_forward_is_the_summary():
    model = NETWORKS["unet"]()
    connections = colorseg.models.summary(model, (1, 32, 32)).total("connections")
    assert flops(model, torch.randn(1, 1, 32, 32), train=False) == 2 * connections
