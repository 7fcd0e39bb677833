"""``--tensorboard``: what is in the event files, read back."""

import importlib.util
import sys

import pytest
import torch
from conftest import skip

from colorseg.data import load
from colorseg.models import UNet
from colorseg.training import Config, fit
from colorseg.training.command import main


@pytest.fixture(autouse=True)
def tensorboard():
    if importlib.util.find_spec("tensorboard") is None:
        skip("tensorboard")


def run(out, **settings):
    torch.manual_seed(0)
    model = UNet(num_filters=4)
    return fit(model, *load("sample"), Config(num_filters=4, out=str(out), lr=0.01, **settings))


def events(out):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(out / "tensorboard"))
    found.Reload()
    return found


def test_figures_rates_and_pictures_of_every_epoch(tmp_path):
    history = run(tmp_path / "run", epochs=2, tensorboard=True, schedule="poly")
    found = events(tmp_path / "run")
    for name in ("train_loss", "val_loss", "val_accuracy"):
        scalars = found.Scalars(name)
        assert [s.step for s in scalars] == [1, 2]
        assert [s.value for s in scalars] == pytest.approx(history.column(name))
    first, last = (s.value for s in found.Scalars("learning_rate"))
    assert 0 < last < first < 0.01
    image = found.Images("input, truth, prediction")[-1]
    assert (image.step, image.width, image.height) == (2, 8 * 32, 3 * 32)


def test_it_changes_nothing_of_the_run_and_goes_on_with_it(tmp_path):
    plain = run(tmp_path / "plain", epochs=2)
    run(tmp_path / "run", epochs=1, tensorboard=True)
    board = run(tmp_path / "run", epochs=2, tensorboard=True, resume=True)
    assert board.column("val_loss") == plain.column("val_loss")
    assert [s.step for s in events(tmp_path / "run").Scalars("val_loss")] == [1, 2]


def test_without_tensorboard_nothing_is_written(tmp_path, capsys, monkeypatch):
    assert not (tmp_path / "tensorboard").exists()
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    out = tmp_path / "run"
    flags = ["--epochs", "1", "--num-filters", "4", "--tensorboard", "--out", str(out)]
    assert main("unet", flags) == 2
    assert "pip install 'colorseg[tensorboard]'" in capsys.readouterr().err
    assert list(out.iterdir()) == []
