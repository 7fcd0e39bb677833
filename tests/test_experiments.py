"""``colorseg reproduce --experiments`` on the embedded sample."""

import csv

import pytest

from colorseg.cli import main
from colorseg.report import RECIPES, experiments
from colorseg.report.experiments import EVERY_NETWORK, verdict
from colorseg.report.folder import RECORD, WRITTEN


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two seeds of every recipe, trained two at a time."""
    folder = tmp_path_factory.mktemp("experiments") / "report"
    experiments("sample", folder, seeds=(0, 1), quick=True, jobs=2)
    return folder


def test_tables_have_every_recipe(folder):
    for network, names in {"unet": RECIPES, "pool_upsample": EVERY_NETWORK}.items():
        with (folder / "tables" / f"recipes-{network}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["recipe"] for row in rows] == list(names)
        for row in rows[1:]:
            change = float(row["validation loss, mean"]) - float(rows[0]["validation loss, mean"])
            assert float(row["change"]) == pytest.approx(change, abs=2e-4)
            low, high = map(float, row["of the seeds"].split(" to "))
            assert low <= float(row["validation loss, mean"]) <= high
    assert (folder / "figures" / "recipes-unet.png").stat().st_size > 1000


def test_all_files_are_known_to_force(folder):
    files = {path for path in folder.rglob("*") if path.is_file()}
    runs, record = {*(folder / "runs").rglob("*")}, folder / RECORD
    assert files - runs - {record} == {path for name in WRITTEN for path in folder.glob(name)}


def test_what_is_finished_is_kept(folder, monkeypatch):
    def train(*_):
        raise AssertionError("nothing is missing")

    monkeypatch.setattr("colorseg.report.runs.fit", train)
    page = folder / "index.html"
    page.unlink()
    experiments("sample", folder, seeds=(0, 1), quick=True)
    assert page.exists()


def test_a_report_is_no_folder_of_experiments(folder, capsys):
    assert main(["reproduce", "--data", "sample", "--quick", "--out", str(folder)]) == 2
    assert "holds a report of other settings" in capsys.readouterr().err
    (folder / "index.html").stat()


@pytest.mark.parametrize(
    ("losses", "said"),
    [([1.0, 1.1], "better"), ([1.3, 1.45], "worse"), ([1.1, 1.25], "no clear difference")],
)
def test_verdict(losses, said):
    assert verdict(losses, [1.2, 1.28]) == said
