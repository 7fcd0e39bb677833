import csv
import importlib
from pathlib import Path

import pytest
from fake_cases import fake, same_process  # noqa: F401

from colorseg import benchmark
from colorseg.benchmark import Result
from colorseg.benchmark.case import COLUMNS
from colorseg.benchmark.records import Baseline

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
pytestmark = pytest.mark.usefixtures("same_process")


def test_a_csv_row_per_case_and_run(tmp_path):
    path = tmp_path / "results.csv"
    for name in ("a", "b"):
        benchmark.run([fake(name), fake(name + "2")], quick=True, csv=path)
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["a", "a2", "b", "b2"]
    facts = benchmark.machine()
    assert list(rows[0]) == [*facts, *COLUMNS]
    assert {name: rows[0][name] for name in facts} == {k: str(v) for k, v in facts.items()}
    assert {p.split("=")[0] for p in rows[0]["medians"].split(";")} == {"eager", "other"}


def test_quantiles_in_the_csv_row():
    times = [float(t) for t in range(10, -1, -1)]
    row = Result(fake(), times, {"eager": times}, 1, 1).row()
    expected = {"min": 0, "p20": 2, "p50": 5, "p80": 8}
    assert {k: row[f"{who}_{k}"] for who in ("ours", "peer") for k in expected} == expected


def test_a_csv_file_with_other_columns_is_left_alone(tmp_path, capsys):
    path = tmp_path / "results.csv"
    path.write_text("name,ms\na,1\n")
    assert benchmark.main([fake()], ["--quick", "--csv", str(path)]) == 2
    assert path.read_text() == "name,ms\na,1\n"
    assert "has other columns" in capsys.readouterr().err


def committed(path, **rows):
    """A file with a ratio to peer "eager" per case name; only the columns that a check needs."""
    lines = [f"2,add,{name},2x3,float32,forward,eager,{ratio}" for name, ratio in rows.items()]
    path.write_text("\n".join(["threads,op,name,shape,dtype,direction,peer,ratio", *lines]))
    return path


def timed(name, ours, **peers):
    return Result(fake(name), [ours], {who: [t] for who, t in peers.items()}, 1, 1)


@pytest.mark.parametrize(("ours", "fell"), [(1.0, False), (1.17, False), (1.18, True)])
def test_a_check_sees_a_ratio_that_fell_by_more_than_15_percent(ours, fell, tmp_path):
    baseline = Baseline(committed(tmp_path / "old.csv", a=2.0), threads=2)
    line = baseline.fall(timed("a", ours, eager=2.0))
    assert (line is not None) == fell
    if fell:
        assert line.endswith(
            "add a 2x3 float32 forward, ratio to eager fell from 2.00 to 1.69, by more than 15%"
        )


def test_a_check_compares_with_the_peer_of_the_file_if_it_runs(tmp_path):
    baseline = Baseline(committed(tmp_path / "old.csv", a=2.0), threads=2)
    assert baseline.fall(timed("a", 1.0, eager=2.0, other=0.5)) is None
    assert "ratio to other fell from 2.00 to 0.50" in baseline.fall(timed("a", 1.0, other=0.5))


def test_a_check_names_cases_that_the_file_lacks(tmp_path, capsys):
    path = committed(tmp_path / "old.csv", a=1e-6, b=1e9)
    options = ["--quick", "--threads", "2", "--check", str(path)]
    assert benchmark.main([fake("a"), fake("c")], options) == 0
    out = capsys.readouterr().out
    assert f"not compared: {path} has no add c 2x3 float32 forward with 2 threads\n" in out
    assert "no add a" not in out


def test_a_check_exits_with_1_and_a_line_per_case(tmp_path, capsys):
    path = committed(tmp_path / "old.csv", a=1e9, b=1e-9, c=1e9)
    options = ["--quick", "--threads", "2", "--check", str(path)]
    assert benchmark.main([fake(name) for name in "abc"], options) == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" add ")[1][0] for line in lines] == ["a", "c"]


def test_a_run_passes_the_check_against_itself(tmp_path):
    path = tmp_path / "new.csv"
    (result,), _ = benchmark.run([fake()], quick=True, threads=2, csv=path)
    assert Baseline(path, 1).lacks(result.case)
    assert Baseline(path, 2).lacks(result.case) is None
    assert Baseline(path, 2).fall(result) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "is no benchmark's CSV file: it lacks op"),
        ("", "is no benchmark's CSV file"),
        (
            "threads,op,name,shape,dtype,direction,peer,ratio\n2,add,a,2x3,float32,forward,eager,?",
            "has a row whose threads or ratio is no number",
        ),
    ],
)
def test_a_check_refuses_other_files(text, message, tmp_path, capsys):
    path = tmp_path / "other.csv"
    path.write_text(text)
    assert benchmark.main([fake()], ["--quick", "--threads", "2", "--check", str(path)]) == 2
    assert message in capsys.readouterr().err


@pytest.fixture
def roofline(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("roofline")


def test_the_roofline_is_drawn_from_the_file(roofline, tmp_path):
    path, picture = tmp_path / "results.csv", tmp_path / "roofline.png"
    cases = [
        fake("a", flops=1e6, bytes=1e5),
        fake("b", flops=1e6, bytes=1e7),
        fake("loss", bytes=9),
    ]
    benchmark.run(cases, quick=True, csv=path)
    assert roofline.main([str(path), str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("work", "message"),
    [({"bytes": 1e6}, "no row has both flops and bytes"), (None, "cannot read")],
)
def test_a_roofline_needs_a_file_with_operations(work, message, roofline, tmp_path, capsys):
    path = tmp_path / "results.csv"
    if work:
        benchmark.run([fake(**work)], quick=True, csv=path)
    assert roofline.main([str(path), str(tmp_path / "roofline.png")]) == 2
    assert message in capsys.readouterr().err
