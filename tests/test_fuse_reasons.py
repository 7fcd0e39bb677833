"""What ``fuse`` leaves alone and why; children that change after it; hooks; what it logs."""

import copy
import logging

import pytest
import torch
from conftest import assert_close
from plain_twins import count_fused_calls, plain_block
from torch import nn
from torch.nn.utils import spectral_norm
from torch.nn.utils.parametrizations import weight_norm

import colorseg
from colorseg.nn import ConvBNReLU, SkipConv2d


@pytest.fixture
def fused_calls(monkeypatch):
    return count_fused_calls(monkeypatch)


@pytest.fixture
def log(caplog):
    """The lines colorseg logs, but for the number of blocks at the end, as a function."""
    caplog.set_level(logging.INFO, "colorseg")
    return lambda: [line for line in caplog.messages if not line.startswith("blocks fused: ")]


def conv(**options):
    return nn.Conv2d(2, 4, 3, **options)


def hooked(module):
    module.register_forward_hook(lambda *args: None)
    return module


def with_forward(module):
    module.forward = type(module).forward.__get__(module)
    return module


class OwnNorm(nn.BatchNorm2d):
    pass


BETWEEN = [
    nn.MaxPool2d(2, ceil_mode=True),
    nn.MaxPool2d(3, 2),
    nn.MaxPool2d(2, 1),
    nn.AvgPool2d(2),
    nn.Upsample(scale_factor=2, mode="bilinear"),
    nn.Upsample(8),
    nn.Upsample(scale_factor=3),
    nn.GroupNorm(2, 4),
    nn.ReLU(),
]
NORM = nn.BatchNorm2d(4)
LEFT = {
    "padding mode": ([conv(padding_mode="circular"), NORM], "padding_mode='circular'"),
    "pool, then relu": ([conv(), nn.MaxPool2d(2), nn.ReLU()], "ReLU is not a plain BatchNorm2d"),
    "alone": ([conv()], "no batch norm follows the convolution"),
    "pool at the end": ([conv(), nn.MaxPool2d(2)], "no batch norm follows the convolution"),
    "parametrised": ([weight_norm(conv()), NORM], "ParametrizedConv2d is not a plain Conv2d"),
    "spectral norm": ([spectral_norm(conv()), NORM], "it has hooks"),
    "lazy": ([nn.LazyConv2d(4, 3), NORM], "LazyConv2d is not a plain Conv2d"),
    "skip convolution": ([SkipConv2d(2, 4, 3), NORM], "SkipConv2d is not a plain Conv2d"),
    "synchronised": ([conv(), nn.SyncBatchNorm(4)], "SyncBatchNorm is not a plain BatchNorm2d"),
    "own norm": ([conv(), OwnNorm(4)], "OwnNorm is not a plain BatchNorm2d"),
    "hooked conv": ([hooked(conv()), NORM], "it has hooks"),
    "hooked pool": ([conv(), hooked(nn.MaxPool2d(2)), NORM], "it has hooks"),
    "hooked norm": ([conv(), hooked(nn.BatchNorm2d(4))], "it has hooks"),
    "forward replaced": ([with_forward(conv()), NORM], "its forward was replaced"),
    "features": ([conv(), nn.BatchNorm2d(5)], "4 output channels do not fit 5 batch norm features"),
}


@pytest.mark.parametrize(("modules", "reason"), LEFT.values(), ids=LEFT)
def test_left_alone_with_the_reason(modules, reason, log):
    model = colorseg.fuse(nn.Sequential(nn.Identity(), *modules), verbose=True)
    assert type(model) is nn.Sequential
    (line,) = log()
    assert line.startswith("left the model[1] as it is: ")
    assert reason in line


@pytest.mark.parametrize("module", BETWEEN, ids=repr)
def test_other_modules_before_the_batch_norm(module, log):
    model = colorseg.fuse(nn.Sequential(conv(), module, NORM), verbose=True)
    assert type(model) is nn.Sequential
    assert log() == [
        f"left the model[0] as it is: {module} follows the convolution, "
        "and it is no batch norm, MaxPool2d(2) or Upsample(2)"
    ]


class Doubled(nn.Sequential):
    def forward(self, x):
        return 2 * super().forward(x)


class Siblings(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = conv(padding=1), nn.BatchNorm2d(4)
        self.own = Doubled(*plain_block(4, 4, 3))
        self.stem = nn.Sequential(*plain_block(4, 4, 3), nn.Conv2d(4, 2, 1))
        self.patched = with_forward(plain_block(2, 2, 3))
        self.ready = ConvBNReLU(2, 2, 3)

    def forward(self, x):
        x = self.own(self.bn(self.conv(x)))
        return self.ready(self.patched(self.stem(x)))


def test_the_log_names_every_convolution(log, caplog):
    model = Siblings()
    colorseg.fuse(model, verbose=True)
    assert log() == [
        "left conv as it is: a Siblings is no Sequential with the stock forward",
        "left own.0 as it is: a Doubled is no Sequential with the stock forward",
        "fused stem[0]: Conv2d -> BatchNorm2d -> ReLU",
        "left stem[3] as it is: no batch norm follows the convolution",
        "left patched.0 as it is: a Sequential is no Sequential with the stock forward",
    ]
    assert caplog.messages[-1] == "blocks fused: 2"  # and a ConvBNReLU that was one before
    assert type(model.patched) is nn.Sequential


def test_silent_unless_asked(log, caplog):
    colorseg.fuse(Siblings())
    assert caplog.messages == []


CHANGES = {
    "hook on the convolution": lambda m, seen: m[0].register_forward_hook(
        lambda *a: seen.append(1)
    ),
    "hook on the relu": lambda m, seen: m[2].register_forward_hook(lambda *a: seen.append(1)),
    "pre-hook": lambda m, seen: m[1].register_forward_pre_hook(lambda *a: seen.append(1)),
    "hook on the Sequential": lambda m, seen: m.register_forward_hook(lambda *a: seen.append(1)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_hooks_added_after_fuse_fire(change):
    plain = plain_block(2, 4, 3).double()
    fused, seen = colorseg.fuse(copy.deepcopy(plain)), []
    change(fused, seen)
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    assert_close(fused(x), plain(x))
    assert seen == [1]


def test_hooks_of_the_sequential_survive_fuse_and_unfuse(fused_calls):
    model, seen = plain_block(2, 4, 3), []
    model.register_forward_pre_hook(lambda *args: seen.append("in"))
    model.register_forward_hook(lambda *args: seen.append("out"))
    model.register_full_backward_hook(lambda *args: seen.append("back"))
    for change in (colorseg.fuse, colorseg.unfuse):
        change(model)(torch.randn(2, 2, 6, 6, requires_grad=True)).sum().backward()
    assert seen == ["in", "out", "back"] * 2
    assert len(fused_calls) == 1


def test_children_may_be_replaced_after_fuse(fused_calls):
    model = colorseg.fuse(plain_block(2, 4, 3))
    x = torch.randn(2, 2, 6, 6)
    model[1] = nn.Identity()
    assert torch.equal(model(x), model[0](x).relu())
    assert not fused_calls
    model[1] = nn.BatchNorm2d(4)
    model.append(nn.MaxPool2d(2))
    assert model(x).shape == (2, 4, 3, 3)
    assert len(fused_calls) == 1


def test_a_lazy_convolution_can_be_fused_once_it_knows_its_size(fused_calls):
    model = colorseg.fuse(nn.Sequential(nn.LazyConv2d(4, 3), nn.BatchNorm2d(4)))
    x = torch.randn(2, 2, 6, 6)
    model(x)
    colorseg.fuse(model)(x)
    assert len(fused_calls) == 1
