"""What the machine can do at most, measured at the start of every run."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from threading import Barrier

import torch

from colorseg._extension import load

# Short and many, the best counts: a limit is a maximum, and other programs run now and then.
SECONDS, REPEATS = 0.01, 10
FAR_BEYOND = 2**29  # bytes: enough for any cache, and quick enough to copy several times


class Limits:
    """Peak arithmetic and copy bandwidth of the threads that torch uses now.

    Attributes:
        threads: of torch.
        peaks: float32 GFLOP/s of each instruction set that the machine has, on all threads.
        instruction_set: the one that colorseg chose.
        memory: GB/s of a copy far larger than the caches, read and written.
    """

    def __init__(self) -> None:
        extension = load()
        self.threads = torch.get_num_threads()
        self.instruction_set: str = extension.cpu_isa
        self.peaks = {isa: _peak(isa, self.threads) for isa in extension.available_isas}
        self.copy = cache(copy_bandwidth)  # GB/s at a size in bytes, measured once
        self.memory = self.copy(_beyond_caches())
        self._matmul = cache(_matmul_rate)

    def peak(self, dtype: str) -> float:
        """GFLOP/s: of multiply-adds of the chosen instruction set, for bfloat16 of torch's matmul.

        bfloat16 has units of its own (dot products, tiles) that only a library's matmul reaches.
        """
        return self._matmul() if dtype == "bfloat16" else self.peaks[self.instruction_set]

    def __str__(self) -> str:
        rates = ", ".join(f"{isa} {rate:.0f} GFLOP/s" for isa, rate in self.peaks.items())
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        return f"limits of {threads}: float32 {rates}; copy from memory {self.memory:.1f} GB/s"


def copy_bandwidth(size: int) -> float:
    """GB/s of ``Tensor.copy_``, ``size`` bytes read and written together."""
    count = max(size // 8, 1)  # float32 of the source
    source, target = torch.ones(count), torch.zeros(count)
    calls = 1
    while (took := _seconds(lambda: target.copy_(source), calls)) < SECONDS / 2:
        calls *= 2
    best = min(took, *(_seconds(lambda: target.copy_(source), calls) for _ in range(REPEATS)))
    return 8 * count * calls / best / 1e9


def _seconds(call: Callable[[], object], calls: int = 1) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return time.perf_counter() - start


def _peak(isa: str, threads: int) -> float:
    """GFLOP/s of the threads at once: the sum of each one's best moment."""
    start = Barrier(threads)

    def best(_: int) -> float:
        start.wait()
        return max(load().measure_peak(isa, SECONDS) for _ in range(REPEATS))

    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(best, range(threads)))


def _matmul_rate(side: int = 1024) -> float:
    a = torch.ones(side, side, dtype=torch.bfloat16)
    best = min(_seconds(lambda: a @ a) for _ in range(REPEATS))
    return 2 * side**3 / best / 1e9


def _beyond_caches() -> int:
    """Bytes: four times the largest cache, within limits."""
    sizes = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    units = {"K": 2**10, "M": 2**20}
    known = [int(text[:-1]) * units[text[-1]] for text in (p.read_text().strip() for p in sizes)]
    return min(max(4 * max(known, default=0), FAR_BEYOND // 2), FAR_BEYOND)
