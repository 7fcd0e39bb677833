"""``colorseg benchmark``."""

import argparse
from typing import Any

from colorseg._benchmark_options import add_options


def add_commands(commands: Any) -> None:
    """Add the command to the parser's."""
    timing = commands.add_parser("benchmark", help="how fast the networks are here, against peers")
    add_options(timing).set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Time the three networks against their peers; exit code 1 if one is wrong or got slower."""
    from colorseg.benchmark import execute
    from colorseg.benchmark.models import cases

    options = {name: value for name, value in vars(args).items() if name != "run"}
    return execute(cases(), **options)
