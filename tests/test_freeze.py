"""``freeze``: bit-identical parameters and statistics, and the course's drift."""

import copy
import io

import pytest
import torch
from conftest import assert_close
from plain_twins import count_fused_calls, plain_block
from torch import nn

import colorseg
from colorseg import models
from colorseg.nn import ConvBNReLU

pytestmark = pytest.mark.every_device


def make():
    return nn.Sequential(ConvBNReLU(2, 4, 3), ConvBNReLU(4, 4, 3), nn.Conv2d(4, 2, 1))


def images():
    return torch.randn(3, 2, 6, 6)


def train(model, steps=3, **options):
    """AdamW with weight decay: it moves whatever has a gradient."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), 0.1, weight_decay=0.1, **options)
    for _ in range(steps):
        optimizer.zero_grad()
        model(images()).square().mean().backward()
        optimizer.step()


def moved(model, before):
    return {name for name, t in model.state_dict().items() if not torch.equal(t, before[name])}


@pytest.mark.parametrize("except_", [["2"], "2", None], ids=["names", "name", "module"])
def test_bit_identical_after_three_steps(except_):
    model = make()
    train(model)  # statistics and gradients that are not the initial ones
    before = copy.deepcopy(model.state_dict())
    assert colorseg.freeze(model, except_=except_ or model[2]) is model
    train(model)
    assert moved(model, before) == {"2.weight", "2.bias"}
    assert model.training
    assert not model[0][1].training


def test_deeplab_head_alone():
    model = models.deeplabv3("resnet18", 2, aux=True)
    before = copy.deepcopy(model.state_dict())
    colorseg.freeze(model, except_=["classifier.4"]).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == 514
    optimizer = torch.optim.Adam(trained, 0.05)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(1, 3, 16, 16))["out"].square().mean().backward()  # one image will do
        optimizer.step()
    assert moved(model, before) == {"classifier.4.weight", "classifier.4.bias"}
    assert model.classifier[0].project[3].training  # dropout


def test_drift_moves_the_statistics_alone():
    model = make()
    before = copy.deepcopy(model.state_dict())
    colorseg.freeze(model, except_=["2"], batch_norm="drift")
    train(model)
    names = ("running_mean", "running_var", "num_batches_tracked")
    statistics = {f"{block}.1.{name}" for block in (0, 1) for name in names}
    assert moved(model, before) == {"2.weight", "2.bias", *statistics}


def test_frozen_blocks_normalise_by_their_statistics_and_stay_fused(monkeypatch):
    fused_calls = count_fused_calls(monkeypatch)
    block = ConvBNReLU(2, 4, 3).double()
    train(nn.Sequential(block).float())
    block.double()
    plain = plain_block(2, 4, 3).double()
    plain.load_state_dict(block.state_dict())
    fused_calls.clear()
    colorseg.freeze(block).train()
    x = images().double().requires_grad_()
    y, want = block(x), plain.eval()(x)
    assert_close(y, want)
    assert_close(*(torch.autograd.grad(t.square().sum(), x)[0] for t in (y, want)))
    assert [call["training"] for call in fused_calls] == [False]


def test_the_last_call_counts():
    model = make()
    colorseg.freeze(model)
    colorseg.freeze(model, except_=["1"])
    before = copy.deepcopy(model.state_dict())
    train(model)
    assert {name[0] for name in moved(model, before)} == {"1"}
    assert len(moved(model, before)) == 7
    colorseg.freeze(model, except_=[model])
    assert all(p.requires_grad for p in model.parameters())
    assert all(m.training and type(m) is nn.BatchNorm2d for m in (model[0][1], model[1][1]))


def test_an_optimizer_that_knew_the_parameters_leaves_them(monkeypatch):
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    model(images()).square().mean().backward()
    optimizer.step()
    colorseg.freeze(model)
    before = copy.deepcopy(model.state_dict())
    optimizer.step()
    assert not moved(model, before)


def test_every_norm_with_running_statistics():
    model = nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4, momentum=None), nn.Conv1d(4, 2, 1))
    model.append(nn.InstanceNorm1d(2, track_running_stats=True))
    colorseg.freeze(model, except_=["2"]).train()
    before = copy.deepcopy(model.state_dict())
    for _ in range(3):
        model(torch.randn(3, 2, 8)).sum().backward()
    assert not moved(model, before)


def test_a_shared_parameter_is_trained_if_one_part_is():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    colorseg.freeze(model, except_=["1"])
    assert model[0].weight.requires_grad
    assert not model[0].bias.requires_grad


def test_copies_stay_frozen():
    model = colorseg.freeze(make())
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        before = copy.deepcopy(other.state_dict())
        with torch.no_grad():
            other.train()(images())
        assert not moved(other, before)
    assert "frozen" in repr(model)
    assert list(model.state_dict()) == list(make().state_dict())


def test_mistakes():
    model = make()
    with pytest.raises(ValueError, match=r"except_ names 'head', .* at the top it has 0, 1, 2"):
        colorseg.freeze(model, except_=["head"])
    with pytest.raises(ValueError, match="except_ holds a Conv2d that is not in this Sequential"):
        colorseg.freeze(model, except_=[nn.Conv2d(1, 1, 1)])
    with pytest.raises(ValueError, match="batch_norm must be 'frozen' or 'drift', got 'eval'"):
        colorseg.freeze(model, batch_norm="eval")
    assert all(p.requires_grad for p in model.parameters())
