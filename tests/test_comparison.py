"""Runs beside one another: the table, all figures, the curves, and the example that makes them."""

import csv
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from spawned import torchrun

from colorseg.data import IGNORE, SegmentationSet
from colorseg.models import deeplabv3
from colorseg.training import History
from colorseg.training.command import numbered_out
from colorseg.training.comparison import measure_constant, save_comparison
from colorseg.training.history import SegmentationEpoch

EXAMPLES = Path(__file__).parents[1] / "examples"


def validation(num_classes=2):
    masks = torch.randint(0, num_classes, (3, 8, 8), dtype=torch.uint8)
    masks[:, 0] = IGNORE
    names = ("ground", "flower", "leaf")[:num_classes]
    return SegmentationSet(torch.zeros(3, 3, 8, 8, dtype=torch.uint8), masks, names, "x")


def history(course=0.25):
    return History([SegmentationEpoch(i, 1.0, 0.9, 0.8, 0.5 + i / 9, course, 2, 3) for i in (1, 2)])


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_table_figures_and_curves(tmp_path):
    figures = {"miou": 0.7, "iou ground": 0.8, "iou flower": 0.6, "course": 0.3, "accuracy": 0.91}
    histories = {"ce": history(), "iou": history()}
    table = save_comparison(histories, {"ce": figures, "iou": figures}, validation(), tmp_path)
    heading, _, ce, _, constant = map(cells, table.splitlines())
    assert heading[:3] == ["loss", "mIoU (macro)", "IoU ground"]
    assert ce == ["ce", "0.7000", "0.8000", "0.6000", "0.3000", "0.9100", "2", "4"]
    assert constant[0] == "(all ground)"
    assert (tmp_path / "comparison.md").read_text() == f"{table}\n"
    with open(tmp_path / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["loss"], row["epoch"]) for row in rows] == [
        ("ce", "1"), ("ce", "2"), ("iou", "1"), ("iou", "2"),
    ]  # fmt: skip
    with Image.open(tmp_path / "comparison.png") as curves:
        assert curves.size == (1200, 460)
        assert len(curves.convert("RGB").getcolors(1 << 20)) > 100


def test_all_background_by_hand():
    val = validation()
    counted = val.masks[val.masks != IGNORE]
    ground = (counted == 0).double().mean().item()
    constant = measure_constant(val)
    assert constant["iou ground"] == pytest.approx(ground, abs=1e-12)
    assert constant["accuracy"] == pytest.approx(ground, abs=1e-12)
    assert constant["iou flower"] == constant["course"] == 0
    assert constant["miou"] == pytest.approx(ground / 2, abs=1e-12)


def test_more_classes_have_no_score_of_the_course(tmp_path):
    val = validation(3)
    assert math.isnan(measure_constant(val)["course"])
    figures = measure_constant(val)
    runs = {"ce": history(math.nan)}
    table = save_comparison(runs, {"ce": figures}, val, tmp_path)
    assert cells(table.splitlines()[2])[5] == ""


def run_example(monkeypatch, *flags):
    import runpy

    monkeypatch.setattr(sys, "argv", ["finetune_deeplab.py", *flags])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(EXAMPLES / "finetune_deeplab.py"), run_name="__main__")
    return stop.value.code


class TestExample:
    def test_without_data_it_compares_two_losses(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        small = ["--epochs", "1", "--image-size", "16", "--batch-size", "40"]
        assert run_example(monkeypatch, *small) == 0
        table = [cells(line) for line in capsys.readouterr().out.splitlines()]
        assert [row[0] for row in table] == ["loss", "---", "ce", "iou", "(all background)"]
        assert all(0 < float(row[1]) < 1 for row in table[2:])
        out = tmp_path / "runs" / "deeplab"
        assert sorted(path.name for path in out.iterdir()) == [
            "ce", "comparison.md", "comparison.png", "comparison.svg", "iou", "metrics.csv",
        ]  # fmt: skip
        with Image.open(out / "iou" / "samples.png") as triptychs:
            assert triptychs.size == (130 + 10 * (8 * 16 + 8), 48 + 3 * (8 * 16 + 8))
        weights = load_file(out / "ce" / "model.safetensors")
        assert weights.keys() == deeplabv3("resnet18", 2).state_dict().keys()

    def test_a_second_run_keeps_the_first(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "runs/deeplab/iou").mkdir(parents=True)
        (tmp_path / "runs/deeplab/iou/last.pt").touch()
        assert numbered_out("runs/deeplab") == "runs/deeplab-2"
        assert run_example(monkeypatch, "--data", "nowhere") == 2
        assert "error: there is no folder nowhere" in capsys.readouterr().err

    def test_head_only_from_a_file_on_a_folder(self, tmp_path, monkeypatch, capsys, caplog):
        import mask_files

        monkeypatch.chdir(tmp_path)
        folder = mask_files.write_folder(tmp_path / "own", classes=3)
        (folder / "classes.txt").write_text("ground\nflower\nleaf\n")
        from colorseg.models import save_weights

        whole = deeplabv3("resnet18", 5)
        save_weights(whole, tmp_path / "five.safetensors")
        flags = ["--data", "own", "--image-size", "16", "--epochs", "1", "--loss", "sum"]
        flags += ["--weights", "five.safetensors", "--head-only", "--out", "here"]
        assert run_example(monkeypatch, *flags) == 0
        assert "IoU leaf" in capsys.readouterr().out
        assert "own/train: all in front of the classifier is frozen, so its results" in caplog.text
        trained = load_file(tmp_path / "here" / "sum" / "model.safetensors")
        for name, value in whole.state_dict().items():
            if not name.startswith("classifier.4"):
                assert np.array_equal(trained[name], value), name
        assert trained["classifier.4.weight"].shape[0] == 3

    def test_resume_trains_what_is_missing(self, tmp_path, monkeypatch, capsys, caplog):
        monkeypatch.chdir(tmp_path)
        small = ["--epochs", "1", "--image-size", "16", "--batch-size", "40", "--out", "here"]
        assert run_example(monkeypatch, *small, "--loss", "ce") == 0
        assert run_example(monkeypatch, *small) == 2
        assert "continue it with --resume" in capsys.readouterr().err
        assert run_example(monkeypatch, *small, "--resume") == 0
        assert "all 1 epochs are done" in caplog.text
        assert len(list(tmp_path.glob("here/*/model.safetensors"))) == 2

    def test_drift_needs_frozen_layers(self, monkeypatch, capsys):
        assert run_example(monkeypatch, "--drift") == 2
        assert "error: --drift is about frozen batch norm" in capsys.readouterr().err

    def test_two_processes_make_one_comparison(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        small = ["--epochs", "1", "--image-size", "16", "--batch-size", "40", "--loss", "ce"]
        done = torchrun(*small, program=[str(EXAMPLES / "finetune_deeplab.py")])
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("| ce |") == 1
        assert done.stderr.count("epoch 1/1") == 1
        assert [path.name for path in tmp_path.glob("runs/*")] == ["deeplab"]
