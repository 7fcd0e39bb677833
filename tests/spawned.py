"""Functions that several processes run as the ranks of a group."""

from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from colorseg.training.ranks import join


def workers_of_gloo():
    tasks = Path("/proc/self/task").glob("*/comm")
    return [t.parent.name for t in tasks if t.read_text().startswith("pt_gloo")]


def start(rank, ranks, folder, backend="gloo"):
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", ranks)
    join(backend, store=store, rank=rank, world_size=ranks)


def spawn(work, ranks, folder, *args, backend="gloo"):
    """What ``work(rank, ranks, *args)`` returns in each process."""
    mp.spawn(_run, (work, ranks, str(folder), backend, args), nprocs=ranks)
    return [torch.load(folder / f"{rank}.pt") for rank in range(ranks)]


def _run(rank, work, ranks, folder, backend, args):
    start(rank, ranks, folder, backend)
    result = work(rank, ranks, *args)
    torch.save(result, f"{folder}/{rank}.pt")
    dist.destroy_process_group()
    assert not workers_of_gloo()


def share(tensor, shares, rank):
    """The rank's part of a batch, of which each gets so many pictures."""
    return tensor.split(shares)[rank]
