"""Training by several processes at once, as ``torchrun`` starts them; alone, all of it is free."""

import contextlib
import dataclasses
import logging
import os
import pickle
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from colorseg.training.run_config import RunConfig
from colorseg.training.task import usable_device

Value = TypeVar("Value")
Settings = TypeVar("Settings", bound=RunConfig)
WAIT_S = 1800.0  # for the other ranks to start, as long as init_process_group waits
TOLD = "raised by the first process"


def join(backend: str, **options: Any) -> None:
    """``init_process_group``, whose threads ``destroy_process_group`` ends."""
    # Imported later, its default arguments would hold the group; and a worker thread of gloo that
    # drops a tensor when the interpreter ends aborts the process.
    import torch.distributed.nn  # noqa: F401

    dist.init_process_group(backend, **options)


def _store() -> dict[str, Any]:
    """Where the ranks that torchrun started find each other, as arguments of :func:`join`."""
    store, rank, size = next(dist.rendezvous("env://"))
    return {
        "store": dist.PrefixStore(_meet(store, rank, size), store),
        "rank": rank,
        "world_size": size,
    }


def _meet(store: dist.Store, rank: int, size: int) -> str:
    """A name that all living ranks have agreed on.

    torchrun may keep one store over all attempts, and its nodes count them each for itself.  A rank
    that read there what one of an attempt before has written would wait for a process that is
    gone.  Here only the first rank gives answers, to questions that are asked anew every time, and
    goes on when each of the others has thanked for its own.
    """
    me = uuid.uuid4().hex
    if rank > 0:
        store.set(f"question/{rank}", me)
        store.wait([f"answer/{me}"], timedelta(seconds=WAIT_S))
        name: str = store.get(f"answer/{me}").decode()
        store.set(f"thanks/{name}/{rank}", "")
        return name
    late, deadline = set(range(1, size)), time.monotonic() + WAIT_S
    while late:
        for other in list(late):
            if store.check([f"thanks/{me}/{other}"]):
                late.remove(other)
            elif store.check([f"question/{other}"]):  # of a dead rank, until the living one asks
                store.set(f"answer/{store.get(f'question/{other}').decode()}", me)
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"ranks {', '.join(map(str, sorted(late)))} of {size} did not come within "
                f"{WAIT_S} s; look at what the launcher says of them"
            )
        time.sleep(0.01)
    return me


@contextlib.contextmanager
def joined(make: Callable[[], Settings]) -> Iterator[Settings]:
    """Inside the block this process is a rank, if torchrun started it; yields its settings.

    They are what ``make`` returns, or raises, on the first rank, whose machine alone needs the
    files that they are read from.  Ranks on the CPU meet by gloo, on CUDA by NCCL, where each takes
    the GPU of its local rank.  Only the first logs more than warnings.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield make()
        return
    meeting = _store()
    store, first = meeting["store"], meeting["rank"] == 0
    if first:  # by the store, because the settings decide how the ranks are going to talk
        store.set("settings", pickle.dumps(_outcome(make)))
    config: Settings = _unpacked(pickle.loads(store.get("settings")), first)
    on_cuda = torch.device(config.device).type == "cuda"
    if on_cuda:
        config = dataclasses.replace(config, device=f"cuda:{os.environ['LOCAL_RANK']}")
        torch.cuda.set_device(usable_device(config.device))
    join("nccl" if on_cuda else "gloo", **meeting)
    if not first:
        logging.getLogger("colorseg").setLevel(logging.WARNING)
    try:
        yield config
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


def from_first(make: Callable[[], Value]) -> Value:
    """What ``make`` returns on the first rank, on every rank; or what it raises there."""
    if count() == 1:
        return make()
    outcome = [_outcome(make) if is_first() else None]
    dist.broadcast_object_list(outcome)
    return _unpacked(outcome[0], is_first())


def is_told(error: Exception) -> bool:
    """Whether the error is one of the first rank, which says so itself."""
    return TOLD in getattr(error, "__notes__", ())


def _outcome(make: Callable[[], Any]) -> tuple[Any, Exception | None]:
    """What is returned and what is raised: ranks that wait for a value must learn of an error."""
    try:
        return make(), None
    except Exception as error:
        return None, error


def _unpacked(outcome: Any, first: bool) -> Any:
    value, error = outcome
    if error is None:
        return value
    if not first:
        error.add_note(TOLD)
    raise error


def require_same(value: str, what: str) -> None:
    """Raise a ``ValueError`` on a rank whose value is not that of the first."""
    first = from_first(lambda: value)
    if value != first:
        raise ValueError(
            f"process {rank()} has other {what} than the first one ({value}, not {first}); "
            "give all of them the same"
        )


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
