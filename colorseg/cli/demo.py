"""``colorseg demo``."""

import argparse
import contextlib
import signal
from collections.abc import Iterator
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
    """Serve the page until the user, or the system, ends it."""
    import threading

    from colorseg.demo import Demo

    with _signals_as_ctrl_c():
        demo = Demo(args.weights, args.segmenter)
        try:
            print(f"{demo.start(args.port, args.browser)} until Ctrl-C", flush=True)
            threading.Event().wait()
        except KeyboardInterrupt:
            print("stopped")
        finally:
            demo.stop()
    return 0


@contextlib.contextmanager
def _signals_as_ctrl_c() -> Iterator[None]:
    """So that no photograph stays behind when the system, or a closed terminal, ends the demo."""
    numbers = [s for s in signal.Signals if s.name in ("SIGTERM", "SIGHUP")]  # Windows: one
    # what nohup, or who else calls this, has set stays
    numbers = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)
