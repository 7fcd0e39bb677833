"""``--detect-anomaly`` and ``--clip``."""

import pytest
import torch

from colorseg.data import load
from colorseg.models import UNet
from colorseg.training import Config, fit
from colorseg.training.anomaly import check_gradients, watched

TRAIN, VAL = (part.subset(slice(0, 40)) for part in load("sample"))


def train(model, out, **settings):
    return fit(
        model, TRAIN, VAL, Config(num_filters=4, batch_size=20, epochs=1, out=out, **settings)
    )


def test_the_layer_is_named(tmp_path):
    model = UNet(num_filters=4)
    with torch.no_grad():
        model.module2[0].weight[1, 2] = torch.inf
    with pytest.raises(FloatingPointError, match=r"module2\.0 \(Conv2d.* of an input that is fin"):
        train(model, tmp_path / "watched", detect_anomaly=True)
    with pytest.raises(FloatingPointError, match="the loss became nan in epoch 1, batch 1"):
        train(model, tmp_path / "plain")


def test_an_input_is_named():
    model = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Linear(2, 1))
    nan = r"the input of 0 .* has nan at \[0, 1\], 1 of 2"
    with watched(model), pytest.raises(FloatingPointError, match=nan):
        model(torch.tensor([[1.0, torch.nan]]))


def test_a_gradient_is_named():
    model = torch.nn.Linear(1, 1, bias=False)
    model(torch.zeros(1, 1)).sqrt().sum().backward()
    with pytest.raises(FloatingPointError, match="the gradient of weight is nan"):
        check_gradients(model)


def test_watching_changes_nothing_but_rounding(tmp_path):
    losses = []
    for detects in (False, True):
        torch.manual_seed(0)
        history = train(UNet(num_filters=4), tmp_path / str(detects), detect_anomaly=detects)
        losses.append(history.epochs[0].train_loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_clipped_gradients(tmp_path, monkeypatch):
    norms = []

    class Watched(torch.optim.SGD):
        def step(self):
            grads = [p.grad.norm() for g in self.param_groups for p in g["params"]]
            norms.append(torch.stack(grads).norm().item())
            super().step()

    monkeypatch.setattr(torch.optim, "Adam", lambda p, lr, **_: Watched(p, lr))
    train(UNet(num_filters=4), tmp_path / "free")
    assert min(norms) > 0.01
    norms.clear()
    train(UNet(num_filters=4), tmp_path / "clipped", clip=0.01)
    assert max(norms) == pytest.approx(0.01, rel=1e-3)
