"""``colorseg reproduce`` on the embedded sample: its pages, going on, and mistakes."""

import csv
import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
from mask_files import write_folder

from colorseg.cli import main
from colorseg.data import load
from colorseg.models import NETWORKS
from colorseg.report import PRESETS, published, reproduce
from colorseg.report.document import Section, Table, save_pages
from colorseg.report.runs import Run, train_missing
from colorseg.training import Config


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reports") / "report"
    assert main(["reproduce", "--data", "sample", "--quick", "--out", str(folder)]) == 0
    return folder


def test_the_tables(report):
    networks = rows(report / "tables" / "networks.csv")
    assert [row["network"] for row in networks] == [*published.TITLES.values()]
    for row in networks:
        assert row["band"] == "none for these data and settings"
        assert row["within"] == ""
        ours, plain = (
            float(row[f"{who}: loss, accuracy"].split(",")[0])
            for who in ("colorseg", "plain torch")
        )
        assert float(row["difference of losses"]) == pytest.approx(ours - plain, abs=2e-4)
        assert abs(ours - plain) < 0.01
    sizes = {(r["network"], r["image"]): r for r in rows(report / "tables" / "sizes.csv")}
    for network in published.TITLES.values():
        small, large = (sizes[network, image] for image in ("32 x 32", "64 x 64"))
        for column, factor in (("weights", 1), ("outputs of convolutions", 4), ("connections", 4)):
            values = [int(row[column].replace(",", "")) for row in (small, large)]
            assert values[1] == factor * values[0]
        for row in (small, large):
            nominal, exact = (
                int(row[column].replace(",", ""))
                for column in ("connections", "without those to padding")
            )
            assert 0.9 * nominal < exact < nominal
    padding = {row["kernel"]: row for row in rows(report / "tables" / "padding.csv")}
    assert (padding["4"]["padding"], padding["4"]["output padding"]) == ("1", "0")
    assert (padding["5"]["padding"], padding["5"]["output padding"]) == ("2", "1")
    assert {row["transposed"] for row in padding.values()} == {"32 to 64"}
    parameters = rows(report / "tables" / "parameters-pool_upsample.csv")
    assert len(parameters) == 18 + 1
    assert parameters[0]["parameter"] == "module1.0.weight"


def test_the_pages(report):
    html, markdown = (report / "index.html").read_text(), (report / "report.md").read_text()
    # three networks and two losses, two each, and all of either together
    assert html.count("data:image/png;base64,") == 12
    assert "<script" not in html
    assert "http" not in html.replace("http-equiv", "")
    for title in (
        *("The three networks after 1 epoch", "Sizes", "Padding for other kernels"),
        *("2.1 DeepLabV3 with cross-entropy", "2.2 DeepLabV3 with soft IoU"),
    ):
        assert f"<h2>{title}</h2>" in html
        assert f"## {title}" in markdown
    for name in ("networks.png", "networks.svg"):
        assert (report / "figures" / name).stat().st_size > 1000


def test_segmentation_by_two_losses(report):
    ce, iou, constant = rows(report / "tables" / "segmentation.csv")
    assert (ce["report: best mIoU"], iou["report: best mIoU"]) == ("0.72", "0.74")
    assert constant["loss"] == "(all background)"
    for row in (ce, iou):
        assert 0 < float(row["colorseg: best mIoU"]) < 1
        assert 0 <= float(row["course's score then"]) <= float(row["colorseg: best mIoU"])
    assert ce["validation loss"] != iou["validation loss"]


def test_masks_of_three_classes(tmp_path):
    folder = write_folder(tmp_path / "garden", classes=3)
    (folder / "classes.txt").write_text("ground\nleaf\nflower\n")
    arguments = ["--data", "sample", "--quick", "--no-plain", "--segment", str(folder)]
    assert main(["reproduce", *arguments, "--out", str(tmp_path / "report")]) == 0
    ce, _, constant = rows(tmp_path / "report" / "tables" / "segmentation.csv")
    assert 0 < float(ce["colorseg: best mIoU"]) < 1
    assert ce["course's score then"] == constant["course's score then"] == ""  # of two classes
    assert constant["loss"] == "(all ground)"


def test_super_resolution(tmp_path):
    arguments = ["--task", "super-resolution", "--data", "sample", "--quick", "--dilated"]
    assert main(["reproduce", *arguments, "--out", str(tmp_path / "report")]) == 0
    table = {r["method"]: r for r in rows(tmp_path / "report/tables/super-resolution.csv")}
    assert list(table) == [
        *("repeated pixels", "bilinear", *published.TITLES.values()),
        *("UNet with a dilated middle", "(the right palette colors)"),
    ]
    assert table["(the right palette colors)"]["accuracy"] == "100.0 %"
    sharpness = {name: float(row["PSNR, dB"]) for name, row in table.items()}
    assert sharpness["repeated pixels"] < sharpness["bilinear"]
    config = json.loads((tmp_path / "report/runs/unet/config.json").read_text())
    assert config["task"] == "super-resolution"


def test_lossless_pictures_are_reported_apart(tmp_path):
    train, val = (part.images.permute(0, 2, 3, 1).numpy() for part in load("sample"))
    file = tmp_path / "horses.npz"
    np.savez(file, train=train[:40], test=val[:20], exact_test=val[:6])
    arguments = ["--data", str(file), "--quick", "--no-plain", "--segment", "none"]
    assert main(["reproduce", *arguments, "--out", str(tmp_path / "report")]) == 0
    for row in rows(tmp_path / "report/tables/networks.csv"):
        loss, accuracy = row["6 lossless pictures: loss, accuracy"].split(", ")
        assert 1 < float(loss) < 5
        assert accuracy.endswith("%")
    assert not (tmp_path / "report/tables/segmentation.csv").exists()


def test_what_is_finished_is_kept(report, monkeypatch):
    def train(*_):
        raise AssertionError("nothing is missing")

    monkeypatch.setattr("colorseg.report.runs.fit", train)
    (report / "index.html").unlink()
    assert reproduce("sample", out=report, quick=True) == report / "index.html"
    assert (report / "index.html").exists()


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_interrupted_report_goes_on(jobs, tmp_path):
    # -P: not the source tree, which has no operators unless it was built in place
    arguments = ["reproduce", "--data", "sample", "--quick", "--no-plain", "--segment", "none"]
    arguments += ["--jobs", str(jobs)]
    arguments += ["--out", str(tmp_path / "report")]
    command = [sys.executable, "-P", "-m", "colorseg.cli", *arguments]
    listens = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # also in the background
    running = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, preexec_fn=listens, start_new_session=True
    )
    first = tmp_path / "report" / "runs" / "pool_upsample" / "model.safetensors"
    deadline = time.monotonic() + 120
    while not first.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does: to the workers, too
    _, said = running.communicate(timeout=60)
    assert running.returncode in (130, -signal.SIGINT), said
    done = first.stat().st_mtime_ns
    assert main(arguments) == 0
    assert first.stat().st_mtime_ns == done
    assert (tmp_path / "report" / "index.html").exists()


def test_an_interrupted_report_says_how_it_goes_on(tmp_path, monkeypatch, caplog, capsys):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("colorseg.training.run.Run.epoch", interrupted)
    assert main(["reproduce", "--data", "sample", "--quick", "--out", str(tmp_path / "r")]) == 130
    assert "0 of 1 epochs are in" in caplog.text
    assert "--resume" not in caplog.text  # which this command does not have
    assert "the same command goes on from here" in capsys.readouterr().err


def test_workers_end_with_their_parent(tmp_path):
    arguments = ["reproduce", "--data", "sample", "--quick", "--segment", "none", "--jobs", "2"]
    command = [sys.executable, "-P", "-m", "colorseg.cli", *arguments]
    running = subprocess.Popen(
        [*command, "--out", str(tmp_path / "report")], start_new_session=True,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not [*tmp_path.rglob("config.json")] and time.monotonic() < deadline:
        time.sleep(0.05)
    running.kill()
    running.wait()
    while time.monotonic() < deadline:
        try:
            os.killpg(running.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGKILL)
    raise AssertionError("workers went on without their parent")


def test_a_full_disk_gets_a_sentence_and_the_report_goes_on(tmp_path, monkeypatch, capsys):
    arguments = ["reproduce", "--data", "sample", "--quick", "--no-plain", "--segment", "none"]
    arguments += ["--out", str(tmp_path / "report")]
    fsync, left = os.fsync, 25

    def full(file):
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(file)

    monkeypatch.setattr(os, "fsync", full)
    assert main(arguments) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"error: cannot write {tmp_path}")
    assert said.endswith("No space left on device")
    finished = {p: p.stat().st_mtime_ns for p in (tmp_path / "report").rglob("model.safetensors")}
    assert finished
    assert not [*tmp_path.rglob("*.tmp")]
    monkeypatch.undo()
    assert main(arguments) == 0
    assert all(p.stat().st_mtime_ns == before for p, before in finished.items())
    assert (tmp_path / "report" / "index.html").exists()


def test_settings_of_another_report(report):
    with pytest.raises(
        FileExistsError, match=r"a report of other settings .*replace it with --force"
    ):
        reproduce("sample", "clean", report, quick=True)
    assert json.loads((report / "report.json").read_text())["preset"] == "course-2021"


def test_force_clears_what_the_old_report_wrote(report, tmp_path):
    arguments = ["--data", "sample", "--quick", "--force", "--task", "super-resolution"]
    folder = tmp_path / "report"
    shutil.copytree(report, folder)
    mine = folder / "tables" / "mine.csv"
    mine.write_text("a, b")
    assert main(["reproduce", *arguments, "--out", str(folder)]) == 0
    assert {p.name for p in (folder / "tables").iterdir()} == {"super-resolution.csv", mine.name}
    assert {p.name for p in (folder / "figures").iterdir()} == {"networks.png", "networks.svg"}
    assert {p.name for p in (folder / "runs").iterdir()} == {*NETWORKS}


def test_other_masks_are_other_settings(report):
    with pytest.raises(FileExistsError, match=r'"segment": "scenes", .*replace it with --force'):
        reproduce("sample", out=report, quick=True, segment="none")


def save_horses(file, start):
    train, val = (part.images.permute(0, 2, 3, 1).numpy() for part in load("sample"))
    np.savez(file, train=train[start : start + 40], test=val[:20])


def test_other_pictures_in_the_same_file(tmp_path):
    file, out = tmp_path / "horses.npz", tmp_path / "report"
    save_horses(file, 0)
    reproduce(str(file), out=out, quick=True, plain=False, segment="none")
    before = (out / "index.html").read_text()
    save_horses(file, 40)
    with pytest.raises(FileExistsError, match=r"of other settings .*replace it with --force"):
        reproduce(str(file), out=out, quick=True, plain=False, segment="none")
    assert (out / "index.html").read_text() == before


@pytest.mark.parametrize("changed", ["batch_size", "sha256"])
def test_a_run_that_is_of_something_else_is_refused(report, changed):
    run = Run("unet", Config.load(report / "runs" / "unet" / "config.json"))
    train, val = load("sample")
    if changed == "batch_size":
        run = Run("unet", dataclasses.replace(run.config, batch_size=7))
    else:
        train, val = train.subset(range(40)), val.subset(range(40))
    with pytest.raises(ValueError, match=r"runs/unet: it was trained with .*choose another --out"):
        train_missing([run], train, val)


def test_other_files_are_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("mine")
    assert main(["reproduce", "--data", "sample", "--out", str(tmp_path), "--force"]) == 2
    assert "holds other files, no report; choose another --out" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "worst"], "there is no preset 'worst'; choose one of course-2021, lightning"),
        (["--data", "no-such-file.npz"], "there is no no-such-file.npz; a source is 'sample'"),
        (["--segment", "no-such-folder"], "there is no folder no-such-folder; a source is 'sce"),
        (["--experiments", "--segment", "none", "--no-plain"], "leave out --no-plain, --segment"),
        (["--jobs", "0"], "jobs must be at least 1, got 0"),
        (["--device", "tpu"], "device must be a device of torch"),
    ],
)
def test_mistakes_get_a_sentence(arguments, message, tmp_path, capsys):
    out = tmp_path / "report"
    command = ["reproduce", "--data", "sample", "--quick", "--out", str(out), *arguments]
    assert main(command) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_settings(preset):
    from colorseg.report.reproduction import settings_of

    config = Config(**settings_of(preset, quick=False))
    assert config.epochs == 25
    if preset == "best":
        assert (config.batch_size, config.schedule, config.flips) == (16, "poly", True)
        return
    assert (config.batch_size, config.lr, config.flips) == (100, 1e-3, False)
    assert config.optimizer == ("adamw" if preset == "lightning" else "adam")


def test_bands():
    copy = "3635b9b7" + 56 * "0"
    horses = published.bands_of(copy, "horses.npz", "course-2021", 25)
    assert 1.03 in horses["unet"]
    assert 1.07 not in horses["unet"]
    assert published.bands_of("", "cifar10", "lightning", 25) is published.ORIGINAL
    assert published.bands_of(copy, "horses.npz", "best", 25) == {}  # ends below them
    assert published.bands_of("", "cifar10", "course-2021", 2) == {}
    assert published.bands_of("", "sample", "course-2021", 25) == {}


def test_text_is_escaped(tmp_path):
    section = Section("<b>", ["a < b", Table("t", ["<i>"], [["&"]])])
    save_pages("<title>", [section], tmp_path)
    html = (tmp_path / "index.html").read_text()
    assert "<b>" not in html
    assert "&lt;i&gt;" in html
    assert "<td>&amp;</td>" in html
