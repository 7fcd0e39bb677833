"""``colorseg reproduce``."""

import argparse
import sys
from collections.abc import Callable
from typing import Any

from colorseg.cli.report_options import add_options

OF_THE_REPORT = {  # arguments that experiments do not have, and their flags
    "preset": "--preset",
    "plain": "--no-plain",
    "task": "--task",
    "dilated": "--dilated",
    "segment": "--segment",
}


def add_commands(commands: Any) -> None:
    """Add the command to the parser's."""
    pages = commands.add_parser(
        "reproduce",
        help="the whole report, beside what was published",
        argument_default=argparse.SUPPRESS,  # to tell what was given from the defaults
    )
    add_options(pages).set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train what the report needs and write its pages."""
    import logging

    from colorseg import report

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    options = {name: value for name, value in vars(args).items() if name != "run"}
    work: Callable[..., object] = report.reproduce
    if options.pop("experiments", False):
        work = report.experiments
        refused = [flag for name, flag in OF_THE_REPORT.items() if name in options]
        if refused:
            raise ValueError(
                "--experiments compares recipes of its own on the task of colorizing, so leave out "
                + ", ".join(refused)
            )
    try:
        print(work(**options))
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0
