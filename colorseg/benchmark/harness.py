"""Checks, times and reports cases; what a benchmark script and the command run."""

import argparse
import ctypes
import logging
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch

import colorseg
from colorseg._benchmark_options import add_options
from colorseg.benchmark.case import COLUMNS, Case, Result, Unavailable
from colorseg.benchmark.limits import Limits
from colorseg.benchmark.parity import ParityError
from colorseg.benchmark.records import Baseline, append, require_columns
from colorseg.benchmark.timing import Turn, cpu_turn, measure, prepare

ROUNDS, QUICK_ROUNDS = 20, 5
logger = logging.getLogger(__name__)
Report = Callable[[str], object]


class Place(NamedTuple):
    """Where cases run: what a ratio depends on there, its limits, and how a turn is timed."""

    facts: Callable[[], dict[str, object]]
    limits: Callable[[], Any]  # makes what has the attributes of ``Limits``
    turn: Turn


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


def run(
    cases: Iterable[Case], *, rounds: int | None = None, csv: str | None = None, only: str = "",
    peers: str = "", check: str | None = None, quick: bool = False, threads: int | None = None,
    report: Report = logger.info, place: Place | None = None, seconds: float = math.inf,
) -> tuple[list[Result], list[str]]:  # fmt: skip
    """Check, time and report the cases whose printed name contains ``only``, one after the other.

    The machine, its limits, what is left out and a line per case go to ``report``, a row per case
    to the file ``csv``; torch keeps ``threads``.  ``peers`` are names with commas between them,
    empty for all.  ``check`` is a CSV file of an earlier run.  ``place`` is the CPU unless given.
    After ``seconds`` no further case is begun.

    Returns:
        The results, and a line for each whose ratio is worse than in ``check``.

    Raises:
        ParityError: a contestant is wrong, its case was not timed.
        ValueError: too few rounds (less than 20; ``quick``: 5) or threads, no such case or peer,
            a CSV file with other columns.
    """
    least = QUICK_ROUNDS if quick else ROUNDS
    if (rounds := least if rounds is None else rounds) < least:
        raise ValueError(f"rounds must be at least {least} for a stable median, got {rounds}")
    if threads is not None:
        if threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        torch.set_num_threads(threads)
    baseline = Baseline(Path(check), torch.get_num_threads()) if check else None
    _keep_memory()
    place = place or Place(machine, Limits, cpu_turn)
    facts, told, start = place.facts(), set[str](), time.monotonic()
    if csv:
        require_columns(Path(csv), [*facts, *COLUMNS])

    def once(line: str) -> None:  # the same peer is missing in every case
        if line not in told:
            report(line)
        told.add(line)

    report(", ".join(f"{name} {value}" for name, value in facts.items()))
    limits = place.limits()
    report(str(limits))
    results: list[Result] = []
    for case, rivals in _select(cases, only, [name for name in peers.split(",") if name]):
        if time.monotonic() - start > seconds:
            report(f"left out: {case}, no time is left")
            continue
        try:
            times = measure(prepare(case, rivals, once), rounds, place.turn)
        except Unavailable as reason:
            report(f"left out: {case}, {reason}")
            continue
        bandwidth = limits.copy(int(case.bytes)) if case.bytes else limits.memory
        ours, peak = times.pop("ours"), limits.peak(case.dtype)
        results.append(Result(case, ours, times, peak, bandwidth))
        report(str(results[-1]))
        if csv:
            append(Path(csv), {**facts, **results[-1].row()})
        if baseline and (line := baseline.lacks(case)):
            report(line)
    return results, [line for r in results if baseline and (line := baseline.fall(r))]


def _select(cases: Iterable[Case], only: str, peers: list[str]) -> Iterator[tuple[Case, list[str]]]:
    """The cases that are asked for with their peers; ValueError if there are none."""
    selected: Iterable[Case] = (case for case in cases if only in str(case))
    if peers:  # all cases at once, so that nothing is timed before a typo is found
        selected = list(selected)
        known = {name for case in selected for name in case.peers}
        if known and (unknown := sorted(set(peers) - known)):
            there = ", ".join(sorted(known))
            raise ValueError(f"no case has the peer {unknown[0]!r}, only {there}")
    case = None
    for case in selected:
        yield case, [name for name in case.peers if name in peers or not peers]
    if case is None:
        raise ValueError(f"no case has {only!r} in its name; run without --only to see them all")


def parser() -> argparse.ArgumentParser:
    """The options of every benchmark script; each is an argument of :func:`run`."""
    about = "Prints minimum/median ms of each contestant."
    return add_options(argparse.ArgumentParser(description=about))


def execute(cases: Iterable[Case], **options: Any) -> int:
    """:func:`run` with its lines on stdout; exit code 1 if a result is wrong or a ratio fell."""
    try:
        _, falls = run(cases, **options, report=lambda line: print(line, flush=True))
    except ParityError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for line in falls:
        print(line, file=sys.stderr)
    return 1 if falls else 0


def main(cases: Iterable[Case], argv: Sequence[str] | None = None) -> int:
    """Do what the command line says; exit code as of :func:`execute`, 2 for a user's mistake."""
    try:
        return execute(cases, **vars(parser().parse_args(argv)))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
