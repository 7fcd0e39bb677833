"""Peak memory of a training step, ours against eager: MB beyond parameters, images and state."""

import argparse
import sys
from collections.abc import Iterator
from itertools import product

import torch

from colorseg.benchmark import Contestant, machine
from colorseg.benchmark.memory import peak_memory
from colorseg.benchmark.models import NETWORKS, SIZE
from colorseg.benchmark.networks import Problem, our_step, plain_step
from colorseg.benchmark.peers import SETTINGS

BATCHES = (32, 100)


def peak(contestant: Contestant) -> float:
    """MB of its second step: the first one makes the optimizer's state."""
    contestant.call()
    return peak_memory(contestant.call) / 1e6


def lines(only: str = "") -> Iterator[str]:
    """A line per network and batch whose label contains ``only``; ValueError if there is none."""
    found = False
    for name, batch in product(NETWORKS, BATCHES):
        label = " ".join((name, "x".join(map(str, (batch, *SIZE))), "training step"))
        if only not in label:
            continue
        found = True
        problem = Problem(NETWORKS[name], batch, SIZE, training=True)
        ours, eager = peak(our_step(problem)), peak(plain_step(problem, *SETTINGS["eager"]))
        yield f"{label:<48} ours {ours:.1f} MB  eager {eager:.1f} MB  ratio {ours / eager:.2f}"
    if not found:
        raise ValueError(f"no case has {only!r} in its name; run without --only to see them all")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", metavar="TEXT", help="cases with TEXT in their name")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of torch")
    args = parser.parse_args(argv)
    try:
        if args.threads is not None:
            if args.threads < 1:
                raise ValueError(f"threads must be at least 1, got {args.threads}")
            torch.set_num_threads(args.threads)
        print(", ".join(f"{name} {value}" for name, value in machine().items()))
        for line in lines(args.only):
            print(line, flush=True)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
