"""How time grows with the batch and with the image: ms per image, ns per pixel, of a UNet."""

import sys
from collections.abc import Iterator

from colorseg import models
from colorseg.benchmark import Case, Result, parser, run
from colorseg.benchmark.models import model_case

BATCHES = (1, 10, 100, 1024)  # of 32 x 32
SIZES = (64, 128, 256, 512, 1024)  # one image
PEERS = "eager,channels_last"  # the others would compile or export for each of these shapes


def cases() -> Iterator[Case]:
    for direction in ("inference", "training step"):
        for batch, side in [*((n, 32) for n in BATCHES), *((1, side) for side in SIZES)]:
            yield model_case("UNet", models.UNet, batch, (1, side, side), direction)


def table(results: list[Result]) -> Iterator[str]:
    """A line per case: what an image and a pixel cost in ours and in the best peer, and the ratio.

    Raises:
        ValueError: there is no result, because none of the peers ran.
    """
    title = ("direction", "shape", "ours ms/image", "ns/pixel", "best peer ms/image", "ratio")
    yield "{:<14}{:<18}{:>14}{:>10}{:>20}{:>7}".format(*title)
    for result in results:
        batch, _, height, width = result.case.shape
        row = result.row()
        ours, peer = (float(str(row[f"{who}_p50"])) / batch for who in ("ours", "peer"))
        shape = "x".join(map(str, result.case.shape))
        yield (
            f"{result.case.direction:<14}{shape:<18}{ours:>14.4g}"
            f"{1e6 * ours / (height * width):>10.3g}{peer:>20.4g}{peer / ours:>7.2f}"
        )


def main(argv: list[str] | None = None) -> int:
    options = parser()
    options.set_defaults(peers=PEERS)
    args = options.parse_args(argv)
    try:
        results, falls = run(cases(), **vars(args), report=lambda line: print(line, flush=True))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(*table(results), *falls, sep="\n")
    return 1 if falls else 0


if __name__ == "__main__":
    sys.exit(main())
