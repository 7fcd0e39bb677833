"""``torchrun -m colorseg train``: one run by several processes."""

import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist
from spawned import ENVIRONMENT, FLAGS, rows, spawn, torchrun

from colorseg.cli import main
from colorseg.training import ranks
from colorseg.training.ranks import from_first, is_told


def free_port():
    with socket.socket() as any_port:
        any_port.bind(("localhost", 0))
        return any_port.getsockname()[1]


# fails where a thread of gloo is left: at the interpreter's end it might abort
ENDED = """
import sys
from pathlib import Path
from colorseg.cli import main

code = main(sys.argv[1:])
names = [comm.read_text() for comm in Path("/proc/self/task").glob("*/comm")]
sys.exit(code or any("gloo" in name for name in names))
"""


def test_two_processes_train_as_one_and_go_on(tmp_path):
    out, alone = tmp_path / "two", tmp_path / "one"
    flags = [*FLAGS, "--sync-bn", "--epochs"]
    (tmp_path / "ended.py").write_text(ENDED)
    done = torchrun(*flags, "1", "--out", str(out), program=[str(tmp_path / "ended.py")])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epochs: 1") == 1  # one of them reports
    assert done.stderr.count("epoch 1/1") == 1
    assert main([*flags, "1", "--out", str(alone)]) == 0
    (two,), (one,) = rows(out), rows(alone)
    assert float(two["train_loss"]) == pytest.approx(float(one["train_loss"]), rel=1e-5)
    assert float(two["val_loss"]) == pytest.approx(float(one["val_loss"]), rel=1e-2)
    assert {p.name for p in out.iterdir()} == {p.name for p in alone.iterdir()}
    done = torchrun(*flags, "2", "--out", str(out), "--resume")
    assert done.returncode == 0, done.stderr
    assert [row["epoch"] for row in rows(out)] == ["1", "2"]


# kills the second rank behind the first epoch, once
KILLED = """
import os, signal, sys
from pathlib import Path
import torch.distributed as dist
from colorseg.cli import main
from colorseg.training.run import Run

epoch = Run.epoch

def killed(run):
    epoch(run)
    dist.barrier()  # the first one writes
    mark = Path(sys.argv[-1] + ".killed")
    if os.environ["RANK"] == "1" and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)

Run.epoch = killed
sys.exit(main(sys.argv[1:]))
"""


def test_a_run_whose_rank_died_goes_on_behind_the_last_epoch(tmp_path):
    """By hand, and by torchrun, which starts all ranks again."""
    (tmp_path / "killed.py").write_text(KILLED)
    program, flags = [str(tmp_path / "killed.py")], [*FLAGS, "--epochs", "3", "--resume", "--out"]
    done = torchrun(*flags, str(tmp_path / "killed"), program=program)
    assert done.returncode != 0
    assert [row["epoch"] for row in rows(tmp_path / "killed")] == ["1"]
    done = torchrun(*flags, str(tmp_path / "killed"))
    assert done.returncode == 0, done.stderr
    assert "continuing after epoch 1" in done.stderr
    done = torchrun(*flags, str(tmp_path / "restarted"), program=program, restarts=2)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("failed (exitcode: -9)") == 1
    assert done.stderr.count("failed (exitcode: ") == 1  # the second attempt comes through
    assert torchrun(*flags, str(tmp_path / "whole")).returncode == 0
    *runs, whole = (rows(tmp_path / name) for name in ("killed", "restarted", "whole"))
    for row in (*runs[0], *runs[1], *whole):
        del row["seconds"], row["images_per_second"]
    assert runs == [whole, whole]


def test_nodes_start_again_together(tmp_path):
    """Each has a torchrun of its own, which counts its attempts for itself, and its own disk."""
    (tmp_path / "killed.py").write_text(KILLED)
    port, nodes = free_port(), {tmp_path / f"node{i}": None for i in range(2)}
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1",
        "--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{port}", "--max-restarts", "2",
        str(tmp_path / "killed.py"), *FLAGS, "--epochs", "2", "--resume", "--out", "run",
    ]  # fmt: skip
    for folder in nodes:
        folder.mkdir()
        with (folder / "log").open("w") as log:
            nodes[folder] = subprocess.Popen(command, env=ENVIRONMENT, stderr=log, cwd=folder)
    try:
        codes = [node.wait(timeout=120) for node in nodes.values()]
    finally:
        for node in nodes.values():
            node.terminate()  # and with it its ranks
    errors = [(folder / "log").read_text() for folder in nodes]
    assert codes == [0, 0], errors
    assert sum(e.count("failed (exitcode: -9)") for e in errors) == 1
    (run,) = tmp_path.glob("node*/run")  # torchrun decides whose rank is the first
    assert [row["epoch"] for row in rows(run)] == ["1", "2"]


@pytest.mark.parametrize("size", [1, 2, 4])
def test_ranks_meet_whatever_dead_ones_have_left(size):
    store, names = dist.HashStore(), []
    for _ in range(3):  # attempts
        for rank in range(1, size):  # who died behind the question
            store.set(f"question/{rank}", "nobody's")
        with ThreadPoolExecutor(size) as pool:
            met = {*pool.map(lambda rank: ranks._meet(store, rank, size), range(size))}
        assert len(met) == 1
        names.extend(met)
    assert len({*names}) == 3


def test_a_rank_that_does_not_come_is_named(monkeypatch):
    monkeypatch.setattr(ranks, "WAIT_S", 0.1)
    with pytest.raises(TimeoutError, match="ranks 1, 2 of 3 did not come"):
        ranks._meet(dist.HashStore(), 0, 3)


def test_a_mistake_ends_all_of_them(tmp_path):
    done = torchrun(*FLAGS, "--epochs", "1", "--out", str(tmp_path / "run"), "--data", "nowhere")
    assert done.returncode != 0
    assert "error: " in done.stderr
    assert "nowhere" in done.stderr


def test_a_folder_with_a_run_is_refused_by_one_sentence(tmp_path):
    (tmp_path / "last.pt").write_bytes(b"of an older run")
    done = torchrun(*FLAGS, "--out", str(tmp_path))
    assert done.returncode != 0
    lines = done.stderr.splitlines()
    (sentence,) = (line for line in lines if line.startswith("error: "))
    assert sentence.endswith("continue it with --resume, or choose another --out")
    assert "gloo" not in done.stderr
    assert "exitcode  : 2 " in done.stderr  # of whichever rank torchrun saw end first


# the second rank's machine has nothing in the folder where it starts
ELSEWHERE = """
import os, sys
from colorseg.cli import main

if os.environ["RANK"] == "1":
    os.mkdir("elsewhere")
    os.chdir("elsewhere")
sys.exit(main(sys.argv[1:]))
"""


def test_settings_are_read_by_the_first_rank_for_all(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere.py").write_text(ELSEWHERE)
    (tmp_path / "run.toml").write_text("epochs = 1\nlr = 0.01\n")
    flags = [*FLAGS, "--config", "run.toml", "--out", "run"]
    done = torchrun(*flags, program=["elsewhere.py"])
    assert done.returncode == 0, done.stderr
    assert len(rows(tmp_path / "run")) == 1
    assert not (tmp_path / "elsewhere/run").exists()


def raise_on_first(rank, ranks):
    def make():
        assert rank == 0
        raise FileExistsError("it is there")

    with pytest.raises(FileExistsError, match="it is there") as raised:
        from_first(make)
    return is_told(raised.value)


def test_all_ranks_raise_what_the_first_does(tmp_path):
    assert spawn(raise_on_first, 2, tmp_path) == [False, True]


def test_processes_with_other_pictures_are_refused(monkeypatch):
    monkeypatch.setattr(ranks, "from_first", lambda make: "train 01")
    ranks.require_same("train 01", "pictures")
    with pytest.raises(ValueError, match=r"process 0 has other pictures .*train 02, not train 01"):
        ranks.require_same("train 02", "pictures")


@pytest.mark.parametrize("size", [2, 5, 100])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_picture_belongs_to_one_rank(size, count, monkeypatch):
    index, values = torch.randperm(size), torch.rand(size).double()
    parts, means = [], []
    monkeypatch.setattr(ranks, "count", lambda: count)
    for rank in range(min(count, size)):
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        part, share = ranks.own(index)
        parts.append(part)
        means.append(values[part].mean() * share)
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(size))
    assert (torch.stack(means).sum() / count).item() == pytest.approx(values.mean().item())
