"""The options of ``colorseg reproduce``, apart from torch so that ``--help`` answers at once."""

import argparse


def add_options(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add them; those given are arguments of :func:`colorseg.report.reproduce`."""
    add = parser.add_argument
    add("--data", metavar="PATH|cifar10|sample", help="the pictures (default: cifar10)")
    presets = "course-2021, lightning, clean or best (default: course-2021)"
    add("--preset", metavar="NAME", help=presets)
    add("--out", metavar="FOLDER", help="where to write (default: report, or experiments)")
    add("--experiments", action="store_true", help="compare recipes, by three seeds each, instead")
    add("--no-plain", dest="plain", action="store_false", help="do not train in plain torch too")
    add("--quick", action="store_true", help="one epoch of small networks, to try it out")
    add("--force", action="store_true", help="replace a report of other settings")
    add("--download", action="store_true", help="allow to download the pictures")
    tasks = ("colorize", "super-resolution")
    add("--task", choices=tasks, help="what the networks do (default: colorize)")
    add("--dilated", action="store_true", help="a UNet with a dilated middle, too")
    add(
        "--segment",
        metavar="PATH|scenes|flowers17|none",
        help="what part 2 segments (default: daffodils beside the data, else scenes)",
    )
    add("--jobs", type=int, metavar="N", help="runs to train at a time (default: 1)")
    add("--device", metavar="NAME", help="where to train, as torch names it (default: cpu)")
    return parser
