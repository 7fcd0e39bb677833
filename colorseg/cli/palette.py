"""``colorseg palette``: fit one to pictures, or show one."""

import argparse
from typing import Any

from colorseg.cli.training import chosen_classes


def add_commands(commands: Any) -> None:
    """Add the commands to the parser's."""
    group = commands.add_parser("palette", help="fit a palette to pictures, or show one")
    actions = group.add_subparsers(title="actions", metavar="action", required=True)
    making = actions.add_parser("fit", help="cluster the pixels of pictures (k-means)")
    add = making.add_argument
    add("data", metavar="DATA", help="sample, cifar10, or a path, as for training")
    add("-k", "--colors", type=int, default=24, metavar="K", help="(default: 24)")
    add("-o", "--out", required=True, metavar="FILE", help=".json or .npy")
    add("--classes", nargs="+", metavar="NAME", help="CIFAR-10 classes (default: horse), or all")
    add("--seed", type=int, default=0)
    making.set_defaults(run=fit)
    showing = actions.add_parser("show", help="print its colors, or draw them")
    add = showing.add_argument
    add(
        "palette",
        metavar="NAME|FILE",
        help="horse24, sample24, a file, or weights (general, a file)",
    )
    add("-o", "--out", metavar="PNG", help="draw the colors there")
    showing.set_defaults(run=show)


def fit(args: argparse.Namespace) -> int:
    """Write a palette of the training pictures."""
    from colorseg.data import load
    from colorseg.palette import Palette

    train, _ = load(args.data, classes=chosen_classes(args.classes))
    palette = Palette.fit(train.images, args.colors, args.seed)
    palette.save(args.out)
    print(f"{args.out}: {len(palette)} colors of {train.name}, {len(train)} pictures")
    return 0


def show(args: argparse.Namespace) -> int:
    """Print the colors as hexadecimal RGB, and draw them if asked to."""
    from colorseg.models import load_network
    from colorseg.models.weights import SHIPPED
    from colorseg.palette import PRESETS, Palette

    shipped = args.palette in SHIPPED and args.palette not in PRESETS
    if shipped or args.palette.endswith(".safetensors"):
        palette = load_network(args.palette).palette
        if palette is None:
            raise ValueError(f"{args.palette} says nothing of a palette")
    else:
        palette = Palette.named(args.palette)
    colors = (palette.colors * 255).round().int().tolist()
    for color in colors:
        print("".join(f"{value:02x}" for value in color))
    if args.out:
        from PIL import Image

        from colorseg.photos import save_picture

        strip = Image.new("RGB", (len(colors), 1))
        strip.putdata([tuple(color) for color in colors])
        save_picture(strip.resize((32 * len(colors), 96), Image.Resampling.NEAREST), args.out)
    return 0
