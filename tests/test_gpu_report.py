"""The report of a GPU, tried out without one."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def report(*arguments):
    command = [sys.executable, str(BENCHMARKS / "gpu_report.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_dry_run_takes_the_whole_way(tmp_path):
    for only in ("24 colors", "UNet 2x1x8x8 bfloat16", "DeepLabV3"):
        checks = [] if only == "24 colors" else ["--skip-checks"]
        done = report("--dry-run", "--quick", "--out", tmp_path, "--only", only, *checks)
        assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "dry-run.csv",
        "dry-run.md",
        "dry-run.png",
    ]
    with (tmp_path / "dry-run.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["direction"] for row in rows] == [
        "forward", "forward+backward", "training step", "inference", "inference", "training step",
    ]  # fmt: skip
    page = (tmp_path / "dry-run.md").read_text()
    assert "no figure here says anything" in page
    assert page.count("<!-- dry-run begins -->") == 1  # a later section replaces the earlier one
    assert "| DeepLabV3-resnet18 | 2x3x32x32 | bfloat16 | inference |" in page


def test_the_checks_are_reported(tmp_path):
    done = report("--dry-run", "--quick", "--out", tmp_path, "--only", "2 classes")
    page = (tmp_path / "dry-run.md").read_text()
    assert done.returncode == 0, done.stderr
    for line in ("- pytest -m cuda: ", "--tool memcheck: 6 cases on cpu", "--tool racecheck: 6 "):
        assert line in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "this needs a GPU and a build with CUDA; --dry-run does without"),
        (["--dry-run"], "a dry run writes nothing into the project; name a folder with --out"),
        (["--dry-run", "--out", ".", "--only", "nothing"], "no case has 'nothing' in its name"),
    ],
)
def test_mistakes_get_a_sentence(arguments, message, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.chdir(tmp_path)
    done = report(*arguments, *(["--skip-checks"] if "--only" in arguments else []))
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"error: {message}")
    assert list(tmp_path.iterdir()) == []
