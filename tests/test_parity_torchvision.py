"""DeepLabV3 against torchvision's, and ``fuse`` of torchvision's own networks."""

import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_close
from plain_twins import count_fused_calls
from torch import nn

import colorseg
from colorseg import models

CLASSES = 4


def network(torchvision, name, **options):
    make = getattr(torchvision.models.segmentation, f"deeplabv3_{name}")
    return make(weights=None, weights_backbone=None, **options)


@pytest.mark.parametrize("aux", [False, True], ids=["alone", "aux"])
@pytest.mark.parametrize("name", ["resnet50", "resnet101"])
def test_the_same_state_dict_in_the_same_order(torchvision, name, aux):
    with torch.device("meta"):
        theirs = network(torchvision, name, aux_loss=aux).state_dict()
        ours = models.deeplabv3(name, aux=aux).state_dict()
    assert list(ours) == list(theirs)
    assert [v.shape for v in ours.values()] == [v.shape for v in theirs.values()]


def train_once(model, x):
    """Loss, logits, gradients, and statistics after it."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # its mask is drawn in the order of memory, which differs
    logits = model(x)
    target = torch.arange(x.numel() // 3).view(-1, *x.shape[2:]) % CLASSES
    loss = sum(F.cross_entropy(value, target) for value in logits.values())
    loss.backward()
    results = {"loss": loss} | logits | {k: p.grad for k, p in model.named_parameters()}
    return results | dict(model.named_buffers())


@pytest.fixture(params=["ours", "torchvision's, fused"])
def pair(request, torchvision):
    """A fused network and torchvision's with the same weights, in float64."""
    theirs = network(torchvision, "resnet50", num_classes=CLASSES, aux_loss=True).double()
    if request.param != "ours":
        return colorseg.fuse(copy.deepcopy(theirs)), theirs
    ours = models.deeplabv3("resnet50", CLASSES, aux=True).double()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def test_trains_like_torchvision(pair, monkeypatch):
    fused_calls = count_fused_calls(monkeypatch)
    x = torch.randn(2, 3, 33, 40, dtype=torch.float64)
    got, want = (train_once(model, x) for model in pair)
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert_close(got[name], value, torch.float64)
    assert len(fused_calls) == sum(isinstance(m, nn.BatchNorm2d) for m in pair[0].modules())
    for model in pair:
        model.eval()
    with torch.no_grad():
        for got, want in zip(pair[0](x).values(), pair[1](x).values(), strict=True):
            assert_close(got, want)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_classifiers_are_fused_whole(torchvision, name, monkeypatch):
    fused_calls = count_fused_calls(monkeypatch)
    plain = getattr(torchvision.models, name)(num_classes=5).double().eval()
    fused = colorseg.fuse(copy.deepcopy(plain))
    x = torch.randn(2, 3, 40, 33, dtype=torch.float64)
    with torch.no_grad():
        assert_close(fused(x), plain(x))
    assert len(fused_calls) == sum(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
    before = [type(m) for m in plain.modules()]
    assert [type(m) for m in colorseg.unfuse(fused).modules()] == before


def test_blocks_that_only_look_alike_are_left(torchvision):
    """A quantised ResNet has the same children and another way to add."""
    resnet = torchvision.models.quantization.resnet18(quantize=False).eval()
    blocks = [m for m in resnet.modules() if type(m).__name__ == "QuantizableBasicBlock"]
    assert len(blocks) == 8
    colorseg.fuse(resnet)
    assert all(type(m).__mro__[1] is torchvision.models.resnet.BasicBlock for m in blocks)
