import importlib
import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from fake_cases import fake, same_process  # noqa: F401

import colorseg
from colorseg import _C, benchmark, cli, models
from colorseg.benchmark import Limits, ParityError, Unavailable, inference, limits, peers, timing
from colorseg.benchmark.memory import peak_memory
from colorseg.benchmark.models import Segmenter, model_case
from colorseg.benchmark.networks import Problem

SCRIPTS = Path(__file__).parents[1] / "benchmarks"
# script: part of the label of its smallest case
SMALLEST = {
    "bench_conv2d": "conv2d upsampled 32->24 100x32x8x8 float32 forward",
    "bench_conv_bn_relu": "stride 2 32->64 100x32x16x16 float32 inference",
    "bench_soft_iou_loss": "4x2x64x64",
    "bench_nearest_color": "uint8 100x3",
    "bench_color_cross_entropy": "RGB uint8",
    "bench_models": "UNet 1x1x32x32 float32 inference",
    "bench_scaling": "UNet 1x1x32x32 float32 inference",
}
pytestmark = pytest.mark.usefixtures("same_process")


@pytest.fixture
def scripts(monkeypatch):
    """Import from benchmarks/ as a script there does."""
    monkeypatch.syspath_prepend(SCRIPTS)
    yield importlib.import_module
    for path in SCRIPTS.glob("*.py"):
        sys.modules.pop(path.stem, None)


def test_limits_are_positive_and_finite(monkeypatch):
    monkeypatch.setattr(limits, "SECONDS", 1e-3)
    monkeypatch.setattr(limits, "REPEATS", 1)
    monkeypatch.setattr(limits, "_beyond_caches", lambda: 2**20)
    measured = Limits()
    assert list(measured.peaks) == _C.available_isas
    rates = [*measured.peaks.values(), measured.memory, measured.copy(0), measured.copy(10**5)]
    for rate in (*rates, measured.peak("float32"), measured.peak("bfloat16")):
        assert 0 < rate < math.inf
    assert all(isa in str(measured) for isa in measured.peaks)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("sse9", 0.001), "no instruction set sse9, but scalar"), (("scalar", 0.0), "positive")],
)
def test_the_peak_is_of_an_instruction_set_that_is_there(arguments, message):
    with pytest.raises(ValueError, match=message):
        _C.measure_peak(*arguments)


def test_a_parity_check_sees_one_wrong_value_and_forgives_a_tie():
    want = [torch.ones(1000, 1000), torch.ones(1000, 1000)]
    flipped = [want[0], want[1].clone()]
    flipped[1][0, 0] = 0
    benchmark.check_parity(want, "ours", flipped, benchmark.TIES)
    for wrong_one in (flipped[::-1], [want[0], want[1] * float("nan")], [want[0], want[1][0]]):
        with pytest.raises(ParityError, match="ours: result"):
            benchmark.check_parity(want, "ours", wrong_one, benchmark.TIES)


def test_layouts_differ_even_for_one_channel():
    x = torch.zeros(2, 1, 4, 5)
    for t in (x, peers.channels_last(x)):
        assert peers.default_layout(t).stride() == (20, 20, 5, 1)
        assert peers.channels_last(t).stride() == (20, 1, 5, 1)


NETWORKS = {
    "UNet": (models.UNet, (1, 8, 8)),
    "DeepLabV3": (partial(Segmenter, "resnet18"), (3, 9, 9)),
}


@pytest.mark.parametrize("direction", ["inference", "training step"])
@pytest.mark.parametrize("name", NETWORKS)
def test_network_contestants_agree_with_the_reference(name, direction):
    network, size = NETWORKS[name]
    case = model_case(name, network, 2, size, direction)
    made = timing.prepare(case, ["eager", "channels_last"], print)
    assert list(made) == ["ours", "eager", "channels_last"]
    for one in made.values():
        one.call()


def test_a_training_step_is_three_passes():
    """Forward, the gradients of the inputs, and those of the weights."""
    work = {}
    for direction in ("inference", "training step"):
        case = model_case("UNet", models.UNet, 2, (1, 8, 8), direction)
        work[direction] = case.flops, case.bytes
    connections = models.summary(models.UNet(), (1, 8, 8)).total("connections")
    assert work["inference"][0] == 2 * 2 * connections
    assert work["training step"] == tuple(3 * amount for amount in work["inference"])


def test_exported_peers_need_their_packages(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "openvino", None)
    case = model_case("UNet", models.UNet, 2, (1, 8, 8), "inference")
    for name, package in (("ONNX Runtime", "onnxruntime"), ("OpenVINO", "openvino")):
        with pytest.raises(Unavailable, match=rf"^{package} cannot .*colorseg\[benchmark\]"):
            case.peers[name]()
    with pytest.raises(Unavailable, match=r"^onnx cannot"):
        inference.export(Problem(models.UNet, 1, (1, 8, 8), False))


def test_the_peers_are_those_that_a_comparison_has_to_name():
    known = {
        direction: set(model_case("UNet", models.UNet, 1, (1, 8, 8), direction).peers)
        for direction in ("inference", "training step")
    }
    compiled = {"eager", "channels_last", "compile", "compile+channels_last"}
    exported = {"jit.freeze", "jit.freeze+channels_last", "ONNX Runtime", "OpenVINO"}
    assert known == {"inference": compiled | exported, "training step": compiled}


def test_bfloat16_is_left_out_where_there_are_no_kernels(monkeypatch, capsys):
    def refuse(model, dtype):
        raise ValueError("no instructions for it")

    def optimize(model, dtype):
        return model.to(dtype)

    case = model_case("UNet", models.UNet, 1, (1, 8, 8), "inference", bfloat16=True)
    monkeypatch.setattr(colorseg, "optimize_for_inference", refuse, raising=False)
    assert benchmark.main([case], ["--quick"]) == 0
    assert "no instructions for it" in capsys.readouterr().out
    monkeypatch.setattr(colorseg, "optimize_for_inference", optimize, raising=False)
    ((result,), _) = benchmark.run([case], quick=True, peers="channels_last")
    assert str(result.case) == "models UNet 1x1x8x8 bfloat16 inference"


def test_peak_memory_is_of_what_lives_at_the_same_time():
    def call():
        for _ in range(3):
            first = torch.zeros(1000)
            del first
        return torch.zeros(500), torch.zeros(250)

    assert 4000 <= peak_memory(call) < 4400


@pytest.mark.parametrize(("scaled", "times_of_one"), [(False, 1), (True, -1)])
def test_upstream_gradient_of_what_is_timed(scaled, times_of_one, monkeypatch):
    """1 as in loss.backward() unless scaled; parity is checked with another."""
    monkeypatch.setattr(torch, "randn", lambda *size, **_: torch.full(*size, -1.0))
    x, labels = torch.ones(3), ("sum", "", "forward+backward")
    case = peers.operator_case(
        labels, torch.sum, torch.sum, [x], gradients=(0,), compiles=False, scaled=scaled
    )
    for make in (case.ours, *case.peers.values()):
        contestant = make()
        assert contestant.results()[1].eq(-1).all()
        assert contestant.call()[1].eq(times_of_one).all()


def test_a_script_is_a_command():
    script, case = SCRIPTS / "bench_soft_iou_loss.py", SMALLEST["bench_soft_iou_loss"]
    command = [sys.executable, script, "--quick", "--threads", "1", "--peers", "eager"]
    environment = os.environ | {"PYTHONPATH": str(Path(colorseg.__file__).parents[1])}
    done = subprocess.run(
        [*command, "--only", case], env=environment, capture_output=True, text=True, check=True
    )
    assert len(done.stdout.splitlines()) == 5
    assert done.stderr == ""


def test_every_script_has_its_smallest_case_listed():
    scripts = {path.stem for path in SCRIPTS.glob("bench_*.py")}
    assert scripts == SMALLEST.keys() | {"bench_memory"}


@pytest.mark.parametrize("script", SMALLEST)
def test_a_script_runs_its_smallest_case(script, scripts, capsys):
    module = scripts(script)
    cases = list(module.cases())
    assert len(cases) == len({str(case) for case in cases})
    options = ["--quick", "--threads", "1", "--peers", "eager", "--only", SMALLEST[script]]
    run = getattr(module, "main", None) if script == "bench_scaling" else None
    assert (run or partial(benchmark.main, cases))(options) == 0
    assert len(capsys.readouterr().out.splitlines()) > 2


def test_memory_script(scripts, capsys):
    assert scripts("bench_memory").main(["--only", "UNet 32", "--threads", "1"]) == 0
    assert "ratio" in capsys.readouterr().out.splitlines()[-1]
    assert scripts("bench_memory").main(["--only", "VNet"]) == 2
    assert "no case has 'VNet'" in capsys.readouterr().err


def test_the_command(capsys):
    options = ["--quick", "--threads", "1", "--peers", "eager"]
    assert cli.main(["benchmark", *options, "--only", "UNet 1x1x32x32 float32"]) == 0
    assert "models UNet 1x1x32x32 float32 inference" in capsys.readouterr().out
    assert cli.main(["benchmark", *options, "--only", "VNet"]) == 2
    assert capsys.readouterr().err.startswith("error: no case has 'VNet' in its name")
