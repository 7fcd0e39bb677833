"""``fuse`` and ``unfuse`` swap classes and nothing else."""

import copy
import io
import pickle
from collections import OrderedDict

import pytest
import torch
from conftest import assert_close
from plain_twins import count_fused_calls, plain_block, train_steps
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import colorseg
from colorseg.models import ConvTransposeNet, PoolUpsampleNet, UNet
from colorseg.nn import ConvBNReLU, FusedSequential, SkipConv2d

pytestmark = pytest.mark.every_device


class Stage(nn.Sequential):
    """A subclass with the stock forward."""

    def __init__(self, *modules, note="made by __init__"):
        super().__init__(*modules)
        self.note = note


class Doubled(nn.Sequential):
    """A subclass with a forward of its own."""

    def forward(self, x):
        return 2 * super().forward(x)


class Net(nn.Module):
    """Sequentials at several depths, one inside another."""

    def __init__(self):
        super().__init__()
        self.stem = Stage(nn.Dropout(0.0), *plain_block(2, 4, 3), nn.Identity())
        inner = nn.Sequential(OrderedDict(first=plain_block(4, 4, 3, resample="maxpool2")))
        self.body = nn.Sequential(inner, *plain_block(4, 6, 3, relu=False), nn.Tanh())
        self.own = Doubled(*plain_block(6, 2, 3))

    def forward(self, x):
        return self.own(self.body(self.stem(x)))


def after(conv, *modules):
    return nn.Sequential(conv, *modules, nn.BatchNorm2d(4))


SEQUENTIALS = {
    "root": (lambda: plain_block(2, 4, 3), 1),
    "middle": (lambda: nn.Sequential(nn.Tanh(), *plain_block(2, 4, 3), nn.Conv2d(4, 2, 1)), 1),
    "two runs": (lambda: nn.Sequential(*plain_block(2, 4, 3), *plain_block(4, 2, 5, stride=2)), 2),
    "no relu": (lambda: plain_block(2, 4, 3, relu=False), 1),
    "two relus": (lambda: nn.Sequential(*plain_block(2, 4, 3), nn.ReLU()), 1),
    "in place": (lambda: nn.Sequential(*plain_block(2, 4, 3)[:-1], nn.ReLU(inplace=True)), 1),
    "valid": (lambda: after(nn.Conv2d(2, 4, 3, padding="valid")), 1),
    "rectangular": (lambda: after(nn.Conv2d(2, 4, (3, 1), (1, 2), (1, 0))), 1),
    "transposed": (lambda: plain_block(2, 4, 3, stride=2, transposed=True), 1),
    "nearest": (lambda: after(nn.Conv2d(2, 4, 1), nn.UpsamplingNearest2d(scale_factor=2)), 1),
    "nested": (Net, 3),
    "network": (lambda: colorseg.unfuse(PoolUpsampleNet(num_filters=4, num_in_channels=2)), 4),
}


def batches(count=1):
    return [[torch.randn(2, 2, 10, 12, dtype=torch.float64)] for _ in range(count)]


@pytest.mark.parametrize(("make", "runs"), SEQUENTIALS.values(), ids=SEQUENTIALS)
def test_fused_trains_like_plain(make, runs, monkeypatch):
    fused_calls = count_fused_calls(monkeypatch)
    plain = make().double()
    fused = copy.deepcopy(plain)
    assert colorseg.fuse(fused) is fused
    assert list(fused.state_dict()) == list(plain.state_dict())
    x = batches(2)
    for training in (True, False):
        plain.train(training), fused.train(training)
        for got, want in zip(train_steps(fused, x), train_steps(plain, x), strict=True):
            assert_close(got[0], want[0])
            assert_close(got[1], want[1])
    assert len(fused_calls) == 2 * runs * len(x)
    for name, tensor in plain.state_dict().items():
        assert_close(fused.state_dict()[name], tensor, torch.float64)


def test_what_is_fused_and_what_is_not():
    model = colorseg.fuse(Net())
    assert type(model.body) is type(model.body[0].first) is FusedSequential
    assert isinstance(model.stem, Stage)
    assert type(model.stem) is not Stage
    assert type(model.body[0]) is nn.Sequential  # no run of its own
    assert type(model.own) is Doubled
    assert repr(model.stem) == repr(Net().stem)


def classes(model):
    return [type(module) for module in model.modules()]


@pytest.mark.parametrize("make", [Net, UNet, lambda: plain_block(2, 4, 3)])
def test_unfuse_and_fuse_are_inverse(make):
    model = make()
    plain = classes(colorseg.unfuse(model))
    assert not {ConvBNReLU, FusedSequential, SkipConv2d} & set(plain)
    fused = classes(colorseg.fuse(model))
    assert classes(colorseg.fuse(model)) == fused != plain  # idempotent
    assert classes(colorseg.unfuse(model)) == plain
    assert classes(colorseg.unfuse(model)) == plain
    assert classes(colorseg.fuse(copy.deepcopy(model))) == fused


@pytest.mark.parametrize("network", [PoolUpsampleNet, ConvTransposeNet, UNet])
def test_unfuse_gives_plain_modules_and_fuse_the_blocks_back(network):
    model = network(num_filters=2)
    before, text = classes(model), repr(model)
    torch_classes = {cls for cls in classes(colorseg.unfuse(model)) if cls is not network}
    assert all(cls.__module__.startswith("torch.nn.") for cls in torch_classes)
    plain_text = text.replace("ConvBNReLU", "Sequential").replace("SkipConv2d", "Conv2d")
    assert repr(model) == plain_text
    assert classes(colorseg.fuse(model)) == before


def test_subclasses_of_blocks_come_back_too():
    class Own(ConvBNReLU):
        pass

    class Halved(ConvBNReLU):
        def forward(self, x, skip=None, residual=None):
            return super().forward(x, skip) / 2

    own, halved = colorseg.unfuse(Own(2, 3, 3)), colorseg.unfuse(Halved(2, 3, 3))
    assert type(own) is nn.Sequential
    assert type(colorseg.fuse(own)) is Own
    assert type(halved) is Halved  # torch knows no twin of it


def test_a_parametrised_skip_convolution_still_works():
    conv = weight_norm(SkipConv2d(5, 4, 3))
    x, skip = torch.randn(2, 3, 8, 8), torch.randn(2, 2, 8, 8)
    want = nn.functional.conv2d(torch.cat([x, skip], 1), conv.weight, conv.bias)
    assert_close(conv(x, skip), want, torch.float32)
    assert_close(colorseg.unfuse(conv)(torch.cat([x, skip], 1)), want, torch.float32)


def test_an_optimizer_stays_valid():
    x = batches(4)
    results = []
    for switch in (False, True):
        torch.manual_seed(0)
        model = Net().double()
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        for number, (batch,) in enumerate(x):
            if switch:
                (colorseg.unfuse if number % 2 else colorseg.fuse)(model)
            optimizer.zero_grad()
            model(batch).square().sum().backward()
            optimizer.step()
        results.append(model(x[0][0]))
    assert_close(*results)


def save_and_load(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, copy.copy, lambda m: pickle.loads(pickle.dumps(m)), save_and_load]
)
@pytest.mark.parametrize("part", ["stem", "body"])
def test_copies_of_fused_sequentials(duplicate, part):
    model = getattr(colorseg.fuse(Net()).eval(), part)
    other = duplicate(model)
    assert type(other) is type(model)
    assert getattr(other, "note", None) == getattr(model, "note", None)
    x = torch.randn(1, 2 if part == "stem" else 4, 8, 8)
    assert torch.equal(other(x), model(x))
    assert type(colorseg.unfuse(other)) is (Stage if part == "stem" else nn.Sequential)


def test_copies_of_an_unfused_network_can_be_fused():
    model = UNet(num_filters=2)
    before = classes(model)
    assert classes(colorseg.fuse(save_and_load(colorseg.unfuse(model)))) == before
