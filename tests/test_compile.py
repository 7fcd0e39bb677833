"""torch.compile and torch.export trace fused blocks and networks whole."""

import copy

import pytest
import torch
from conftest import assert_close
from parity import lay_out
from plain_twins import plain_block, train_steps
from torch import nn

import colorseg
from colorseg.models import ConvTransposeNet, PoolUpsampleNet, UNet
from colorseg.nn import ConvBNReLU

pytestmark = pytest.mark.every_device


@pytest.fixture(autouse=True)
def fresh_compiler():
    """All networks share one forward, whose number of compiled versions is limited."""
    torch.compiler.reset()


class Stage(nn.Sequential):
    """A subclass, whose fused twin has no importable name."""


def fused_stage():
    return colorseg.fuse(
        Stage(
            *plain_block(2, 4, 3, resample="maxpool2"), nn.Tanh(), *plain_block(4, 2, 3, relu=False)
        )
    )


def small(network):
    return lambda: network(num_filters=4, num_colors=3, num_in_channels=2)


MODELS = {
    "fused Sequential": fused_stage,
    "PoolUpsampleNet": small(PoolUpsampleNet),
    "ConvTransposeNet": small(ConvTransposeNet),
    "UNet": small(UNet),
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_compiled_steps_equal_eager_ones(make):
    eager = make().double()
    twin = copy.deepcopy(eager)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager", dynamic=False)
    x = [[torch.randn(2, 2, 9, 8, dtype=torch.float64)] for _ in range(3)]
    for got, want in zip(train_steps(compiled, x), train_steps(eager, x), strict=True):
        for a, b in zip(got, want, strict=True):
            assert_close(a, b)
    for name, tensor in eager.state_dict().items():
        assert_close(twin.state_dict()[name], tensor, torch.float64)
    eager.eval(), twin.eval()
    with torch.no_grad():
        assert_close(compiled(*x[0]), eager(*x[0]))


@pytest.mark.parametrize(
    ("make", "layout", "size"),
    [
        # as images come from a DataLoader
        (
            lambda: ConvBNReLU(16, 16, 3).to(memory_format=torch.channels_last),
            "contiguous",
            (16, 16, 16),
        ),
        # a pool's result of one pixel is of both layouts
        (lambda: ConvBNReLU(4, 8, 3, resample="maxpool2"), "channels_last", (4, 2, 2)),
    ],
    ids=["weights in channels_last", "one pixel"],
)
def test_inductor_in_training(make, layout, size):
    block = make()
    x = lay_out(torch.randn(3, *size), layout)
    results = []
    for model in (copy.deepcopy(block), torch.compile(copy.deepcopy(block))):
        y = model(x)
        results.append([y, *torch.autograd.grad(y.square().sum(), [*model.parameters()])])
    for got, want in zip(*results, strict=True):
        assert_close(got, want)


def test_one_compilation_serves_many_sizes():
    eager = small(UNet)().double().eval()
    compiled = torch.compile(eager, fullgraph=True, backend="aot_eager", dynamic=True)
    with torch.no_grad():
        for size in [(2, 8, 12), (3, 8, 12), (1, 20, 16), (2, 9, 14)]:
            x = torch.randn(size[0], 2, *size[1:], dtype=torch.float64)
            assert_close(compiled(x), eager(x))


def test_inductor():
    eager = small(UNet)().eval()
    x = torch.randn(2, 2, 8, 12)
    with torch.no_grad():
        assert_close(torch.compile(eager, fullgraph=True)(x), eager(x))


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_export(make):
    model = make().double().eval()
    x = torch.randn(3, 2, 8, 9, dtype=torch.float64)
    with torch.no_grad():
        program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("n")},))
        names = {node.name for node in program.graph.nodes}
        assert "conv_bn_relu_inference" in names
        for batch in (x, torch.cat([x, x])):
            assert_close(program.module()(batch), model(batch))
