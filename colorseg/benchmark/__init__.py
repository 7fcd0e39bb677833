"""Harness of ``benchmarks/`` and of ``colorseg benchmark``: ours against peers, interleaved.

Other load on a machine hits all contestants of a round alike, so only ratios of medians from one
interleaved run are claimed, never times.
"""

from colorseg.benchmark.case import Case, Contestant, Result, Unavailable
from colorseg.benchmark.harness import Place, execute, machine, main, parser, run
from colorseg.benchmark.limits import Limits
from colorseg.benchmark.parity import EXACT, HALF, TIES, ParityError, check_parity

__all__ = [
    "EXACT",
    "HALF",
    "TIES",
    "Case",
    "Contestant",
    "Limits",
    "ParityError",
    "Place",
    "Result",
    "Unavailable",
    "check_parity",
    "execute",
    "machine",
    "main",
    "parser",
    "run",
]
