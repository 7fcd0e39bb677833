"""``colorseg export``."""

import argparse
from typing import Any


def add_commands(commands: Any) -> None:
    """Add the command to the parser's."""
    writing = commands.add_parser("export", help="a trained network as ONNX, or torch's .pt2")
    add = writing.add_argument
    add("weights", metavar="NAME|FILE", help="horse24, or a weights file")
    add("out", metavar="FILE", help="ending in .onnx or .pt2")
    add("--no-check", dest="check", action="store_false", help="do not compare the results")
    writing.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the file and say how large it is."""
    from pathlib import Path

    import colorseg
    from colorseg.models import load_network, load_segmenter, segments

    load = load_segmenter if segments(args.weights) else load_network
    model = load(args.weights)
    colorseg.export(model, args.out, check=args.check)
    print(f"{args.out}: {type(model).__name__}, {Path(args.out).stat().st_size:,} bytes")
    return 0
