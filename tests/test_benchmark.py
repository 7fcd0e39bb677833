import csv
import importlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from colorseg import benchmark
from colorseg.benchmark import Case, ParityError, Result

SCRIPTS = Path(__file__).parents[1] / "benchmarks"
# script: part of the label of its smallest case
SMALLEST = {
    "bench_conv2d": "conv2d upsampled 32->24 100x32x8x8 float32 forward",
    "bench_conv_bn_relu": "stride 2 32->64 100x32x16x16 float32 inference",
    "bench_soft_iou_loss": "4x2x64x64",
    "bench_nearest_color": "uint8 100x3",
    "bench_color_cross_entropy": "RGB uint8",
    "bench_models": "UNet 1x1x32x32 float32 inference",
}


def fake(name="small", log=None, check=lambda: None, **work):
    calls = [] if log is None else log
    peers = {who: lambda who=who: calls.append(who) for who in ("eager", "other")}
    ours = lambda: calls.append("ours")  # noqa: E731
    return Case("add", name, (2, 3), "float32", "forward", ours, peers, check, **work)


def wrong():
    raise ParityError("eager: off by one")


@pytest.fixture(autouse=True)
def same_process(monkeypatch):
    """A run sets up its process, threads and allocator; other tests have theirs."""
    before = torch.get_num_threads()
    monkeypatch.setattr(benchmark, "_keep_memory", lambda: None)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def scripts(monkeypatch):
    """Import from benchmarks/ as a script there does."""
    monkeypatch.syspath_prepend(SCRIPTS)
    yield importlib.import_module
    for path in SCRIPTS.glob("*.py"):
        sys.modules.pop(path.stem, None)


def test_contestants_take_turns():
    log = []
    benchmark.run([fake(log=log)], quick=True)
    assert log == ["ours", "eager", "other"] * (benchmark.WARM_UP + benchmark.QUICK_ROUNDS)


@pytest.mark.parametrize(
    ("options", "rounds"), [({}, 20), ({"quick": True}, 5), ({"rounds": 23}, 23)]
)
def test_every_contestant_is_timed_in_every_round(options, rounds):
    (result,) = benchmark.run([fake()], **options)
    assert [len(t) for t in (result.ours, *result.peers.values())] == [rounds] * 3


@pytest.mark.parametrize("options", [{"rounds": 19}, {"rounds": 4, "quick": True}])
def test_too_few_rounds_are_refused(options):
    with pytest.raises(ValueError, match="rounds must be at least"):
        benchmark.run([fake()], **options)


def test_a_wrong_result_is_never_timed(capsys):
    log = []
    assert benchmark.main([fake(log=log, check=wrong), fake(log=log)], ["--quick"]) == 1
    assert log == []
    assert capsys.readouterr().err == "error: eager: off by one\n"


def test_the_check_comes_before_the_clock():
    log = []
    benchmark.run([fake(log=log, check=lambda: log.append("check"))], quick=True)
    assert log.count("check") == 1
    assert log[0] == "check"


def test_only_selects_by_what_is_printed():
    cases = [fake("small"), fake("large", check=wrong)]
    (result,) = benchmark.run(cases, quick=True, only="small 2x3 float32")
    assert str(result.case) == "add small 2x3 float32 forward"


def test_no_such_case_is_a_mistake_of_the_user(capsys):
    assert benchmark.main([fake()], ["--quick", "--only", "huge"]) == 2
    assert "no case has 'huge' in its name" in capsys.readouterr().err


def test_one_line_per_case_behind_the_machine(capsys):
    assert benchmark.main([fake("a"), fake("b")], ["--quick"]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert all(f"{name} {value}" in first for name, value in benchmark.machine().items())
    assert [line.split()[1] for line in lines] == ["a", "b"]


def test_threads_are_set(capsys):
    benchmark.main([fake()], ["--quick", "--threads", "1"])
    assert "threads 1," in capsys.readouterr().out
    assert torch.get_num_threads() == 1


def test_ratio_and_rate_are_of_medians():
    times = {"eager": [6, 4, 8], "other": [1, 5, 9]}
    result = Result(fake(flops=8e6), [2, 1, 7], times)
    assert (result.best, result.ratio("eager"), result.ratio("other")) == ("other", 3, 2.5)
    assert result.rate() == (4, "GFLOP/s")
    assert replace(result, case=fake(bytes=2e6)).rate() == (1, "GB/s")
    assert "ours 1/2  eager 4/6  other 1/5  ratio 2.50 (other)  4 GFLOP/s" in str(result)


def test_a_csv_row_per_case_and_run(tmp_path):
    path = tmp_path / "results.csv"
    for name in ("a", "b"):
        benchmark.run([fake(name), fake(name + "2")], quick=True, csv=path)
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["a", "a2", "b", "b2"]
    facts, times = benchmark.machine(), ("min", "p20", "p50", "p80")
    assert list(rows[0]) == [
        *facts, "op", "name", "shape", "dtype", "direction", "rounds", "peer",
        *(f"ours_{t}" for t in times), *(f"peer_{t}" for t in times),
        "ratio", "rate", "unit", "medians",
    ]  # fmt: skip
    assert {name: rows[0][name] for name in facts} == {k: str(v) for k, v in facts.items()}
    assert {p.split("=")[0] for p in rows[0]["medians"].split()} == {"eager", "other"}


def test_quantiles_in_the_csv_row():
    times = [float(t) for t in range(10, -1, -1)]
    row = Result(fake(), times, {"eager": times}).row()
    expected = {"min": 0, "p20": 2, "p50": 5, "p80": 8}
    assert {k: row[f"{who}_{k}"] for who in ("ours", "peer") for k in expected} == expected


def test_a_csv_file_with_other_columns_is_left_alone(tmp_path, capsys):
    path = tmp_path / "results.csv"
    path.write_text("name,ms\na,1\n")
    assert benchmark.main([fake()], ["--quick", "--csv", str(path)]) == 2
    assert path.read_text() == "name,ms\na,1\n"
    assert "has other columns" in capsys.readouterr().err


def test_a_parity_check_sees_one_wrong_value_and_forgives_a_tie(scripts):
    peers = scripts("peers")
    want = [torch.ones(1000, 1000), torch.ones(1000, 1000)]
    flipped = [want[0], want[1].clone()]
    flipped[1][0, 0] = 0
    peers.check_parity(want, "ours", flipped, peers.TIES)
    for wrong_one in (flipped[::-1], [want[0], want[1] * float("nan")]):
        with pytest.raises(ParityError, match="ours: result"):
            peers.check_parity(want, "ours", wrong_one, peers.TIES)


def test_layouts_differ_even_for_one_channel(scripts):
    peers, x = scripts("peers"), torch.zeros(2, 1, 4, 5)
    for t in (x, peers.channels_last(x)):
        assert peers.default_layout(t).stride() == (20, 20, 5, 1)
        assert peers.channels_last(t).stride() == (20, 1, 5, 1)


def test_a_script_is_a_command():
    script, case = SCRIPTS / "bench_soft_iou_loss.py", SMALLEST["bench_soft_iou_loss"]
    command = [sys.executable, script, "--quick", "--threads", "1", "--only", case]
    environment = os.environ | {"PYTHONPATH": str(Path(benchmark.__file__).parents[1])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 3
    assert done.stderr == ""


def test_every_script_has_its_smallest_case_listed():
    assert {path.stem for path in SCRIPTS.glob("bench_*.py")} == SMALLEST.keys()


@pytest.mark.parametrize("script", SMALLEST)
def test_a_script_runs_its_smallest_case(script, scripts, capsys):
    module = scripts(script)
    cases = list(module.cases())
    assert len(cases) == len({str(case) for case in cases})
    assert benchmark.main(cases, ["--quick", "--threads", "1", "--only", SMALLEST[script]]) == 0
    assert len(capsys.readouterr().out.splitlines()) > 1
