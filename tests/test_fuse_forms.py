"""``fuse`` of residual blocks and stems, recognised by what they compute."""

import copy
import logging
import pickle

import pytest
import torch
from conftest import assert_close
from plain_twins import count_fused_calls, train_steps
from torch import nn

import colorseg
from colorseg.nn.forms import BasicBlock, Bottleneck

pytestmark = pytest.mark.every_device


def conv(inputs, outputs, kernel, stride=1):
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)


class Basic(nn.Module):
    """As torchvision writes it."""

    def __init__(self, inputs=4, outputs=4, stride=1):
        super().__init__()
        self.conv1 = conv(inputs, outputs, 3, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = conv(outputs, outputs, 3)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)
            )

    def forward(self, feature):
        identity = feature
        out = self.conv1(feature)
        out = self.bn1(out)
        out = self.relu(out)
        out = self.conv2(out)
        out = self.bn2(out)
        if self.downsample is not None:
            identity = self.downsample(feature)
        out += identity
        return self.relu(out)


class Deep(Basic):
    def __init__(self, inputs=4, outputs=4, stride=1):
        super().__init__(inputs, outputs, stride)
        self.conv1, self.conv2 = conv(inputs, 2, 1), conv(2, 2, 3, stride)
        self.bn1, self.bn2 = nn.BatchNorm2d(2), nn.BatchNorm2d(2)
        self.conv3, self.bn3 = conv(2, outputs, 1), nn.BatchNorm2d(outputs)

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        identity = x if self.downsample is None else self.downsample(x)
        return self.relu(torch.add(identity, out))


class PreActivation(Basic):
    """The same children in another order."""

    def forward(self, x):
        y = self.conv1(self.relu(self.bn1(x)))
        return x + self.conv2(self.relu(self.bn2(y)))


class Halved(Basic):
    def forward(self, x):
        return super().forward(x) / 2


class Dependent(Basic):
    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else x


class Scaled(Basic):
    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(torch.add(self.bn2(self.conv2(y)), x, alpha=2))


class Unread(Basic):
    """Updates a batch norm whose result nobody reads."""

    def forward(self, x):
        self.bn2(x)
        return super().forward(x)


class Quieter(Basic):
    """Drops half of what it adds, but in training only."""

    def forward(self, x):
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if self.training:
            y = y * 0.5
        return self.relu(y + x)


class Watching(Basic):
    def __init__(self):
        super().__init__()
        self.seen, self.calls = [], torch.zeros(())
        self.register_buffer("batches", torch.zeros(()))


class Keeping(Watching):
    def forward(self, x):
        self.features = x
        return super().forward(x)


class Collecting(Watching):
    def forward(self, x):
        self.seen.append(x)
        return super().forward(x)


class Counting(Watching):
    def forward(self, x):
        self.batches += 1
        return super().forward(x)


class CountingAside(Watching):
    def forward(self, x):
        self.calls.add_(1)
        return super().forward(x)


def batches(count=2):
    return [[torch.randn(2, 4, 6, 8, dtype=torch.float64)] for _ in range(count)]


BLOCKS = {
    "basic": (Basic, BasicBlock, 2),
    "basic, downsample": (lambda: Basic(4, 6, 2), BasicBlock, 3),
    "bottleneck": (Deep, Bottleneck, 3),
    "bottleneck, downsample": (lambda: Deep(4, 6, 2), Bottleneck, 4),
}


@pytest.mark.parametrize(("make", "form", "runs"), BLOCKS.values(), ids=BLOCKS)
def test_fused_trains_like_plain(make, form, runs, monkeypatch):
    fused_calls = count_fused_calls(monkeypatch)
    plain = make().double()
    fused = colorseg.fuse(copy.deepcopy(plain))
    assert isinstance(fused, form)
    assert isinstance(fused, type(plain))
    assert list(fused.state_dict()) == list(plain.state_dict())
    x = batches()
    for training in (True, False):
        plain.train(training), fused.train(training)
        for got, want in zip(train_steps(fused, x), train_steps(plain, x), strict=True):
            assert_close(got[0], want[0])
            assert_close(got[1], want[1])
    assert len(fused_calls) == 2 * runs * len(x)
    for name, tensor in plain.state_dict().items():
        assert_close(fused.state_dict()[name], tensor, torch.float64)
    assert type(colorseg.unfuse(fused)) is type(plain)
    assert repr(fused) == repr(plain)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("make", [PreActivation, Halved, Dependent, Scaled, Unread, Quieter])
def test_other_forwards_are_left_alone(make, training):
    block = colorseg.fuse(make().train(training))
    assert type(block) is make
    assert {module.training for module in block.modules()} == {training}


@pytest.mark.parametrize("make", [Keeping, Collecting, Counting, CountingAside])
def test_forwards_that_leave_traces_are_left_alone(make):
    block = colorseg.fuse(make())
    assert type(block) is make
    assert not hasattr(block, "features")
    assert block.seen == []
    assert block.calls == block.batches == 0


def test_tracing_leaves_no_trace():
    block = Basic()
    block.bn1.register_forward_hook(lambda *_: pytest.fail("a child ran"))
    block.register_forward_hook(lambda *_: pytest.fail("the block ran"))
    before = copy.deepcopy(block.state_dict())
    colorseg.fuse(block)
    for name, tensor in block.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("child", ["conv1", "bn2", "relu"])
def test_a_watched_child_runs_itself(child):
    plain = Basic().double()
    fused, seen = colorseg.fuse(copy.deepcopy(plain)), []
    getattr(fused, child).register_forward_hook(lambda module, args, y: seen.append(y))
    ((x,),) = batches(1)
    assert_close(fused(x), plain(x))
    assert len(seen) == (2 if child == "relu" else 1)


def test_replaced_children_and_forwards_count():
    plain = Basic().double()
    plain.relu, plain.bn1 = nn.LeakyReLU(), nn.Identity()
    fused = colorseg.fuse(copy.deepcopy(plain))
    ((x,),) = batches(1)
    assert_close(fused(x), plain(x))
    plain.forward = lambda x: x
    assert type(colorseg.fuse(plain)) is Basic


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies(duplicate):
    block = colorseg.fuse(Basic(4, 6)).eval()
    other = duplicate(block)
    assert type(other) is type(block)
    x = torch.randn(1, 4, 6, 8)
    assert torch.equal(other(x), block(x))
    assert type(colorseg.unfuse(other)) is Basic


def test_verbose_says_what_happened(caplog):
    caplog.set_level(logging.INFO, "colorseg")
    colorseg.fuse(nn.Sequential(Basic(), PreActivation()), verbose=True)
    assert "fused 0: a Basic" in caplog.text
    assert "left 1.conv1 as it is: a PreActivation is no Sequential" in caplog.text
