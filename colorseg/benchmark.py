"""Harness of ``benchmarks/``: ours against peers, interleaved; one line and one CSV row per case.

Other load on a machine hits all contestants of a round alike, so only ratios of medians from one
interleaved run are claimed, never times.
"""

import argparse
import csv as csv_format
import ctypes
import logging
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

import colorseg

ROUNDS, QUICK_ROUNDS, WARM_UP = 20, 5, 2
QUANTILES = {"min": 0.0, "p20": 0.2, "p50": 0.5, "p80": 0.8}
Times = list[float]  # of one contestant, in ms, one per round
logger = logging.getLogger(__name__)


class ParityError(AssertionError):
    """A contestant does not compute what the float64 reference says, so its time means nothing."""


@dataclass(frozen=True)
class Case:
    """One line of a benchmark: the same work done by ours and by each peer."""

    op: str  # operator or network
    name: str  # tells the cases of one operator apart
    shape: tuple[int, ...]  # of the first input
    dtype: str  # of the arithmetic
    direction: str  # "forward", "forward+backward", "training step" or "inference"
    ours: Callable[[], Any]  # one call is timed at once
    peers: dict[str, Callable[[], Any]]  # the name says the setting
    check: Callable[[], None]  # raises ParityError unless all agree with the float64 reference
    flops: float = 0  # 2 x multiply-adds of the convolutions as written, whatever is executed
    bytes: float = 0  # read and written at least; the rate is in GB/s where flops is 0

    def labels(self) -> dict[str, object]:
        """What tells it from all other cases, by column of the CSV file."""
        size = "x".join(map(str, self.shape))
        labels = {"op": self.op, "name": self.name, "shape": size}
        return {**labels, "dtype": self.dtype, "direction": self.direction}

    def __str__(self) -> str:
        return " ".join(map(str, self.labels().values()))


@dataclass(frozen=True)
class Result:
    """The times of a case."""

    case: Case
    ours: Times
    peers: dict[str, Times]

    @property
    def best(self) -> str:
        """Name of the peer with the smallest median."""
        return min(self.peers, key=lambda name: median(self.peers[name]))

    def ratio(self, peer: str) -> float:
        """Median of the peer / median of ours: above 1 ours is faster."""
        return median(self.peers[peer]) / median(self.ours)

    def rate(self) -> tuple[float, str]:
        """What ours achieves at its median, and the unit."""
        work, unit = (self.case.flops, "GFLOP/s") if self.case.flops else (self.case.bytes, "GB/s")
        return work / median(self.ours) / 1e6, unit

    def __str__(self) -> str:
        all_times = {"ours": self.ours, **self.peers}.items()
        times = "  ".join(f"{who} {min(t):.3g}/{median(t):.3g}" for who, t in all_times)
        rate, unit = self.rate()
        verdict = f"ratio {self.ratio(self.best):.2f} ({self.best})  {rate:.3g} {unit}"
        return f"{self.case!s:<72}  {times}  {verdict}"

    def row(self) -> dict[str, object]:
        """Columns of the CSV file, after those of :func:`machine`.

        The labels of the case; rounds; the best peer's name; quantiles of ours and of that peer, in
        ms; the ratio of their p50; rate of ours, in unit; medians: name=p50 of every peer.
        """
        best, (rate, unit) = self.best, self.rate()
        columns = {**self.case.labels(), "rounds": len(self.ours), "peer": best}
        for who, times in (("ours", self.ours), ("peer", self.peers[best])):
            columns |= {f"{who}_{k}": float(np.quantile(times, q)) for k, q in QUANTILES.items()}
        columns |= {"ratio": self.ratio(best), "rate": rate, "unit": unit}
        medians = (f"{name}={median(times):.4g}" for name, times in self.peers.items())
        return columns | {"medians": " ".join(medians)}


def machine() -> dict[str, object]:
    """What a ratio depends on: the first columns of the CSV file."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    cpu = next(iter(models), platform.processor() or platform.machine())
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": f"{cpu}, {os.cpu_count()} CPUs",
        "threads": torch.get_num_threads(),
        "instruction_set": colorseg.build_info()["cpu_isa"],
        "torch": torch.__version__,
        "colorseg": colorseg.__version__,
    }


def _keep_memory() -> None:
    """Stop glibc from giving memory back: faulting it in again took 8 times a small convolution."""
    if hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: never
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no block of its own for a large tensor


def measure(case: Case, rounds: int) -> Result:
    """Time all contestants of ``case``, one call each per round: A B C, A B C, ..."""
    calls = {"ours": case.ours, **case.peers}
    times: dict[str, Times] = {name: [] for name in calls}
    for number in range(-WARM_UP, rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if number >= 0:
                times[name].append(1e3 * (time.perf_counter() - start))
    return Result(case, times.pop("ours"), times)


def run(
    cases: Iterable[Case], *, rounds: int | None = None, csv: str | None = None, only: str = "",
    quick: bool = False, threads: int | None = None, report: Callable[[str], object] = logger.info,
) -> list[Result]:  # fmt: skip
    """Check, time and report the cases whose printed name contains ``only``, one after the other.

    Each line goes to ``report``, a row per case to the file ``csv``; torch keeps ``threads``.
    ParityError: a contestant is wrong, its case was not timed.  ValueError: too few rounds (less
    than 20; ``quick``: 5), no such case, or a CSV file with other columns.
    """
    least = QUICK_ROUNDS if quick else ROUNDS
    if (rounds := least if rounds is None else rounds) < least:
        raise ValueError(f"rounds must be at least {least} for a stable median, got {rounds}")
    if threads is not None:
        torch.set_num_threads(threads)
    _keep_memory()
    facts, results = machine(), []
    report(", ".join(f"{name} {value}" for name, value in facts.items()))
    for case in (c for c in cases if only in str(c)):
        case.check()
        results.append(measure(case, rounds))
        report(str(results[-1]))
        if csv:
            _append(Path(csv), {**facts, **results[-1].row()})
    if not results:
        raise ValueError(f"no case has {only!r} in its name; run without --only to see them all")
    return results


def _append(path: Path, row: dict[str, object]) -> None:
    new = not path.exists()
    if not new and path.read_text().split("\n")[0] != ",".join(row):
        raise ValueError(f"{path} has other columns than this version writes; name a new file")
    with path.open("a", newline="") as file:
        writer = csv_format.DictWriter(file, list(row), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()})


def parser() -> argparse.ArgumentParser:
    """The options of every benchmark script; each is an argument of :func:`run`."""
    options = argparse.ArgumentParser(description="Prints minimum/median ms of each contestant.")
    options.add_argument("--quick", action="store_true", help="5 rounds, to try things out")
    options.add_argument("--only", default="", metavar="TEXT", help="cases with TEXT in their name")
    options.add_argument("--threads", type=int, metavar="N", help="threads of torch")
    options.add_argument("--csv", metavar="FILE", help="append a row per case to FILE")
    options.add_argument("--rounds", type=int, metavar="N", help="timed calls (default: 20)")
    return options


def main(cases: Iterable[Case], argv: Sequence[str] | None = None) -> int:
    """Do what the command line says; exit code 1 if a result is wrong, 2 for a user's mistake."""
    try:
        run(cases, **vars(parser().parse_args(argv)), report=lambda line: print(line, flush=True))
    except (ParityError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, ParityError) else 2
    return 0
