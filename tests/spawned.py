"""Several processes as the ranks of a group: functions, and trainings as torchrun starts them."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from colorseg.training.ranks import join

FLAGS = ["train", "unet", "--num-filters", "4", "--batch-size", "100"]

# the installed package, not the source tree in the current folder
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}


def run_python(*arguments, timeout=120):
    return subprocess.run(
        [sys.executable, *arguments], env=ENVIRONMENT, capture_output=True, text=True,
        timeout=timeout,
    )  # fmt: skip


def torchrun(*arguments, program=("-m", "colorseg"), count=2, restarts=0, timeout=120):
    return run_python(
        "-m", "torch.distributed.run", "--nproc-per-node", str(count), "--max-restarts",
        str(restarts), *program, *arguments, timeout=timeout,
    )  # fmt: skip


def rows(out):
    with (out / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def workers_of_gloo():
    tasks = Path("/proc/self/task").glob("*/comm")
    return [t.parent.name for t in tasks if t.read_text().startswith("pt_gloo")]


def spawn(work, ranks, folder, *args, backend="gloo"):
    """What ``work(rank, ranks, *args)`` returns in each process."""
    mp.spawn(_run, (work, ranks, str(folder), backend, args), nprocs=ranks)
    return [torch.load(folder / f"{rank}.pt") for rank in range(ranks)]


def _run(rank, work, ranks, folder, backend, args):
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", ranks)
    join(backend, store=store, rank=rank, world_size=ranks)
    result = work(rank, ranks, *args)
    torch.save(result, f"{folder}/{rank}.pt")
    dist.destroy_process_group()
    assert not workers_of_gloo()


def share(tensor, shares, rank):
    """The rank's part of a batch, of which each gets so many pictures."""
    return tensor.split(shares)[rank]
