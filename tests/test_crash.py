"""Runs that are killed at any moment go on as if nothing had happened."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file

KILLS = int(os.environ.get("COLORSEG_KILLS", "3"))  # of the run; more takes longer
FLAGS = ["train", "unet", "--epochs", "4", "--num-filters", "4", "--threads", "1", "--batch-size"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A whole run, and the seconds it took as a process of its own."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    start = time.monotonic()
    assert process(out).wait() == 0
    return out, time.monotonic() - start


def process(out, *flags):
    command = [sys.executable, "-P", "-m", "colorseg", *FLAGS, "50", "--out", str(out), *flags]
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, stdout=quiet, stderr=quiet)


def test_killed_at_any_moment(uninterrupted, tmp_path):
    whole, seconds = uninterrupted
    moments, out = random.Random(0), tmp_path / "run"
    for _ in range(KILLS):
        run = process(out, "--resume")
        time.sleep(moments.uniform(0.3, 1) * seconds)
        run.send_signal(signal.SIGKILL)
        run.wait()
        kept = [path for path in out.glob("*") if path.suffix != ".tmp"]
        assert all(path.stat().st_size > 0 for path in kept)
    assert process(out, "--resume").wait() == 0
    want = load_file(whole / "model.safetensors")
    got = load_file(out / "model.safetensors")
    assert all((got[name] == want[name]).all() for name in want)
    losses = [(p / "metrics.csv").read_text().splitlines() for p in (out, whole)]
    rows = [[line.split(",")[:4] for line in lines] for lines in losses]  # without the seconds
    assert rows[0] == rows[1]


def test_killed_while_a_checkpoint_is_written(uninterrupted, tmp_path):
    """In front of the rename: the temporary file is whole or not, the old one is there."""
    whole, _ = uninterrupted
    out = tmp_path / "run"
    script = (
        "import os, signal, colorseg._files as files\n"
        "from colorseg.cli import main\n"
        "replace, seen = os.replace, []\n"
        "def killed(source, target):\n"
        "    seen.append(str(target))\n"
        "    if sum('last.pt' in name for name in seen) == 3:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    replace(source, target)\n"
        "os.replace = files.os.replace = killed\n"
        f"main({[*FLAGS, '50', '--out', str(out)]})\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True)
    assert done.returncode == -signal.SIGKILL
    assert len((out / "metrics.csv").read_text().splitlines()) == 3  # two epochs
    assert len([*out.glob(".*.tmp")]) == 1
    assert process(out, "--resume").wait() == 0
    assert {path.name for path in out.iterdir()} == {path.name for path in whole.iterdir()}
    want = load_file(whole / "model.safetensors")
    got = load_file(out / "model.safetensors")
    assert all((got[name] == want[name]).all() for name in want)
