"""``colorseg demo``."""

import argparse
from typing import Any


def add_commands(commands: Any) -> None:
    """Add the command to the parser's."""
    page = commands.add_parser(
        "demo",
        help="a page to drop photographs on",
        description="Serve a page on this machine, for this machine alone, until Ctrl-C. "
        "Needs pip install 'colorseg[demo]'.",
    )
    add = page.add_argument
    add("--port", type=int, metavar="N", help="(default: the first free one from 7860 on)")
    add("--weights", action="append", default=[], metavar="FILE", help="offer these, too")
    add("--segmenter", metavar="FILE", help="model.safetensors of a run that segments")
    add("--no-browser", dest="browser", action="store_false", help="open no window")
    page.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve the page until the user ends it."""
    import threading

    from colorseg.demo import Demo

    demo = Demo(args.weights, args.segmenter)
    try:
        print(f"{demo.start(args.port, args.browser)} until Ctrl-C", flush=True)
        threading.Event().wait()
    except KeyboardInterrupt:
        print("stopped")
    finally:
        demo.stop()
    return 0
