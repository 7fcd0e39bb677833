"""ConvBNReLU and SkipConv2d as modules: copies, modes, frozen parameters, empty batches."""

import copy
import io
import pickle

import pytest
import torch
from conftest import assert_close
from plain_twins import count_fused_calls, plain_block
from torch import nn
from torch.func import functional_call

from colorseg.nn import ConvBNReLU, SkipConv2d

pytestmark = pytest.mark.every_device

SIZES = (3, 4, 3)


def twins(**options):
    fused, plain = ConvBNReLU(*SIZES, **options).double(), plain_block(*SIZES, **options).double()
    plain.load_state_dict(fused.state_dict())
    return fused, plain


def image(n=2, channels=3, height=8, width=7):
    return torch.randn(n, channels, height, width, dtype=torch.float64)


def save_and_load(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("resample", [None, "maxpool2", "upsample2"])
def test_prints_like_its_plain_twin(resample):
    fused, plain = twins(resample=resample)
    assert repr(fused).splitlines()[0] == "ConvBNReLU("
    assert repr(fused).splitlines()[1:] == repr(plain).splitlines()[1:]


def test_index_gives_children_and_a_slice_a_plain_sequential():
    block, plain = twins(resample="maxpool2")
    assert [type(block[i]) for i in (0, 2, -1)] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    assert block[0].weight is dict(block.named_parameters())["0.weight"]
    assert type(block[1:]) is nn.Sequential
    assert list(block[1:].state_dict()) == list(plain[1:].state_dict())  # names stay
    assert block[2:3][0] is block[2]


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda block: pickle.loads(pickle.dumps(block)),
    "torch.save": save_and_load,
}


@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("block", [ConvBNReLU(*SIZES), SkipConv2d(*SIZES, padding=1)], ids=repr)
def test_copies(block, duplicate, device):
    block = copy.deepcopy(block).to(device)
    other = duplicate(block)
    assert type(other) is type(block)
    x = image().float()
    assert torch.equal(other(x), block(x))
    with torch.no_grad():
        other.get_parameter(next(iter(dict(other.named_parameters())))).zero_()
    assert all(p.any() for p in list(block.parameters())[:1])  # nothing is shared


def test_the_mode_is_that_of_the_batch_norm_child(monkeypatch):
    fused_calls = count_fused_calls(monkeypatch)
    fused, plain = twins()
    fused.train(), plain.train()
    fused[1].eval(), plain[1].eval()
    x = image()
    assert_close(fused(x), plain(x))
    assert not fused_calls[-1]["training"]
    assert fused[1].num_batches_tracked == 0


def test_statistics_may_be_switched_off_later():
    fused, plain = twins()
    fused[1].track_running_stats = plain[1].track_running_stats = False
    x = image()
    assert_close(fused(x), plain(x))
    assert fused[1].running_mean.eq(0).all()
    assert fused[1].num_batches_tracked == 0
    fused.eval(), plain.eval()  # the buffers are still there, and used
    assert_close(fused(x), plain(x))


@pytest.mark.parametrize(
    "frozen",
    [["0.weight"], ["0.weight", "0.bias"], ["1.weight"], ["1.weight", "1.bias"], None],
    ids=str,
)
@pytest.mark.parametrize("training", [True, False])
def test_frozen_parameters(frozen, training):
    fused, plain = twins()
    x = image()
    for block in (fused, plain):
        block.train(training)
        for name, parameter in block.named_parameters():
            parameter.requires_grad_(frozen is not None and name not in frozen)
        if frozen is None:
            x.requires_grad_()
        block.grads = torch.autograd.grad(
            block(x).square().sum(), [t for t in (x, *block.parameters()) if t.requires_grad]
        )
    for got, want in zip(fused.grads, plain.grads, strict=True):
        assert_close(got, want)


def test_functional_call():
    fused, plain = twins()
    state = {k: (v * 2 + 1).detach() for k, v in fused.state_dict().items() if "num" not in k}
    results = []
    for block in (fused, plain):
        mine = {k: v.clone().requires_grad_("running" not in k) for k, v in state.items()}
        y = functional_call(block, mine, image_of_seed())
        grads = torch.autograd.grad(y.square().sum(), [mine["0.weight"], mine["1.bias"]])
        results.append((y, *grads, mine["1.running_mean"]))
    for got, want in zip(*results, strict=True):
        assert_close(got, want)
    assert fused[1].running_mean.eq(0).all()  # the module's own were not touched


def image_of_seed():
    torch.manual_seed(3)
    return image()


@pytest.mark.parametrize(
    "options",
    [{}, {"resample": "maxpool2"}, {"resample": "upsample2"}, {"momentum": None}],
    ids=str,
)
def test_empty_batch_is_counted_and_changes_nothing_else(options):
    block = ConvBNReLU(*SIZES, **options)
    bn = next(m for m in block if isinstance(m, nn.BatchNorm2d))
    x = torch.zeros(0, 3, 8, 8, requires_grad=True)
    y = block(x)
    y.sum().backward()
    assert bn.running_mean.eq(0).all()
    assert bn.running_var.eq(1).all()
    assert bn.num_batches_tracked == 1
    assert x.grad.shape == x.shape
    assert not any(p.grad.any() for p in block.parameters())
    assert y.shape == (0, *block(torch.ones(1, 3, 8, 8)).shape[1:])


def test_one_value_per_channel_is_refused_in_training():
    block = ConvBNReLU(*SIZES)
    with pytest.raises(
        RuntimeError, match=r"more than 1 value per channel, got a map of \(1, 4, 1, 1\)"
    ):
        block(torch.zeros(1, 3, 1, 1))
    assert block[1].num_batches_tracked == 0
    assert block.eval()(torch.zeros(1, 3, 1, 1)).shape == (1, 4, 1, 1)


@pytest.mark.parametrize("training", [True, False])
def test_memory_format_follows_the_input(training):
    block = ConvBNReLU(*SIZES).double().train(training)
    x = image().contiguous(memory_format=torch.channels_last)
    y = block(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert block(x.contiguous()).is_contiguous()


def test_meta_tensors_tell_the_shape():
    block = ConvBNReLU(*SIZES, stride=2, device="meta", dtype=torch.float64)
    assert block[1].running_mean.is_meta
    assert block(torch.empty(5, 3, 9, 8, device="meta", dtype=torch.float64)).shape == (5, 4, 5, 4)
