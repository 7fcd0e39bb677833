"""Blocks whose children cannot be read run them; ``nn.conv_bn_relu`` of two modules."""

import copy

import pytest
import torch
from conftest import assert_close
from plain_twins import count_fused_calls, plain_block
from torch import nn
from torch.nn.utils import parametrizations, prune

from colorseg.nn import ConvBNReLU, conv_bn_relu, fuse

pytestmark = pytest.mark.every_device

SIZES = (5, 4, 3)


@pytest.fixture
def fused_calls(monkeypatch):
    return count_fused_calls(monkeypatch)


def image(channels=5):
    return torch.randn(2, channels, 8, 7, dtype=torch.float64)


def assert_like_plain(change, training, *inputs):
    """A block changed by ``change`` computes what its plain twin does after the same change."""
    block = ConvBNReLU(*SIZES).double().train(training)
    plain = plain_block(*SIZES).double().train(training)
    plain.load_state_dict(block.state_dict())
    change(block), change(plain)
    assert_close(block(*inputs), plain(torch.cat(inputs, 1)))
    for (name, got), want in zip(block.named_buffers(), plain.buffers(), strict=True):
        assert torch.allclose(got, want, rtol=1e-10), name


def replace_forward(block):
    stock = block[0].forward
    block[0].forward = lambda x: 2 * stock(x)


def change_class(block):
    class Doubled(nn.BatchNorm2d):
        def forward(self, x):
            return 2 * super().forward(x)

    block[1].__class__ = Doubled


FOREIGN = {
    "pre-hook": lambda block: block[0].register_forward_pre_hook(
        lambda module, args: (args[0] + 1,)
    ),
    "hook": lambda block: block[1].register_forward_hook(lambda module, args, y: y + 1),
    "backward hook": lambda block: block[0].register_full_backward_hook(lambda *args: None),
    "backward pre-hook": lambda block: block[1].register_full_backward_pre_hook(lambda *args: None),
    "parametrised": lambda block: parametrizations.weight_norm(block[0]),
    "pruned": lambda block: prune.l1_unstructured(block[0], "weight", 0.5),
    "forward replaced": replace_forward,
    "subclass": change_class,
}


@pytest.mark.parametrize("change", FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize("training", [True, False])
def test_foreign_children_run_themselves(change, training, fused_calls):
    assert_like_plain(change, training, image())
    assert_like_plain(change, training, image(3), image(2))
    assert not fused_calls


def test_a_hook_on_the_relu_leaves_convolution_and_batch_norm_fused(fused_calls):
    block = ConvBNReLU(*SIZES).double()
    seen = []
    block[2].register_forward_hook(lambda module, args, y: seen.append(y))
    y = block(image())
    assert seen[0] is y
    assert [call["relu"] for call in fused_calls] == [False]


def test_a_removed_hook_fuses_again(fused_calls):
    block = ConvBNReLU(*SIZES, resample="maxpool2").double()
    handle = block[1].register_forward_hook(lambda module, args, y: -y)
    x = image()
    changed = block(x)
    handle.remove()
    assert not torch.equal(block(x), changed)
    assert len(fused_calls) == 1


def test_global_hooks_see_every_child(fused_calls):
    block, seen = ConvBNReLU(*SIZES).double(), []
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, args, y: seen.append(type(module).__name__)
    )
    try:
        block(image())
    finally:
        handle.remove()
    assert seen == ["Conv2d", "BatchNorm2d", "ReLU", "ConvBNReLU"]
    assert not fused_calls


def test_hooks_on_the_block_fire_once(fused_calls):
    block, seen = ConvBNReLU(*SIZES).double(), []
    block.register_forward_hook(lambda module, args, y: seen.append(y))
    block.register_full_backward_hook(lambda module, a, b: seen.append(b))
    block(image().requires_grad_()).sum().backward()
    assert len(seen) == 2
    assert len(fused_calls) == 1


def test_synchronised_batch_norm_runs_itself(fused_calls):
    block = ConvBNReLU(*SIZES).double().eval()  # in training it needs a GPU
    x = image()
    want = block(x)
    assert len(fused_calls) == 1
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(block)
    assert converted is block
    assert isinstance(block[1], nn.SyncBatchNorm)
    assert_close(block(x), want)
    assert len(fused_calls) == 1


@pytest.mark.parametrize("hooked", [None, 0, 1, -1])
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("resample", [None, "upsample2"])
def test_a_residual_is_added_in_front_of_the_last_relu(resample, relu, hooked, fused_calls):
    block = ConvBNReLU(*SIZES, resample=resample, relu=relu).double()
    plain = copy.deepcopy(block)[: -1 if relu else None]
    x, skip = image(3), image(2)
    before = plain(torch.cat([x, skip], 1))
    residual = torch.randn_like(before)
    want = (before + residual).relu() if relu else before + residual
    if hooked is not None:
        block[hooked].register_forward_hook(lambda module, args, y: None)
    assert_close(block(x, skip, residual), want)
    watched = hooked is not None and not (relu and hooked == -1)
    assert len(fused_calls) == (0 if watched else 1)


def test_a_residual_of_two_runs_belongs_to_the_second(fused_calls):
    block = nn.Sequential(*plain_block(3, 4, 3), *plain_block(4, 3, 3)).double()
    x = image(3)
    want = (block[:-1](x) + x).relu()
    assert_close(fuse(copy.deepcopy(block))(x, residual=x), want)
    assert len(fused_calls) == 2


OPTIONS = {
    "plain": {},
    "no relu": {"relu": False},
    "maxpool2": {"resample": "maxpool2"},
    "upsample2": {"resample": "upsample2"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize(
    "bn", [{}, {"momentum": None}, {"track_running_stats": False}, {"affine": False}], ids=str
)
@pytest.mark.parametrize("hooked", [False, True])
def test_conv_bn_relu_of_siblings(options, bn, hooked, fused_calls):
    plain = plain_block(*SIZES, **options, **bn).double()
    wanted = [m for m in plain if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
    conv, norm = copy.deepcopy(wanted)
    if hooked:
        conv.register_forward_hook(lambda module, args, y: None)
    for training in (True, True, False):
        plain.train(training), norm.train(training)
        x, skip = image(3), image(2)
        y = conv_bn_relu(conv, norm, x, skip=skip, **options)
        assert_close(y, plain(torch.cat([x, skip], 1)))
    assert len(fused_calls) == (0 if hooked else 3)
    assert list(norm.state_dict()) == list(wanted[1].state_dict())
    for got, want in zip(norm.buffers(), wanted[1].buffers(), strict=True):
        assert_close(got, want, torch.float64)
