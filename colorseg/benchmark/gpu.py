"""The harness on a GPU: times by CUDA events, behind a flush of the L2 cache, and its limits."""

import contextlib
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch

from colorseg.benchmark.harness import Place, machine
from colorseg.nn.capture import captured

FLUSH_BYTES = 2**28  # more than any L2 cache
COPY_BYTES = 2**31
SIDE = 8192  # of the matrices whose product is the peak
REPEATS = 10
WARM_UP = 3
PRECISIONS = ("float32", "tf32", "bfloat16")


@contextlib.contextmanager
def precision(name: str) -> Iterator[None]:
    """Inside the block torch computes in "float32" strictly, in "tf32", or by autocast in
    "bfloat16".
    """
    backends: Any = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    for backend in backends:
        backend.fp32_precision = "tf32" if name == "tf32" else "ieee"
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    autocast = torch.autocast(kind, torch.bfloat16, enabled=name == "bfloat16", cache_enabled=False)
    try:
        with autocast:
            yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.fp32_precision = value


def graphed(call: Callable[[], Any]) -> Callable[[], Any]:
    """The call as a CUDA graph that is replayed; the call itself where there is no GPU."""
    if not torch.cuda.is_available():
        return call
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with captured(graph):
        result = call()

    def replay() -> Any:
        graph.replay()
        return result

    replay.keep = call  # type: ignore[attr-defined]  # whose tensors the graph reads
    return replay


def graphed_if_it_can(call: Callable[[], Any]) -> Callable[[], Any]:
    """As ``graphed``; the call itself where it waits for the device."""
    try:
        return graphed(call)
    except RuntimeError:
        return call


def gpu_turn(call: Callable[[], object], repeats: int) -> float:
    """ms of a call on the device: the median of ``repeats``, each behind a flush."""
    call()
    times = []
    for _ in range(repeats):
        _flush_buffer().zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        times.append((start, end))
    torch.cuda.synchronize()
    return sorted(a.elapsed_time(b) for a, b in times)[repeats // 2]


@cache
def _flush_buffer() -> torch.Tensor:
    return torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")


class GpuLimits:
    """What the GPU can do at most; the attributes are those of ``colorseg.benchmark.Limits``."""

    def __init__(self) -> None:
        self.copy = cache(_copy_rate)
        self.memory = self.copy(COPY_BYTES)
        self.peak = cache(_matmul_rate)

    def __str__(self) -> str:
        rates = ", ".join(f"{name} {self.peak(name):.0f} GFLOP/s" for name in PRECISIONS)
        return f"limits of matrix products: {rates}; copy from memory {self.memory:.0f} GB/s"


def _copy_rate(size: int) -> float:
    source = torch.empty(max(size // 2, 1), dtype=torch.uint8, device="cuda").zero_()
    target = torch.empty_like(source)
    return 2 * len(source) / min(gpu_turn(lambda: target.copy_(source), REPEATS), 1e9) / 1e6


def _matmul_rate(name: str) -> float:
    dtype = torch.bfloat16 if name == "bfloat16" else torch.float32
    a = torch.randn(SIDE, SIDE, device="cuda").to(dtype)
    with precision("float32" if name == "bfloat16" else name):
        return 2 * SIDE**3 / gpu_turn(lambda: a @ a, REPEATS) / 1e6


def gpu_facts() -> dict[str, object]:
    """As ``colorseg.benchmark.machine``, of the current GPU."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    name = f"{properties.name}, CUDA {torch.version.cuda}"
    return machine() | {
        "machine": name,
        "instruction_set": f"sm_{properties.major}{properties.minor}",
    }


GPU = Place(gpu_facts, GpuLimits, gpu_turn)
