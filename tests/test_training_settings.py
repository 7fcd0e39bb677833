"""Whose settings a training command takes: flags over a file over the run to be resumed."""

import json
from pathlib import Path

import pytest

from colorseg.training import Config
from colorseg.training.command import main

SMALL = ["--num-filters", "2", "--batch-size", "400", "--epochs"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def train(*flags):
    return main("unet", [*map(str, flags)])


def write_toml(text):
    Path("run.toml").write_text(text)
    return "--config", "run.toml"


def test_the_device_of_a_file(capsys):
    flags = [*write_toml('device = "cuda:99"'), *SMALL, 1]
    assert train(*flags) == 2
    assert "error: device cuda:99 cannot be used" in capsys.readouterr().err
    assert train(*flags, "--device", "cpu") == 0


def test_the_device_of_the_run_that_is_resumed(capsys):
    assert train(*SMALL, 1, "--out", "run") == 0
    config = Path("run/config.json")
    config.write_text(json.dumps(json.loads(config.read_text()) | {"device": "cuda:99"}))
    assert train("--resume", "--epochs", 2, "--out", "run") == 2
    assert "error: device cuda:99 cannot be used" in capsys.readouterr().err
    assert train("--resume", "--epochs", 2, "--out", "run", "--device", "cpu") == 0


def test_a_file_goes_over_the_run_that_is_resumed(capsys):
    assert train(*SMALL, 1, "--out", "run") == 0
    file = write_toml('epochs = 3\nout = "run"\nresume = true\n')
    assert train(*file, "--epochs", 2) == 0  # and flags go over the file
    assert "epochs: 2," in capsys.readouterr().out
    assert train(*file) == 0
    assert "epochs: 3," in capsys.readouterr().out
    assert Config.load("run/config.json").num_filters == 2


def test_a_file_that_contradicts_the_run_is_refused(capsys):
    assert train(*SMALL, 1, "--out", "run") == 0
    assert train(*write_toml("lr = 0.5"), "--resume", "--out", "run") == 2
    assert "it was trained with lr 0.001 (now 0.5)" in capsys.readouterr().err


def test_amp_of_a_file_needs_the_device_of_the_flags(capsys):
    """The settings are checked together, not file by file."""
    assert train(*write_toml("amp = true"), "--device", "cuda:99") == 2
    assert "error: device cuda:99 cannot be used" in capsys.readouterr().err


@pytest.mark.parametrize("text", ['classes = "all"', 'classes = ["all"]'])
def test_all_classes_in_a_file(text):
    assert Config.from_toml(write_toml(text)[1]).classes is None


def test_all_classes_as_a_flag():
    assert train(*SMALL, 1, "--classes", "all") == 0
    assert Config.load("runs/unet/config.json").classes is None
