"""optimize_for_inference of Sequentials, of models that hold some, and of models that change."""

import copy

import pytest
import torch
from conftest import assert_close
from sequential_cases import SEQUENTIALS, conv, randomize
from test_fuse_forms import Basic
from torch import nn

from colorseg import fuse, optimize_for_inference
from colorseg.models import NETWORKS, UNet
from colorseg.nn import ConvBNReLU
from colorseg.nn.folded import FoldedConv2d
from colorseg.nn.packed import PackedChain


def check(model, x):
    """The optimised model against the model in float64; returns the former."""
    optimized = optimize_for_inference(model)
    with torch.no_grad():
        assert_close(optimized(x), copy.deepcopy(model).eval().double()(x.double()))
    return optimized


@pytest.mark.parametrize("size", [(16, 12), (9, 14)], ids=str)
@pytest.mark.parametrize("case", SEQUENTIALS)
def test_sequentials(case, size):
    model = SEQUENTIALS[case]()
    model = randomize(model) if case != "without gammas" else model.eval()
    for n in (1, 3, 20):
        check(model, torch.randn(n, 3, *size))


@pytest.mark.parametrize("size", [(12, 40), (9, 7)], ids=str)
def test_nan_wins_a_max_pool(size):
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.MaxPool2d(2), nn.BatchNorm2d(1)).eval()
    x = torch.randn(2, 1, *size)
    x[torch.rand(x.shape) < 0.1] = float("nan")
    check(model, x)


class Shortcut(nn.Module):
    """A block with a residual inside a block of ResNet, so folded and not packed."""

    def __init__(self, relu):
        super().__init__()
        self.block = ConvBNReLU(4, 4, 3, relu=relu)

    def forward(self, x):
        return self.block(x, residual=x)


@pytest.mark.parametrize("relu", [True, False])
def test_a_residual_of_a_folded_block(relu):
    block = Basic()
    block.downsample = Shortcut(relu)
    optimized = check(randomize(fuse(block)), torch.randn(2, 4, 8, 8))
    assert isinstance(optimized.downsample.block[0], FoldedConv2d)


class Encoder(nn.Module):
    """Sequentials around something that no chain has."""

    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(ConvBNReLU(3, 8, 3), conv(8, 8))
        self.inner = nn.ModuleDict({"up": nn.Sequential(ConvBNReLU(8, 8, 3), conv(8, 4))})
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        y = torch.tanh(self.down(x))
        return self.head(self.inner["up"](y).mean((2, 3)))


def test_a_model_with_sequentials_inside():
    model = randomize(Encoder()).train()
    optimized = check(model, torch.randn(3, 3, 9, 8))
    kept = [type(module).__name__ for module in optimized.modules()]
    assert kept == ["Encoder", "PackedChain", "ModuleDict", "PackedChain", "Linear"]
    assert model.training
    assert not optimized.training
    assert isinstance(model.down, nn.Sequential)


class Residual(nn.Sequential):
    """A Sequential that is more than its children."""

    def forward(self, x):
        return x + super().forward(x)


class Probabilities(UNet):
    """A network that is more than its blocks."""

    def forward(self, x):
        return super().forward(x).softmax(1)


def hooked(model):
    model.register_forward_hook(lambda _module, _inputs, y: y.tanh())
    return model


def repeated():
    block = ConvBNReLU(3, 3, 3)
    return nn.Sequential(block, block, conv(3, 5))


PARTS = {  # and the chains that are found in it
    "residual": (lambda: Residual(ConvBNReLU(3, 3, 3)), 1),
    "residual inside": (lambda: nn.Sequential(ConvBNReLU(3, 8, 3), Residual(conv(8, 8))), 1),
    "hook": (lambda: hooked(nn.Sequential(ConvBNReLU(3, 8, 3), conv(8, 8))), 1),
    "hook inside": (lambda: nn.Sequential(hooked(ConvBNReLU(3, 8, 3)), ConvBNReLU(8, 8, 3)), 1),
    "the same block twice": (repeated, 1),
    "a network with its own end": (lambda: Probabilities(num_in_channels=3), 4),
    "a hook on a network": (lambda: hooked(UNet(num_in_channels=3)), 4),
    "a network inside": (lambda: nn.Sequential(UNet(num_in_channels=3), nn.Softmax(1)), 1),
}


@pytest.mark.parametrize("case", PARTS)
def test_only_what_is_a_chain_is_replaced(case):
    make, chains = PARTS[case]
    optimized = check(randomize(make()), torch.randn(3, 3, 12, 8))
    assert sum(isinstance(module, PackedChain) for module in optimized.modules()) == chains


@pytest.mark.parametrize("make", [*NETWORKS.values(), Encoder])
def test_later_changes_of_the_model_change_nothing(make):
    model = randomize(make())
    channels = 3 if make is Encoder else 1
    optimized, x = optimize_for_inference(model), torch.rand(2, channels, 8, 8)
    with torch.no_grad():
        before = optimized(x)
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.zero_()
        assert torch.equal(optimized(x), before)
        assert not torch.equal(model(x), before)
