"""The options of every benchmark, apart from torch so that ``--help`` answers at once."""

import argparse


def add_options(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add them; each is an argument of :func:`colorseg.benchmark.run`."""
    add = parser.add_argument
    add("--quick", action="store_true", help="5 rounds, to try things out")
    add("--only", default="", metavar="TEXT", help="cases with TEXT in their name")
    add("--peers", default="", metavar="NAME,...", help="against these peers alone")
    add("--threads", type=int, metavar="N", help="threads of torch and of the other runtimes")
    add("--csv", metavar="FILE", help="append a row per case to FILE")
    add("--check", metavar="FILE", help="exit with 1 where a ratio is below that in this CSV file")
    add("--rounds", type=int, metavar="N", help="timed turns of each contestant (default: 20)")
    return parser
