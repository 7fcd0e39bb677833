"""A line of a benchmark before (:class:`Case`) and after (:class:`Result`) it is timed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
from torch import Tensor

from colorseg.benchmark.parity import EXACT

QUANTILES = {"min": 0.0, "p20": 0.2, "p50": 0.5, "p80": 0.8}
COLUMNS = (
    "op", "name", "shape", "dtype", "direction", "rounds", "peer",
    *(f"{who}_{quantile}" for who in ("ours", "peer") for quantile in QUANTILES),
    "ratio", "rate", "unit", "flops", "bytes", "peak", "bandwidth", "of_limit", "ceiling",
    "medians",
)  # fmt: skip
Times = list[float]  # of one contestant, in ms, one per round


class Unavailable(Exception):
    """A contestant cannot run here; the message says why, and what to do."""


@dataclass(frozen=True)
class Contestant:
    """One way to do a case's work, with inputs of its own."""

    call: Callable[[], Any]  # what is timed
    results: Callable[[], Sequence[Tensor]]  # what has to agree with the float64 reference


Make = Callable[[], Contestant]  # may raise Unavailable; compiles, exports, ... when called


@dataclass(frozen=True)
class Case:
    """One line of a benchmark: the same work done by ours and by each peer."""

    op: str  # operator or network
    name: str  # tells the cases of one operator apart
    shape: tuple[int, ...]  # of the first input
    dtype: str  # of the arithmetic
    direction: str  # "forward", "forward+backward", "training step" or "inference"
    ours: Make
    peers: dict[str, Make]  # the name says the setting
    reference: Callable[[], Sequence[Tensor]]  # results in float64
    allowed: float = EXACT  # see check_parity
    flops: float = 0  # 2 x multiply-adds of the convolutions as written, whatever is executed
    bytes: float = 0  # read and written at least; the rate is in GB/s where flops is 0

    def labels(self) -> dict[str, str]:
        """What tells it from all other cases, by column of the CSV file."""
        size = "x".join(map(str, self.shape))
        labels = {"op": self.op, "name": self.name, "shape": size}
        return {**labels, "dtype": self.dtype, "direction": self.direction}

    def __str__(self) -> str:
        return " ".join(self.labels().values())


@dataclass(frozen=True)
class Result:
    """The times of a case, and the limits that hold for it."""

    case: Case
    ours: Times
    peers: dict[str, Times]
    peak: float  # GFLOP/s
    bandwidth: float  # GB/s of a copy of the case's size

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

    def of_limit(self) -> float:
        """Percentage of the limit in that unit; above 100 where fewer operations do the work."""
        return 100 * self.rate()[0] / (self.peak if self.case.flops else self.bandwidth)

    def ceiling(self) -> float:
        """The ratio that ours would have at 100 % of the limit; 0 for a case without work."""
        share = self.of_limit() / 100
        return self.ratio(self.best) / share if share else 0

    def __str__(self) -> str:
        all_times = {"ours": self.ours, **self.peers}.items()
        times = "  ".join(f"{who} {min(t):.3g}/{median(t):.3g}" for who, t in all_times)
        rate, unit = self.rate()
        limit = f"{rate:.3g} {unit}, {self.of_limit():.0f} % of the limit"
        verdict = f"ratio {self.ratio(self.best):.2f} ({self.best}), at the limit"
        return f"{self.case!s:<72}  {times}  {verdict} {self.ceiling():.3g}  {limit}"

    def row(self) -> dict[str, object]:
        """Columns of the CSV file, after those of :func:`colorseg.benchmark.machine`.

        The labels of the case; rounds; the best peer's name; quantiles of ours and of that peer, in
        ms; the ratio of their p50; rate of ours, in unit; flops and bytes of the case, peak
        (GFLOP/s) and bandwidth (GB/s) of the machine, percentage of the limit, ratio at the limit;
        medians: name=p50 of every peer, separated by semicolons.
        """
        best, (rate, unit) = self.best, self.rate()
        columns = {**self.case.labels(), "rounds": len(self.ours), "peer": best}
        for who, times in (("ours", self.ours), ("peer", self.peers[best])):
            columns |= {f"{who}_{k}": float(np.quantile(times, q)) for k, q in QUANTILES.items()}
        columns |= {"ratio": self.ratio(best), "rate": rate, "unit": unit}
        columns |= {"flops": float(self.case.flops), "bytes": float(self.case.bytes)}
        columns |= {"peak": self.peak, "bandwidth": self.bandwidth}
        columns |= {"of_limit": self.of_limit(), "ceiling": self.ceiling()}
        medians = (f"{name}={median(times):.4g}" for name, times in self.peers.items())
        return columns | {"medians": ";".join(medians)}
