"""ConvBNReLU and SkipConv2d train like their plain twins, step by step, in float64."""

import pytest
import torch
from conftest import assert_close
from plain_twins import plain_block, train_steps
from torch import nn

from colorseg.nn import ConvBNReLU, SkipConv2d
from colorseg.nn.padding import conv_padding

pytestmark = pytest.mark.every_device

KERNELS = (1, 2, 3, 4, 5, 7)
OPTIONS = {
    "stride 1": {},
    "stride 2": {"stride": 2},
    "transposed": {"stride": 2, "transposed": True},
    "maxpool2": {"resample": "maxpool2"},
    "upsample2": {"resample": "upsample2"},
    "groups": {"groups": 2},
    "groups, transposed": {"groups": 2, "stride": 3, "transposed": True},
    "dilation": {"dilation": 2},
    "no bias": {"bias": False},
    "not affine": {"affine": False},
    "no statistics": {"track_running_stats": False},
    "cumulative": {"momentum": None, "resample": "upsample2"},
    "no relu": {"relu": False, "resample": "maxpool2", "eps": 0.1, "momentum": 0.3},
}


def twins(*sizes, **options):
    """A fused block and its plain twin, both drawn from seed 1."""
    torch.manual_seed(1)
    fused = ConvBNReLU(*sizes, **options).double()
    torch.manual_seed(1)
    return fused, plain_block(*sizes, **options).double()


def assert_same_state(fused, plain):
    got, want = fused.state_dict(), plain.state_dict()
    assert list(got) == list(want)
    for name, tensor in want.items():
        assert got[name].dtype == tensor.dtype
        assert_close(got[name], tensor, torch.float64)


def assert_same_gradients(fused, plain):
    for (name, got), want in zip(fused.named_parameters(), plain.parameters(), strict=True):
        assert (got.grad is None) == (want.grad is None), name
        if want.grad is not None:
            assert_close(got.grad, want.grad)


def assert_same_steps(fused, plain, batches):
    steps = zip(train_steps(fused, batches), train_steps(plain, batches), strict=True)
    for got, want in steps:
        for a, b in zip(got, want, strict=True):
            assert_close(a, b)
        assert_same_gradients(fused, plain)
        assert_same_state(fused, plain)


def assert_same_training(fused, plain, batches):
    """Outputs, gradients and statistics agree in three steps of training and in evaluation."""
    assert_same_steps(fused, plain, batches)
    fused.eval(), plain.eval()
    with torch.no_grad():
        assert_close(fused(*batches[0]), plain(*batches[0]))  # without gradients: another operator
    assert_same_steps(fused, plain, batches[:1])


class JoinFirst(nn.Module):
    """Takes (x, skip) as a fused block does, and joins them for a plain one."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x, skip):
        return self.block(torch.cat([x, skip], 1))

    def state_dict(self):
        return self.block.state_dict()


def batches(*sizes, count=3):
    return [[torch.randn(*size, dtype=torch.float64) for size in sizes] for _ in range(count)]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_trains_like_its_plain_twin(kernel, options):
    fused, plain = twins(4, 6, kernel, **options)
    assert_same_state(fused, plain)  # the same initial weights, bit for bit:
    for got, want in zip(fused.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(got, want)
    assert_same_training(fused, plain, batches((2, 4, 11, 8)))


@pytest.mark.parametrize("size", [(8, 8), (9, 7), (1, 5)], ids=str)
@pytest.mark.parametrize(
    "options", [{}, {"stride": 2, "transposed": True}, {"resample": "upsample2"}], ids=str
)
def test_skip_is_a_concatenation(options, size):
    fused, plain = twins(5, 4, 3, **options)
    assert_same_training(fused, JoinFirst(plain), batches((2, 3, *size), (2, 2, *size)))


CONV_OPTIONS = {
    "stride 2": {"stride": 2, "padding": 1},
    "groups": {"groups": 5},
    "same": {"padding": "same", "dilation": 2, "bias": False},
    "valid": {"padding": "valid"},
    "reflect": {"padding": 1, "padding_mode": "reflect"},  # not fused, but correct
}


@pytest.mark.parametrize("options", CONV_OPTIONS.values(), ids=CONV_OPTIONS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_skip_conv_trains_like_conv(kernel, options):
    torch.manual_seed(1)
    fused = SkipConv2d(5, 10, kernel, **options).double()
    torch.manual_seed(1)
    plain = nn.Conv2d(5, 10, kernel, **options).double()
    assert_same_training(fused, JoinFirst(plain), batches((2, 3, 9, 8), (2, 2, 9, 8)))
    (x,) = batches((2, 5, 9, 8), count=1)
    assert_close(fused(*x), plain(*x))  # the skip may be left out


@pytest.mark.parametrize("kernel", KERNELS)
def test_default_padding_keeps_the_size(kernel):
    x = torch.zeros(1, 2, 12, 12)
    for dilation in (1, 2, 3):
        same = ConvBNReLU(2, 3, kernel, dilation=dilation)
        assert same(x).shape == (1, 3, 12, 12)
        assert (same[0].padding == "same") == (kernel % 2 == 0)
    assert ConvBNReLU(2, 3, kernel, stride=2)(x).shape == (1, 3, 6, 6)
    assert ConvBNReLU(2, 3, kernel, stride=2, transposed=True)(x).shape == (1, 3, 24, 24)
    assert ConvBNReLU(2, 3, kernel, stride=3, transposed=True)(x).shape == (1, 3, 36, 36)


def test_padding_and_output_padding_of_the_course():
    paddings = [conv_padding(k, 2, None, 1, True, None) for k in (3, 4, 5)]
    assert [tuple(p.values()) for p in paddings] == [(1, 1), (1, 0), (2, 1)]


def test_gradient_of_the_bias_is_exactly_zero_under_batch_statistics():
    block = ConvBNReLU(3, 4, 3)
    block(torch.randn(2, 3, 6, 6)).sum().backward()
    assert not block[0].bias.grad.any()
