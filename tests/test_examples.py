import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import colorseg

EXAMPLES = Path(__file__).parents[1] / "examples"


def python(script, *flags, cwd):
    """Run an example as its user does."""
    paths = [str(Path(colorseg.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        [sys.executable, str(EXAMPLES / script), *flags],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
    )


def test_train_unet(tmp_path):
    done = python("train_unet.py", "--epochs", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "best             1" in done.stdout
    assert "epoch 1/1: train loss" in done.stderr
    assert "\r" not in done.stderr  # no progress bar where nobody watches
    assert (tmp_path / "runs/unet/samples.png").stat().st_size > 10_000


@pytest.mark.parametrize("network", ["pool_upsample", "conv_transpose"])
def test_train_the_others(network, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train", "--epochs", "1", "--num-filters", "4"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(EXAMPLES / f"train_{network}.py"), run_name="__main__")
    assert stop.value.code == 0
    assert f"runs/{network}/model.safetensors" in capsys.readouterr().out
    assert (tmp_path / f"runs/{network}/model.safetensors").exists()


def test_a_mistake_ends_with_code_2_and_no_traceback(tmp_path):
    done = python("train_unet.py", "--data", "nowhere", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: there is no nowhere")
    assert "Traceback" not in done.stderr


def test_own_network(tmp_path):
    done = python("own_network.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert float(lines[0].split()[-1]) < 1e-4  # outputs of fused and plain
    plain, fused = (float(line.split()[2].rstrip(",")) for line in lines[-2:])
    assert fused == pytest.approx(plain, abs=2e-3)


def test_colorize_photo(tmp_path):
    """Pictures of the sample, and a photograph at its own size, with what is compared."""
    done = python("colorize_photo.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "colored.png: grey, colored, original\n"
    with Image.open(tmp_path / "colored.png") as picture:
        assert picture.size == (4 * 3 * 32, 4 * 8 * 32)
        picture.crop((128, 0, 384, 1024)).resize((50, 40)).save(tmp_path / "photo.png")
    done = python("colorize_photo.py", "photo.png", "--out", "own.png", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "own.png") as picture:
        grey, colored, original = np.split(np.array(picture, int), 3, axis=1)
    assert np.array_equal(original, np.array(Image.open(tmp_path / "photo.png")))
    assert np.ptp(grey, axis=2).max() == 0
    assert np.ptp(colored, axis=2).max() > 10
