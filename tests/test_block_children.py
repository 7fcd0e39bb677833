"""Blocks with children that cannot be read run as plain PyTorch; ``nn.conv_bn_relu``; mistakes get a sentence."""

import copy

import pytest
import torch
from conftest import assert_close
from plain_twins import count_fused_calls, plain_block
from torch import nn
from torch.nn.utils import parametrizations, prune

from colorseg.nn import ConvBNReLU, SkipConv2d, conv_bn_relu

SIZES = (5, 4, 3)


@pytest.fixture
def fused_calls(monkeypatch):
    return count_fused_calls(monkeypatch)


def image(channels=5):
    return torch.randn(2, channels, 8, 7, dtype=torch.float64)


def assert_like_plain(block, x, skip=None):
    """The block computes what its children compute one by one."""
    plain = nn.Sequential(*copy.deepcopy(list(block)))
    joined = x if skip is None else torch.cat([x, skip], 1)
    assert_close(block(x, skip), plain(joined))
    for (name, got), want in zip(block.named_buffers(), plain.buffers(), strict=True):
        assert torch.allclose(got, want, rtol=1e-10), name


def replace_forward(block):
    stock = block[0].forward
    block[0].forward = lambda x: 2 * stock(x)


def freeze_by_subclass(block):
    class Doubled(nn.BatchNorm2d):
        def forward(self, x):
            return 2 * super().forward(x)

    block[1].__class__ = Doubled


FOREIGN = {
    "pre-hook": lambda block: block[0].register_forward_pre_hook(lambda module, args: (args[0] + 1,)),
    "hook": lambda block: block[1].register_forward_hook(lambda module, args, y: y + 1),
    "backward hook": lambda block: block[0].register_full_backward_hook(lambda module, a, b: None),
    "backward pre-hook": lambda block: block[1].register_full_backward_pre_hook(lambda module, g: g),
    "parametrised": lambda block: parametrizations.weight_norm(block[0]),
    "pruned": lambda block: prune.l1_unstructured(block[0], "weight", 0.5),
    "forward replaced": replace_forward,
    "subclass": freeze_by_subclass,
}


@pytest.mark.parametrize("change", FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize("training", [True, False])
def test_foreign_children_run_themselves(change, training, fused_calls):
    block = ConvBNReLU(*SIZES).double().train(training)
    change(block)
    assert_like_plain(block, image())
    assert_like_plain(block, image(3), image(2))
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
    block = nn.SyncBatchNorm.convert_sync_batchnorm(ConvBNReLU(*SIZES).double().eval())
    assert isinstance(block, ConvBNReLU)
    assert isinstance(block[1], nn.SyncBatchNorm)
    assert_like_plain(block, image())
    assert not fused_calls


@pytest.mark.parametrize("hooked", [True, False])
def test_a_residual_is_refused_not_dropped(hooked):
    block = ConvBNReLU(*SIZES)
    if hooked:
        block[0].register_forward_hook(lambda module, args, y: y)
    with pytest.raises(NotImplementedError, match="residual is not built yet; add it after"):
        block(image().float(), residual=torch.zeros(2, 4, 8, 7))


OPTIONS = {
    "plain": {},
    "no relu": {"relu": False},
    "maxpool2": {"resample": "maxpool2"},
    "upsample2": {"resample": "upsample2"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("bn", [{}, {"momentum": None}, {"track_running_stats": False}, {"affine": False}])
@pytest.mark.parametrize("hooked", [False, True])
def test_conv_bn_relu_of_siblings(options, bn, hooked, fused_calls):
    plain = plain_block(*SIZES, **options, **bn).double()
    conv, norm = copy.deepcopy([m for m in plain if isinstance(m, nn.Conv2d | nn.BatchNorm2d)])
    if hooked:
        conv.register_forward_hook(lambda module, args, y: None)
    for training in (True, True, False):
        plain.train(training), norm.train(training)
        x, skip = image(3), image(2)
        assert_close(conv_bn_relu(conv, norm, x, skip=skip, **options), plain(torch.cat([x, skip], 1)))
    assert len(fused_calls) == (0 if hooked else 3)
    assert list(norm.state_dict()) == [k.split(".")[1] for k in plain.state_dict() if k[0] != "0"]
    for got, want in zip(norm.buffers(), list(plain.children())[-1 - ("relu" not in options)].buffers(), strict=True):
        assert_close(got, want, torch.float64)


WRONG = {
    "kernel 0": ({"kernel_size": 0}, "kernel_size must be an int of at least 1, got 0"),
    "kernel pair": ({"kernel_size": (3, 3)}, r"kernel_size must be an int of at least 1, got \(3, 3\)"),
    "stride": ({"stride": "2"}, "stride must be an int of at least 1, got '2'"),
    "dilation": ({"dilation": 0}, "dilation must be an int of at least 1"),
    "padding": ({"padding": -1}, "padding must be an int of at least 0, got -1"),
    "padding name": ({"padding": "same"}, "padding must be an int of at least 0, got 'same'"),
    "output_padding": ({"output_padding": 1}, "output_padding belongs to transposed"),
    "even, transposed": ({"kernel_size": 4, "transposed": True}, "would need output_padding -1; use an odd"),
    "unpadded": ({"stride": 2, "transposed": True, "padding": 0}, "use an odd kernel or a larger padding"),
    "resample": ({"resample": "avgpool2"}, "resample must be None, 'maxpool2' or 'upsample2', got 'avgpool2'"),
    "groups": ({"groups": 3}, "in_channels must be divisible by groups"),
}


@pytest.mark.parametrize(("options", "message"), WRONG.values(), ids=WRONG)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        ConvBNReLU(*SIZES[:2], **{"kernel_size": 3} | options)


def test_wrong_inputs_leave_no_trace():
    block = ConvBNReLU(*SIZES)
    for x, skip, message in [
        (torch.zeros(2, 4, 8, 8), None, "expects 5 input channels, got 4 in x"),
        (torch.zeros(2, 4, 8, 8), torch.zeros(2, 2, 8, 8), "expects 5 input channels, got 4 in x and 2 in skip"),
        (torch.zeros(2, 4, 8, 8), torch.zeros(2, 1, 8, 7), r"skip must be \(2, any, 8, 8\)"),
        (torch.zeros(5, 8, 8), None, "x must be .N, C, H, W., got 3 dimensions"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            block(x, skip)
        with pytest.raises(RuntimeError, match=message):
            SkipConv2d(*SIZES, padding=1)(x, skip)
    assert block[1].num_batches_tracked == 0
    for hooked in (False, True):
        if hooked:
            block[0].register_forward_hook(lambda module, args, y: y)
        with pytest.raises(ValueError, match="resample must be None, 'maxpool2' or 'upsample2', got 'avg'"):
            conv_bn_relu(block[0], block[1], torch.zeros(2, 5, 8, 8), resample="avg")
