import csv
import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from colorseg import reference
from colorseg.data import ImageSet, load
from colorseg.models import NETWORKS
from colorseg.palette import Palette
from colorseg.training import Config, History, evaluate, fit
from colorseg.training.history import Epoch
from colorseg.training.seeding import batch_order, seed_everything
from colorseg.training.step import Step

TRAIN, VAL = load("sample")
TRAIN, VAL = TRAIN.subset(slice(0, 1200, 25)), VAL.subset(slice(0, 240, 12))  # 48 and 20
SMALL = {"epochs": 2, "batch_size": 20, "num_filters": 8, "lr": 0.01}


def network(config):
    seed_everything(config.seed)
    return NETWORKS[config.network](config.kernel, config.num_filters)


def run(out, **settings):
    config = Config(out=out, **SMALL | settings)
    model = network(config)
    return model, fit(model, TRAIN, VAL, config)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of three epochs: its folder, model and history."""
    out = tmp_path_factory.mktemp("runs") / "unet"
    return out, *run(out, epochs=3)


def test_loss_falls_and_history_has_every_epoch(finished):
    _, _, history = finished
    assert history.column("epoch") == [1, 2, 3]
    assert history.epochs[-1].train_loss < history.epochs[0].train_loss
    assert history.best.val_loss == min(history.column("val_loss"))
    assert all(0 < row.val_accuracy < 1 and row.images_per_second > 0 for row in history.epochs)


def test_the_training_loss_is_the_mean_over_the_batches(tmp_path, monkeypatch):
    losses = []

    class Recorded(Step):
        def __call__(self, index):
            loss = super().__call__(index)
            losses.append(loss.item())
            return loss

    monkeypatch.setattr("colorseg.training.run.Step", Recorded)
    _, history = run(tmp_path, epochs=1)
    assert len({*losses}) == 3
    assert history.best.train_loss == pytest.approx(sum(losses) / 3, rel=1e-6)


def test_metrics_csv_keeps_every_digit(finished):
    out, _, history = finished
    with open(out / "metrics.csv", newline="") as file:
        heading, *rows = csv.reader(file)
    assert heading == list(Epoch._fields)
    assert [[float(value) for value in row] for row in rows] == [list(e) for e in history.epochs]


def test_config_json_says_what_ran(finished):
    out, _, _ = finished
    facts = json.loads((out / "config.json").read_text())
    assert facts["epochs"] == 3
    assert facts["run"]["torch"] == torch.__version__
    assert facts["run"]["threads"] == torch.get_num_threads()
    assert facts["run"]["colorseg"]["version"]
    assert facts["run"]["data"]["train"]["sha256"] == TRAIN.sha256()
    assert Config.load(out / "config.json") == Config(out=out, **SMALL | {"epochs": 3})


def test_model_ends_with_the_weights_of_the_best_epoch(finished):
    out, model, history = finished
    saved, best = load_file(out / "model.safetensors"), load_file(out / "best.safetensors")
    for name, value in model.state_dict().items():
        assert torch.equal(saved[name], value)
        assert torch.equal(best[name], value)
    measured = evaluate(model, VAL)
    assert measured["loss"] == history.best.val_loss
    assert measured["accuracy"] == history.best.val_accuracy


def test_pictures_can_be_opened(finished):
    out, _, _ = finished
    with Image.open(out / "curves.png") as curves:
        assert curves.size == (1200, 460)
        assert len(curves.convert("RGB").getcolors(1 << 20)) > 100
    with Image.open(out / "samples.png") as samples:
        pixels = samples.convert("RGB")
    assert pixels.size == (130 + 10 * (4 * 32 + 8), 48 + 3 * (4 * 32 + 8))
    truth = pixels.crop((130, 48 + 136, 130 + 128, 48 + 136 + 128))  # second row, first picture
    palette = Palette.horse24()
    shown = torch.frombuffer(bytearray(truth.tobytes()), dtype=torch.uint8).reshape(128, 128, 3)
    wanted = palette.decode(palette.quantize(VAL.images[:1]))[0].permute(1, 2, 0)
    assert torch.equal(shown[2::4, 2::4], wanted)


def test_the_folder_holds_no_drafts(finished):
    out, _, _ = finished
    assert sorted(path.name for path in out.iterdir()) == [
        "best.safetensors",
        "config.json",
        "curves.png",
        "curves.svg",
        "last.pt",
        "metrics.csv",
        "model.safetensors",
        "samples.png",
    ]


@pytest.mark.parametrize("name", list(NETWORKS))
def test_reference_and_fused_runs_agree(name, tmp_path):
    settings = {"network": name, "epochs": 1, "lr": 1e-3}
    _, fused = run(tmp_path / "fused", **settings)
    _, plain = run(tmp_path / "plain", reference=True, **settings)
    assert fused.best.train_loss == pytest.approx(plain.best.train_loss, abs=2e-4)
    assert fused.best.val_loss == pytest.approx(plain.best.val_loss, abs=2e-3)
    assert fused.best.val_accuracy == pytest.approx(plain.best.val_accuracy, abs=0.01)


class Tied(nn.Module):
    """Two convolutions with one weight."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 3, padding=1)
        self.second.weight = self.first.weight
        self.head = nn.Conv2d(1, 24, 1)

    def forward(self, x):
        return self.head(self.second(self.first(x)))


@pytest.mark.parametrize("compiled", [False, True])
def test_shared_weights_and_compiled_networks_train_and_resume(compiled, tmp_path):
    model = Tied()
    config = Config(network="own", out=tmp_path, **SMALL)
    fit(torch.compile(model, backend="eager") if compiled else model, TRAIN, VAL, config)
    stored = load_file(tmp_path / "model.safetensors")
    assert stored.keys() == model.state_dict().keys()
    assert torch.equal(stored["second.weight"], model.first.weight)
    more = dataclasses.replace(config, resume=True, epochs=3)
    assert len(fit(Tied(), TRAIN, VAL, more)) == 3


def test_a_network_of_your_own(tmp_path):
    palette = Palette(torch.rand(5, 3), "five")
    model = nn.Sequential(nn.Conv2d(1, 5, 3, padding=1))
    model.palette = palette
    history = fit(
        model, TRAIN, VAL, Config(network="own", out=tmp_path, optimizer="adamw", **SMALL)
    )
    assert len(history) == 2
    assert load_file(tmp_path / "model.safetensors").keys() == model.state_dict().keys()


def test_evaluate_is_exact_for_any_batch_size():
    model = network(Config(num_filters=8))
    labels = Palette.horse24().quantize(VAL.images)
    with torch.no_grad():
        logits = model.eval()(VAL.grey())
    wanted = reference.color_cross_entropy(logits.double(), labels).item()
    right = (logits.argmax(1) == labels).double().mean().item()
    for size in (1, 7, 500):
        result = evaluate(model, VAL, batch_size=size)
        assert result["loss"] == pytest.approx(wanted, abs=1e-5)
        assert result["accuracy"] == pytest.approx(right, abs=1e-4)
        assert result["pixels"] == 20 * 32 * 32


def test_evaluate_gives_every_module_its_mode_back():
    model = network(Config(num_filters=8)).train()
    frozen = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    frozen.eval()
    evaluate(model, VAL)
    assert model.training
    assert not frozen.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_batch_order_is_a_permutation_fixed_by_seed_and_epoch():
    first, again, second = (batch_order(100, 0, epoch) for epoch in (1, 1, 2))
    assert torch.equal(first.sort().values, torch.arange(100))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert not torch.equal(first, batch_order(100, 1, 1))


def test_fixed_batches_are_those_of_the_course():
    order = np.arange(100)
    np.random.seed(0)
    np.random.shuffle(order)
    for epoch in (1, 2):
        assert batch_order(100, 0, epoch, reshuffle=False).tolist() == order.tolist()


def test_an_empty_history_has_no_best():
    with pytest.raises(ValueError, match="train first"):
        _ = History().best


def test_fit_refuses_what_it_cannot_use(tmp_path):
    config = Config(out=tmp_path / "run", **SMALL)
    empty = ImageSet(torch.zeros(0, 3, 8, 8, dtype=torch.uint8), "nothing")
    with pytest.raises(ValueError, match="set nothing has no pictures"):
        fit(network(config), TRAIN, empty, config)
    with pytest.raises(ValueError, match=r"is a Conv2d, but config\.network is 'unet'"):
        fit(nn.Conv2d(1, 24, 3, padding=1), TRAIN, VAL, config)
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoints(tmp_path):
    run(tmp_path)
    before = (tmp_path / "last.pt").read_bytes()
    config = Config(out=tmp_path, resume=True, **SMALL | {"epochs": 4})
    model = network(config)
    steps = []

    def spoil(module, inputs, logits):
        steps.extend([module] if module.training else [])
        return logits * float("nan") if len(steps) == 2 else logits

    model.register_forward_hook(spoil)
    message = r"became nan in epoch 3, batch 2, .*finished epochs \(2\) are in .*rate below 0\.01"
    with pytest.raises(FloatingPointError, match=message):
        fit(model, TRAIN, VAL, config)
    assert (tmp_path / "last.pt").read_bytes() == before
