"""``colorseg train`` and ``colorseg evaluate``."""

import argparse
import sys
from typing import Any

NETWORKS = ("pool_upsample", "conv_transpose", "unet")
TASKS = ("colorize", "super-resolution")


def add_commands(commands: Any) -> None:
    """Add the commands to the parser's."""
    training = commands.add_parser(
        "train",
        help="train a network to colorize",
        usage=f"colorseg train {{{','.join(NETWORKS)}}} [flags]",
        description="Train a network; 'colorseg train unet --help' lists the flags.",
    )
    training.add_argument("network", choices=NETWORKS)
    training.add_argument("flags", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    training.set_defaults(run=train)

    measuring = commands.add_parser("evaluate", help="measure the weights of a network on pictures")
    add = measuring.add_argument
    add("weights", metavar="NAME|FILE", help="horse24, or a .safetensors or .pth file")
    add("--data", metavar="PATH", help="pictures, as for training (default: sample, or scenes)")
    add("--classes", nargs="+", metavar="NAME", help="CIFAR-10 classes (default: horse), or all")
    add("--task", choices=TASKS, default="colorize", help="what the network sees")
    add("--image-size", type=int, metavar="N", help="of photographs (32), or with masks (96)")
    add("--short-side", type=int, default=0, metavar="N", help="of photographs, as for training")
    add("--batch-size", type=int, default=100, metavar="N")
    add("--device", default="cpu", metavar="NAME", help="where to compute, as torch names it")
    add("--json", action="store_true", help="as one JSON object")
    measuring.set_defaults(run=evaluate)


def chosen_classes(given: list[str] | None) -> tuple[str, ...] | None:
    """What ``--classes`` says, as ``colorseg.data.load`` takes it: horses, or None for all."""
    return None if given == ["all"] else tuple(given or ("horse",))


def train(args: argparse.Namespace) -> int:
    """Train, with the flags of that network."""
    from colorseg.training.command import main

    return main(args.network, args.flags, prog=f"colorseg train {args.network}")


def evaluate(args: argparse.Namespace) -> int:
    """Print loss, accuracy and what else is known of the validation pictures."""
    import json
    import math

    from colorseg.models import segments

    figures = (_segmenter if segments(args.weights) else _colorizer)(args)
    if args.json:
        known = {name: x if math.isfinite(x) else None for name, x in figures.items()}
        print(json.dumps(known, indent=2))  # JSON has neither NaN nor infinity
    else:
        for name, value in figures.items():
            print(f"{name}: {value:,}" if isinstance(value, int) else f"{name}: {value:.4f}")
    return 0


def _colorizer(args: argparse.Namespace) -> dict[str, float]:
    from colorseg.data import load
    from colorseg.models import load_network
    from colorseg.training import evaluate as measure

    model = load_network(args.weights)
    _, val = load(
        args.data or "sample",
        classes=chosen_classes(args.classes),
        image_size=32 if args.image_size is None else args.image_size,
        short_side=args.short_side,
    )
    print(f"{val.name}, {len(val)} pictures", file=sys.stderr)
    figures = measure(model, val, None, args.batch_size, args.device, task=args.task)
    if args.task == "colorize":
        from colorseg.photos import color_quality

        figures |= color_quality(model.cpu(), val, batch_size=args.batch_size)
    return figures


def _segmenter(args: argparse.Namespace) -> dict[str, float]:
    from colorseg.data import load_segmentation
    from colorseg.models import load_segmenter
    from colorseg.training import evaluate as measure

    model = load_segmenter(args.weights)
    size = 96 if args.image_size is None else args.image_size
    _, val = load_segmentation(args.data or "scenes", image_size=size)
    print(f"{val.name}, {len(val)} pictures", file=sys.stderr)
    return measure(model, val, None, args.batch_size, args.device)
