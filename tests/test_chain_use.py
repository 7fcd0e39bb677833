"""When a network runs as one operator, and when somebody can look between its blocks."""

import contextlib
import copy

import pytest
import torch
from chain_cases import clear_images, count_chain_calls, run_plain, twins
from conftest import assert_close
from torch import nn
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

import colorseg
from colorseg.models import NETWORKS
from colorseg.nn import ConvBNReLU, SkipConv2d
from colorseg.nn.chain import Link, run_chain

pytestmark = pytest.mark.every_device

ALL = pytest.mark.parametrize("name", NETWORKS)


@pytest.fixture
def calls(monkeypatch):
    return count_chain_calls(monkeypatch)


@contextlib.contextmanager
def global_hook():
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        yield
    finally:
        handle.remove()


def saw(model, module, register, x):
    """The result with a hook on one module, which ran."""
    seen = []
    getattr(module, register)(lambda *_: seen.append(1))
    y = model(x)
    assert seen == [1]
    return y


def own_forward(model, x):
    """The result with a forward that somebody gave to one convolution, which ran."""
    plain_forward, seen = model.module2[0].forward, []

    def forward(x):
        seen.append(1)
        return plain_forward(x)

    model.module2[0].forward = forward
    y = model(x)
    assert seen == [1]
    return y


def parametrized(model, x):
    class Same(nn.Module):
        def forward(self, weight):
            return weight * 1

    nn.utils.parametrize.register_parametrization(model.module3[0], "weight", Same())
    return model(x)


def under(context):
    def run(model, x):
        with context():
            return model(x)

    return run


SEEN = {  # ways to run a network that need the blocks one by one
    "hook on a block": lambda m, x: saw(m, m.module2, "register_forward_hook", x),
    "hook before a block": lambda m, x: saw(m, m.module2, "register_forward_pre_hook", x),
    "hook on a child": lambda m, x: saw(m, m.module3[1], "register_forward_hook", x),
    "hook on a ReLU": lambda m, x: saw(m, m.module1[-1], "register_forward_hook", x),
    "hook on the last layer": lambda m, x: saw(m, m.module_last, "register_forward_hook", x),
    "global hook": under(global_hook),
    "own forward": own_forward,
    "parametrisation": parametrized,
    "FlopCounterMode": under(lambda: FlopCounterMode(display=False)),
    "channels_last": lambda m, x: m(x.expand(-1, 3, -1, -1).to(memory_format=torch.channels_last)),
    "torch.compile": lambda m, x: torch.compile(m, backend="eager")(x),
    "unfused": lambda m, x: colorseg.unfuse(m)(x),
}


@ALL
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("how", SEEN)
def test_runs_block_by_block(name, training, how, calls, device):
    channels = 3 if how == "channels_last" else 1
    model, plain = twins(name, 3, 8, 5, channels, training=training)
    x = clear_images(plain, 3, 1, 9, 14) if channels == 1 else torch.rand(3, 1, 9, 14)
    want = run_plain(plain, x.expand(-1, channels, -1, -1))
    y = SEEN[how](model, x)
    assert calls == ([5] if (how, device) == ("channels_last", "cuda") else [])
    assert_close(y, want)
    if channels == 1:  # elsewhere a tie may decide
        y.square().mean().backward(), want.square().mean().backward()
        for p, q in zip(model.module1.parameters(), plain.module1.parameters(), strict=True):
            if p.grad is not None:  # a parametrised weight has its own
                assert_close(p.grad, q.grad)


@ALL
def test_dtypes(name, calls, device):
    model, plain = twins(name, training=False)
    x = torch.rand(3, 1, 9, 14)
    want = run_plain(plain, x)
    assert_close(copy.deepcopy(model).double()(x.double()), want)
    assert calls == []
    with torch.no_grad():
        assert_close(copy.deepcopy(model).bfloat16()(x.bfloat16()), want)
        with torch.autocast(device, torch.bfloat16):
            assert_close(model(x), want, torch.bfloat16)
    assert calls == ([] if device == "cpu" else [5, 5])
    calls.clear()
    assert_close(model(x), want)
    assert calls == [5]


@ALL
def test_a_replaced_child_runs_as_it_is(name, calls):
    model, plain = twins(name)
    model.module2[-1], plain.module2[-1] = nn.Tanh(), nn.Tanh()
    x = torch.rand(3, 1, 9, 14)
    assert_close(model(x), run_plain(plain, x))
    model.module2[-1], plain.module2[-1] = nn.ReLU(), nn.ReLU()
    assert calls == []
    assert_close(model(x), run_plain(plain, x))
    assert calls == [5]


class Twice(ConvBNReLU):
    def forward(self, x, skip=None):
        return 2 * super().forward(x, skip)


@ALL
def test_a_block_with_a_forward_of_its_own(name, calls):
    model, plain = twins(name, training=False)
    model.module4.__class__ = Twice
    plain.module4.register_forward_hook(lambda _module, _inputs, y: 2 * y)
    x = torch.rand(3, 1, 9, 14)
    assert_close(model(x), run_plain(plain, x))
    assert calls == []


@ALL
def test_more_channels_than_there_are_kernels_for(name, calls):
    model, plain = twins(name, 1, 257, 3, 1, training=False)
    x = torch.rand(2, 1, 8, 8)
    assert_close(model(x), run_plain(plain, x))
    assert calls == []


def test_transforms_do_not_meet_the_operator(calls):
    model, plain = twins("unet", training=False)
    x = torch.rand(2, 1, 1, 8, 8)
    want = torch.stack([run_plain(plain, image) for image in x])
    with torch.no_grad():
        assert_close(torch.vmap(model)(x), want)
    _, tangent = torch.func.jvp(model, (x[0],), (x[1],))
    exact = x.double()
    _, want = torch.func.jvp(lambda image: run_plain(plain, image), (exact[0],), (exact[1],))
    assert_close(tangent, want)
    with forward_ad.dual_level():
        y = model(forward_ad.make_dual(x[0], x[1]))
        assert_close(forward_ad.unpack_dual(y).tangent, want)
    assert calls == []


@pytest.mark.parametrize("options", [(3, 1), (3, 0), (4, 0), (5, 0), (6, 1), (7, 3)], ids=str)
def test_bands_of_an_upsampled_map(options, calls):
    """Taps that reach further up than down, and the other way round."""
    kernel, padding = options
    blocks = nn.Sequential(
        ConvBNReLU(1, 3, 3, resample="upsample2"),
        ConvBNReLU(3, 2, kernel, padding=padding),
        SkipConv2d(2, 3, 1),
    )
    plain = colorseg.unfuse(copy.deepcopy(blocks)).double()
    x = clear_images(plain, 1, 1, 36, 32)
    leaf, exact = x.clone().requires_grad_(), x.double().requires_grad_()
    y, want = run_chain(leaf, [Link(block, i) for i, block in enumerate(blocks)]), plain(exact)
    assert calls == [3]
    assert_close(y, want)
    y.square().mean().backward(), want.square().mean().backward()
    assert_close(leaf.grad, exact.grad)
    for p, q in zip(blocks.parameters(), plain.parameters(), strict=True):
        assert_close(p.grad, q.grad)


def test_a_chain_must_end_in_a_convolution(calls):
    model, plain = twins("conv_transpose", training=False)
    x = torch.rand(2, 1, 8, 8)
    y = run_chain(x, [Link(model.module1, 0), Link(model.module2, 1)])
    assert_close(y, plain.module2(plain.module1(x.double())))
    assert calls == []
