"""``colorseg colorize`` and ``colorseg segment``: thin layers over ``colorseg.photos``."""

import argparse
import os
import sys
from typing import Any

DECODINGS = ("argmax", "mean", "annealed")


def add_commands(commands: Any) -> None:
    """Add the commands to the parser's."""
    paint = commands.add_parser(
        "colorize",
        help="color photographs, of any size",
        description="Color photographs; each keeps its size and sharpness. Works offline.",
    )
    _add_shared(paint)
    add = paint.add_argument
    add("--weights", default="general", metavar="NAME|FILE", help="(default: general)")
    add("--decode", choices=DECODINGS, default="annealed", help="colors from probabilities")
    add("--temperature", type=float, metavar="T", help="of annealed: 0.38; more is paler")
    add("--vividness", type=float, default=1.0, metavar="F", help="factor of the colors")
    _add_size(paint)
    add("--no-edges", dest="edges", action="store_false", help="enlarge colors bilinearly")
    add("--compare", action="store_true", help="before and after side by side, too")
    paint.set_defaults(run=colorize)

    cut = commands.add_parser(
        "segment",
        help="the class of every pixel of photographs",
        description="Masks (PNG, pixels are class numbers) and overlays of photographs.",
    )
    _add_shared(cut)
    add = cut.add_argument
    add("--weights", required=True, metavar="FILE", help="model.safetensors of a run that segments")
    _add_size(cut)
    add("--no-overlay", dest="overlay", action="store_false", help="masks alone")
    cut.set_defaults(run=segment)


def _add_shared(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("inputs", nargs="+", metavar="INPUT", help="pictures, or folders of them")
    add("-o", "--out", required=True, metavar="DIR", help="where to write; made if missing")
    add("--max-pixels", type=int, metavar="N", help="refuse larger ones (default: 200 million)")
    add("--device", default="cpu", metavar="NAME", help="where to compute, as torch names it")
    add("--json", action="store_true", help="what became of each picture, as JSON on stdout")


def _add_size(parser: argparse.ArgumentParser) -> None:
    add = parser.add_mutually_exclusive_group().add_argument
    add("--side", type=int, metavar="N", help="pixels of the shorter side that the network sees")
    add("--whole", action="store_true", help="let it see all pixels, in tiles")


def colorize(args: argparse.Namespace) -> int:
    """Color all inputs; exit code 1 if some could not be."""
    _let_threads_sleep()
    import colorseg
    from colorseg.models import load_network
    from colorseg.photos.batch import side_by_side
    from colorseg.photos.reading import read_photo

    network = load_network(args.weights).to(_device(args.device))
    options = _given(args, "temperature", "side")
    options |= {"decode": args.decode, "vividness": args.vividness, "edges": args.edges}
    if args.whole:
        options["side"] = None
    colorseg.colorize(_probe(), network, **options)  # for its checks, before any file is touched
    endings = ["", *(["-compare"] if args.compare else [])]

    def work(source: Any) -> dict[str, Any]:
        photo = read_photo(source, **_given(args, "max_pixels"))
        colored = colorseg.colorize(photo, network, max_pixels=sys.maxsize, **options)
        pictures = {"": colored}
        if args.compare:
            pictures["-compare"] = side_by_side(photo.image(photo.rgb), colored)
        return pictures

    return _convert(args, endings, work)


def segment(args: argparse.Namespace) -> int:
    """Segment all inputs; exit code 1 if some could not be."""
    _let_threads_sleep()
    import numpy as np

    from colorseg.models import load_segmenter
    from colorseg.photos.reading import read_photo
    from colorseg.photos.segmenting import mask_image, overlay, segment_labels

    model = load_segmenter(args.weights).to(_device(args.device))
    options = _given(args, "side")
    if args.whole:
        options["side"] = None
    segment_labels(_probe(), model, **options)
    endings = ["-mask.png", *(["-overlay"] if args.overlay else [])]
    numbers = range(model.state_dict()["classifier.4.bias"].numel())
    names = model.classes or tuple(f"class {i}" for i in numbers)

    def work(source: Any) -> dict[str, Any]:
        photo = read_photo(source, **_given(args, "max_pixels"))
        labels = segment_labels(photo, model, max_pixels=sys.maxsize, **options)
        pictures: dict[str, Any] = {"-mask.png": mask_image(labels)}
        if args.overlay:
            pictures["-overlay"] = overlay(photo, labels)
        shares = np.bincount(labels.ravel(), minlength=len(names)) / labels.size
        pictures["classes"] = {n: round(float(s), 4) for n, s in zip(names, shares, strict=False)}
        return pictures

    return _convert(args, endings, work)


def _let_threads_sleep() -> None:
    """Before torch is imported: threads that spin while they wait make its small operators crawl
    where other programs run, too.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _given(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Those options that were given; the others have the defaults of the functions."""
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def _device(name: str) -> Any:
    from colorseg.training.task import usable_device

    return usable_device(name)


def _probe() -> Any:
    """A small picture, to find a wrong option before the first photograph."""
    import numpy as np

    return np.zeros((64, 64, 3), np.uint8)


def _convert(args: argparse.Namespace, endings: list[str], work: Any) -> int:
    import json

    from colorseg.photos.batch import convert

    outcomes = convert(args.inputs, args.out, endings, work)
    failed = [outcome for outcome in outcomes if outcome.error]
    if args.json:
        print(json.dumps([outcome.as_json() for outcome in outcomes], indent=2))
    else:
        for outcome in outcomes:
            for path in outcome.written:
                print(path)
            for name, share in outcome.facts.items():
                print(f"  {name}: {100 * share:.1f} %")
    for outcome in failed:
        print(f"error: {outcome.error}", file=sys.stderr)
    if failed and len(outcomes) > 1:
        print(f"{len(failed)} of {len(outcomes)} pictures failed", file=sys.stderr)
    return 1 if failed else 0
