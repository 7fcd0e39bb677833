import json
import subprocess
import sys
from pathlib import Path

import pytest

import colorseg
from colorseg import cli
from colorseg._version import __version__
from colorseg.training import Config
from colorseg.training.command import main as train

ROOT = Path(colorseg.__file__).parents[1]


def test_info_has_one_line_per_fact(capsys):
    assert cli.main(["info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == list(colorseg.build_info())


def test_info_as_json(capsys):
    assert cli.main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts == json.loads(json.dumps(colorseg.build_info()))


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"colorseg {__version__}\n"


@pytest.mark.parametrize("argv", [["paint"], [], ["info", "--xml"]])
def test_unknown_commands_show_the_usage(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(argv)
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("usage: colorseg")


def test_a_broken_install_gets_a_sentence(monkeypatch, capsys):
    def broken():
        raise ImportError("the compiled part is missing; run pip install -e .")

    monkeypatch.setattr(colorseg, "build_info", broken)
    assert cli.main(["info"]) == 2
    assert capsys.readouterr().err == "error: the compiled part is missing; run pip install -e .\n"


def test_help_does_not_wait_for_torch():
    script = "import sys, colorseg.cli; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


def test_training_command_resumes_with_the_settings_of_the_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ["--epochs", "1", "--num-filters", "2", "--batch-size", "400", "--lr", "0.02"]
    assert train("unet", flags) == 0
    assert "accuracy" in capsys.readouterr().out
    assert train("unet", ["--resume", "--epochs", "2"]) == 0
    resumed = Config.load("runs/unet/config.json")
    assert (resumed.lr, resumed.epochs, resumed.num_filters) == (0.02, 2, 2)
    assert len(Path("runs/unet/metrics.csv").read_text().splitlines()) == 3


def test_training_command_never_overwrites_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    old = Path("runs/conv_transpose/last.pt")
    old.parent.mkdir(parents=True)
    old.write_bytes(b"of an older run")
    flags = ["--epochs", "1", "--num-filters", "2", "--batch-size", "600"]
    assert train("conv_transpose", flags) == 0
    assert Path("runs/conv_transpose-2/model.safetensors").exists()
    assert train("conv_transpose", [*flags, "--out", "runs/conv_transpose"]) == 2
    assert "holds a training run already; continue it with --resume" in capsys.readouterr().err
    assert list(old.parent.iterdir()) == [old]
    assert old.read_bytes() == b"of an older run"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data", "nowhere"], "there is no nowhere"),
        (["--epochs", "0"], "epochs must be a whole number"),
        (["--threads", "0"], "--threads must be at least 1"),
        (["--device", "cuda:99"], "device cuda:99 cannot be used"),
        (["--out", "file/run"], "cannot write to the folder file/run: Not a directory"),
    ],
)
def test_training_command_answers_mistakes_with_a_sentence(
    flags, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert train("unet", flags) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"error: {message}")


def test_training_command_refuses_unknown_flags(capsys):
    with pytest.raises(SystemExit) as stop:
        train("unet", ["--colour"])
    assert stop.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_training_command_ends_with_130_after_ctrl_c(tmp_path, monkeypatch, caplog):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("colorseg.training.run.Run.epoch", interrupted)
    assert train("unet", ["--num-filters", "2"]) == 130
    assert "0 of 25 epochs are in runs/unet" in caplog.text
    assert "continue with --resume" in caplog.text
