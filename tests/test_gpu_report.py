"""The report of a GPU, tried out without one."""

import csv
import importlib
from pathlib import Path

import pytest
import torch

from colorseg.benchmark import harness

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def report(monkeypatch):
    """The script's main function, which leaves threads and allocator as they were."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(harness, "_keep_memory", lambda: None)
    threads = torch.get_num_threads()
    yield lambda *arguments: importlib.import_module("gpu_report").main([*map(str, arguments)])
    torch.set_num_threads(threads)


def test_a_dry_run_takes_the_whole_way(report, tmp_path):
    for only in ("24 colors", "UNet 2x1x8x8 bfloat16", "DeepLabV3"):
        checks = [] if only == "24 colors" else ["--skip-checks"]
        assert report("--dry-run", "--quick", "--out", tmp_path, "--only", only, *checks) == 0
        page = (tmp_path / "dry-run.md").read_text()
        assert "no figure here says anything" in page
        assert page.count("<!-- dry-run begins -->") == 1  # a section replaces the earlier one
        if checks:
            continue
        for line in ("- pytest -m cuda: ", "--tool memcheck: 6 cases", "--tool racecheck: 6 cases"):
            assert line in page
    assert "| DeepLabV3-resnet18 | 2x3x32x32 | bfloat16 | inference |" in page
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == ["dry-run.csv", "dry-run.md", "dry-run.png"]
    with (tmp_path / "dry-run.csv").open() as file:
        directions = [row["direction"] for row in csv.DictReader(file)]
    assert directions == [
        "forward", "forward+backward", "training step", "inference", "inference", "training step",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "this needs a GPU and a build with CUDA; --dry-run does without"),
        (["--dry-run"], "a dry run writes nothing into the project; name a folder with --out"),
        (["--dry-run", "--out", ".", "--only", "nothing"], "no case has 'nothing' in its name"),
    ],
)
def test_mistakes_get_a_sentence(arguments, message, report, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    assert report(*arguments, "--skip-checks") == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {message}")
    assert list(tmp_path.iterdir()) == []
