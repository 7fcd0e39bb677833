"""The ``colorseg`` command: one function per subcommand, which imports what it needs itself.

Only argparse is imported here, so that ``colorseg --help`` answers at once.
"""

import argparse
import sys
from collections.abc import Callable, Sequence

from colorseg._benchmark_options import add_options
from colorseg._report_options import add_options as add_report_options
from colorseg._version import __version__

Command = Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 2 after a mistake of the user, else 0 or 1."""
    args = _parser().parse_args(argv)
    command: Command = args.run
    try:
        return command(args)
    except (ImportError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def info(args: argparse.Namespace) -> int:
    """Print how this colorseg was built and what it runs on."""
    import json

    import colorseg

    facts = colorseg.build_info()
    if args.json:
        print(json.dumps(facts, indent=2))
    else:
        for name, value in facts.items():
            print(f"{name}: {_words(value)}")
    return 0


def benchmark(args: argparse.Namespace) -> int:
    """Time the three networks against their peers; exit code 1 if one is wrong or got slower."""
    from colorseg.benchmark import execute
    from colorseg.benchmark.models import cases

    options = {name: value for name, value in vars(args).items() if name != "run"}
    return execute(cases(), **options)


def reproduce(args: argparse.Namespace) -> int:
    """Train what the report needs and write its pages."""
    import logging

    from colorseg import report

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    options = {name: value for name, value in vars(args).items() if name != "run"}
    work: Callable[..., object] = report.reproduce
    if options.pop("experiments"):
        work = report.experiments
        for name in ("preset", "plain", "task", "dilated", "segment"):
            del options[name]
    if options["out"] is None:
        del options["out"]
    try:
        print(work(**options))
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="colorseg", description="Colorize and segment pictures.")
    parser.add_argument("--version", action="version", version=f"colorseg {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="command", required=True)

    about = commands.add_parser("info", help="how this colorseg was built and what it runs on")
    about.add_argument("--json", action="store_true", help="as one JSON object")
    about.set_defaults(run=info)

    timing = commands.add_parser("benchmark", help="how fast the networks are here, against peers")
    add_options(timing).set_defaults(run=benchmark)

    pages = commands.add_parser("reproduce", help="the whole report, beside what was published")
    add_report_options(pages).set_defaults(run=reproduce)
    return parser


def _words(value: object) -> str:
    if value is None or value is False:
        return "no"
    if value is True:
        return "yes"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return str(value)


if __name__ == "__main__":
    sys.exit(main())
