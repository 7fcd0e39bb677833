"""The ``colorseg`` command: a module per group of subcommands, which imports what it needs itself.

Only argparse is imported here, so that ``colorseg --help`` answers at once.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from colorseg._version import __version__
from colorseg.cli import benchmark, demo, export, info, palette, photos, report, training

Command = Callable[[argparse.Namespace], int]
EPILOG = """examples:
  colorseg colorize old.jpg -o colored --compare
  colorseg train unet --epochs 25
  colorseg evaluate runs/unet/model.safetensors
  colorseg segment garden.jpg -o masks --weights runs/deeplab/iou/model.safetensors
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 2 after a mistake of the user, else 0 or 1."""
    args = _parser().parse_args(argv)
    command: Command = args.run
    try:
        return command(args)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read the output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ImportError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="colorseg",
        description="Colorize and segment pictures, and train the networks that do.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"colorseg {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="command", required=True)
    for group in (photos, training, palette, report, benchmark, export, demo, info):
        group.add_commands(commands)
    return parser
