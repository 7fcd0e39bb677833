from dataclasses import replace

import pytest
import torch
from fake_cases import StillLimits, contestant, fake, same_process  # noqa: F401

from colorseg import benchmark
from colorseg.benchmark import ParityError, Result, Unavailable, harness, timing

pytestmark = pytest.mark.usefixtures("same_process")


def missing():
    raise Unavailable("it is not installed; pip install it")


def broken():
    raise RuntimeError("no compiler was found\nand much more about that")


def test_contestants_take_turns():
    log = []
    benchmark.run([fake(log=log)], quick=True)
    turns = [who for who in ("ours", "eager", "other") for _ in range(2)]  # one call is not timed
    assert log[-len(turns) * harness.QUICK_ROUNDS :] == turns * harness.QUICK_ROUNDS
    warm_up = log[: -len(turns) * harness.QUICK_ROUNDS]
    assert warm_up == [who for who in ("ours", "eager", "other") for _ in range(2 * timing.WARM_UP)]


@pytest.mark.parametrize(
    ("options", "rounds"), [({}, 20), ({"quick": True}, 5), ({"rounds": 23}, 23)]
)
def test_every_contestant_is_timed_in_every_round(options, rounds):
    ((result,), _) = benchmark.run([fake()], **options)
    assert [len(t) for t in (result.ours, *result.peers.values())] == [rounds] * 3


@pytest.mark.parametrize("options", [{"rounds": 19}, {"rounds": 4, "quick": True}])
def test_too_few_rounds_are_refused(options):
    with pytest.raises(ValueError, match="rounds must be at least"):
        benchmark.run([fake()], **options)


def test_short_calls_are_repeated_within_a_turn(monkeypatch):
    log = []
    monkeypatch.setattr(timing, "TURN_MS", 1e6)
    benchmark.run([fake(log=log)], quick=True)
    turn = [who for who in ("ours", "eager", "other") for _ in range(1 + timing.MOST_CALLS)]
    assert log[3 * 2 * timing.WARM_UP :] == turn * harness.QUICK_ROUNDS


def test_a_wrong_result_is_never_timed(capsys):
    log = []
    assert benchmark.main([fake(log=log, ours=1.1), fake(log=log)], ["--quick"]) == 1
    assert log == []
    error = capsys.readouterr().err
    assert error.startswith("error: add small 2x3 float32 forward, ours: result 0 (scalar) is 1.0e")


def test_a_wrong_peer_is_an_error_too():
    case = replace(fake(), peers={"eager": contestant("eager", [], float("nan"))})
    with pytest.raises(ParityError, match="eager: result 0"):
        benchmark.run([case], quick=True)


@pytest.mark.parametrize(
    ("make", "reason"), [(missing, "it is not installed"), (broken, "no compiler was found")]
)
def test_a_peer_that_cannot_run_is_named_once(make, reason, capsys):
    cases = [replace(case, peers={"X": make, **case.peers}) for case in (fake("a"), fake("b"))]
    assert benchmark.main(cases, ["--quick"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "left out" in line]
    assert len(lines) == 1
    assert lines[0].startswith(f"left out: X, {reason}")


def test_a_case_that_ours_cannot_run_is_named(capsys):
    assert benchmark.main([replace(fake("a"), ours=missing), fake("b")], ["--quick"]) == 0
    out = capsys.readouterr().out
    assert "left out: add a 2x3 float32 forward, it is not installed; pip install it\n" in out
    assert "add b" in out


def test_a_case_without_peers_is_named(capsys):
    assert benchmark.main([replace(fake(), peers={"X": missing})], ["--quick"]) == 0
    assert "forward, there is no peer that can run" in capsys.readouterr().out


def test_peers_are_selected_by_name():
    ((result,), _) = benchmark.run([fake()], quick=True, peers="other,")
    assert list(result.peers) == ["other"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--peers", "eagre"], "no case has the peer 'eagre', only eager, other"),
        (["--threads", "0"], "threads must be at least 1, got 0"),
        (["--csv", "nowhere/file.csv"], "cannot write to nowhere/file.csv"),
        (["--check", "nowhere.csv"], "cannot read nowhere.csv: No such file"),
    ],
)
def test_mistakes_get_a_sentence(options, message, capsys):
    assert benchmark.main([fake()], ["--quick", *options]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_a_peer_that_no_case_has_is_refused_before_anything_runs(capsys):
    log = []
    cases = (fake(name, log=log) for name in ("a", "b"))
    assert benchmark.main(cases, ["--quick", "--peers", "eager,eagre"]) == 2
    assert "no case has the peer 'eagre'" in capsys.readouterr().err
    assert log == []


def test_only_selects_by_what_is_printed():
    cases = [fake("small"), fake("large", ours=2.0)]
    ((result,), _) = benchmark.run(cases, quick=True, only="small 2x3 float32")
    assert str(result.case) == "add small 2x3 float32 forward"


def test_no_such_case_is_a_mistake_of_the_user(capsys):
    assert benchmark.main([fake()], ["--quick", "--only", "huge"]) == 2
    assert "no case has 'huge' in its name" in capsys.readouterr().err


def test_one_line_per_case_behind_the_machine(capsys):
    assert benchmark.main([fake("a"), fake("b")], ["--quick"]) == 0
    first, limits, *lines = capsys.readouterr().out.splitlines()
    assert all(f"{name} {value}" in first for name, value in benchmark.machine().items())
    assert limits == str(StillLimits())
    assert [line.split()[1] for line in lines] == ["a", "b"]


def test_threads_are_set(capsys):
    benchmark.main([fake()], ["--quick", "--threads", "1"])
    assert "threads 1," in capsys.readouterr().out
    assert torch.get_num_threads() == 1


def test_ratio_and_rate_are_of_medians():
    times = {"eager": [6, 4, 8], "other": [1, 5, 9]}
    result = Result(fake(flops=8e6, bytes=2e6), [2, 1, 7], times, peak=16, bandwidth=5)
    assert (result.best, result.ratio("eager"), result.ratio("other")) == ("other", 3, 2.5)
    assert result.rate() == (4, "GFLOP/s")
    assert (result.of_limit(), result.ceiling()) == (25, 10)
    in_memory = replace(result, case=fake(bytes=2e6))
    assert (in_memory.rate(), in_memory.of_limit()) == ((1, "GB/s"), 20)
    assert "ours 1/2  eager 4/6  other 1/5  ratio 2.50 (other), at the limit 10" in str(result)
    assert str(result).endswith("  4 GFLOP/s, 25 % of the limit")
