"""Whose settings a training command takes: flags over a file over the run to be resumed."""

import json
from pathlib import Path

import pytest

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
