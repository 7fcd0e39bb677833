"""``colorseg info``."""

import argparse
from typing import Any


def add_commands(commands: Any) -> None:
    """Add the command to the parser's."""
    about = commands.add_parser("info", help="how this colorseg was built and what it runs on")
    about.add_argument("--json", action="store_true", help="as one JSON object")
    about.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
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


def _words(value: object) -> str:
    if value is None or value is False:
        return "no"
    if value is True:
        return "yes"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return str(value)
