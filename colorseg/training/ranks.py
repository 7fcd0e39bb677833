"""Training by several processes at once, as ``torchrun`` starts them; alone, all of it is free."""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

Value = TypeVar("Value")


def join(backend: str, **options: Any) -> None:
    """``init_process_group``, whose threads ``destroy_process_group`` ends."""
    # Imported later, its default arguments would hold the group; and a worker thread of gloo that
    # drops a tensor when the interpreter ends aborts the process.
    import torch.distributed.nn  # noqa: F401

    dist.init_process_group(backend, **options)


def _store() -> dict[str, Any]:
    """Where the ranks that torchrun started find each other, as arguments of :func:`join`.

    After a restart torchrun's default rendezvous still holds what the ranks before have written:
    one that reads an address before it is written anew waits for a process that is gone.  So each
    attempt has keys of its own; of several nodes each one counts its attempts for itself.
    """
    if os.environ.get("GROUP_WORLD_SIZE") != "1":
        return {}
    store, rank, size = next(dist.rendezvous("env://"))
    attempt = os.environ["TORCHELASTIC_RESTART_COUNT"]
    return {"store": dist.PrefixStore(attempt, store), "rank": rank, "world_size": size}


@contextlib.contextmanager
def joined(device: str) -> Iterator[str]:
    """Inside the block this process is a rank, if torchrun started it; yields its device.

    Ranks on the CPU meet by gloo, on CUDA by NCCL, where each takes the GPU of its local rank.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield device
        return
    on_cuda = torch.device(device).type == "cuda"
    if on_cuda:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    join("nccl" if on_cuda else "gloo", **_store())
    try:
        yield device
    finally:
        dist.destroy_process_group()


def count() -> int:
    """The number of ranks."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this one, from 0."""
    return dist.get_rank() if count() > 1 else 0


def is_first() -> bool:
    """Whether this is the rank that writes and reports."""
    return rank() == 0


def wait() -> None:
    """Go on when all ranks have come here."""
    if count() > 1:
        dist.barrier()


def from_first(make: Callable[[], Value]) -> Value:
    """What ``make`` returns on the first rank, on every rank."""
    made: list[Any] = [make() if is_first() else None]
    if count() > 1:
        dist.broadcast_object_list(made)
    value: Value = made[0]
    return value


def own(index: Tensor) -> tuple[Tensor, float]:
    """This rank's part of a batch, and what a mean over it has to be multiplied by.

    The mean of the products over the ranks is the mean over the batch, also where parts differ.
    """
    part = index[rank() :: count()]
    return part, len(part) * count() / len(index)


def total(value: Tensor) -> Tensor:
    """The sum over the ranks of a scalar, in place."""
    if count() > 1:
        dist.all_reduce(value)
    return value


def mean(value: Tensor) -> Tensor:
    """The mean over the ranks of a scalar, in place."""
    if count() > 1:
        total(value).div_(count())
    return value


def group() -> Any:
    """All ranks, or None for one."""
    return dist.group.WORLD if count() > 1 else None


def parallel(model: nn.Module, sync_bn: bool) -> nn.Module:
    """What to call in place of the model, so that gradients are means over the ranks.

    ``sync_bn``: its batch norms become ``SyncBatchNorm``.
    """
    if count() == 1:
        return model
    wrapped = nn.parallel.DistributedDataParallel(model)
    if sync_bn:  # afterwards: DistributedDataParallel knows none of ours for the CPU
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return wrapped
