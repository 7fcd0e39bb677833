import math
import os
from pathlib import Path

import pytest

from colorseg._files import make_folder, remove_drafts, write_atomically
from colorseg.training import Config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"network": "vgg"}, "network must be one of pool_upsample, .* own, got 'vgg'"),
        ({"optimizer": "sgd"}, "optimizer must be one of adam, adamw, got 'sgd'"),
        ({"epochs": 0}, "epochs must be a whole number, at least 1, got 0"),
        ({"batch_size": 2.5}, "batch_size must be a whole number"),
        ({"kernel": True}, "kernel must be a whole number"),
        ({"seed": -1}, "seed must be a whole number, between 0 and 4294967295"),
        ({"lr": math.nan}, "lr must be a number above 0"),
        ({"lr": "fast"}, "lr must be a number above 0"),
        ({"device": "toaster"}, "device must be a device of torch"),
        ({"classes": []}, "classes must be at least one class, or None for all"),
        ({"resume": 1}, "resume must be true or false"),
    ],
)
def test_config_refuses_wrong_values(settings, message):
    with pytest.raises(ValueError, match=message):
        Config(**settings)


def test_config_round_trip(tmp_path):
    config = Config(out=tmp_path, classes=["horse", "deer"], lr=1 / 3, data=Path("photos"))
    config.save(tmp_path / "config.json")
    assert Config.load(tmp_path / "config.json") == config


@pytest.mark.parametrize("text", ["", "[1]", '{"epochs": 0}', '{"epoch": 3}'])
def test_config_load_refuses_other_files(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"config.json holds no training settings .*delete it"):
        Config.load(path)


def test_a_folder_that_cannot_be_made_gets_a_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot write to the folder .*choose another --out"):
        make_folder(tmp_path / "file" / "run")


def test_a_failed_write_keeps_the_old_content(tmp_path, monkeypatch):
    path = tmp_path / "numbers"
    write_atomically(path, b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot write .*numbers: No space left on device"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path):
    path = tmp_path / ("n" * 255)
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


def test_drafts_of_living_writers_are_kept(tmp_path):
    living, foreign = tmp_path / f".colorseg.{os.getpid()}.tmp", tmp_path / ".colorseg.notes.tmp"
    dead = tmp_path / f".colorseg.{2**31 - 1}.tmp"
    for path in (living, foreign, dead):
        path.touch()
    remove_drafts(tmp_path)
    assert {*tmp_path.iterdir()} == {living, foreign}
