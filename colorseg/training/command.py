"""Training from the command line: what the examples ``train_*.py`` run."""

import argparse
import dataclasses
import logging
import sys
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from colorseg.training import ranks
from colorseg.training.checkpoint import holds_run
from colorseg.training.config import TASKS, Config
from colorseg.training.history import Epoch, History
from colorseg.training.run_config import OPTIMIZERS, SCHEDULES

logger = logging.getLogger(__name__)


def main(network: str, argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Train one of the networks as the command line says; ``prog`` is what its help calls it.

    Returns:
        The exit code: 0, 2 after a mistake of the user (one sentence on stderr), 130 after Ctrl-C.
    """
    options = vars(build_parser(network, prog).parse_args(argv))
    return guarded(lambda: _train(network, options), "use a smaller --batch-size or --num-filters")


def guarded(work: Callable[[], None], if_memory_is_short: str) -> int:
    """Run ``work`` with the log on stderr, and turn mistakes of the user into a sentence there.

    Of several processes the first one alone says what it met for all of them.

    Returns:
        The exit code, as ``main`` has it.
    """
    logging.basicConfig(format="%(message)s")
    logging.getLogger("colorseg").setLevel(logging.INFO)
    try:
        work()
    except KeyboardInterrupt:  # fit has said how to continue
        return 130
    except (FloatingPointError, ImportError, OSError, ValueError) as error:
        return _complain(error)
    except (MemoryError, RuntimeError) as error:
        if "memory" not in f"{type(error).__name__} {error}".lower():
            raise
        return _complain(f"out of memory; {if_memory_is_short}")
    return 0


def build_parser(network: str, prog: str | None = None) -> argparse.ArgumentParser:
    """The flags of a training command; those not given are missing in the result."""
    known = Config(network=network)
    parser = argparse.ArgumentParser(
        prog=prog,
        description=f"Train the {network} network to colorize grey pictures.",
        argument_default=argparse.SUPPRESS,  # so that --resume can tell them from the defaults
    )

    def add(flag: str, help: str, **settings: Any) -> None:
        default = getattr(known, flag[2:].replace("-", "_"), None)
        shown = "" if default in (None, False) else f" (default: {_words(default)})"
        parser.add_argument(flag, help=help + shown, **settings)

    parser.add_argument("--config", metavar="TOML", help="file of settings; flags go over them")
    add("--data", "the pictures: sample, cifar10, or a path", metavar="PATH|cifar10|sample")
    add("--classes", "CIFAR-10 classes to use, or all", nargs="+", metavar="NAME")
    add("--image-size", "side of the squares cut from photographs", type=int, metavar="N")
    add("--short-side", "of photographs, scaled before (the image size)", type=int, metavar="N")
    add("--download", "allow to download the pictures", action="store_true")
    add("--epochs", "passes over the training pictures, in all", type=int, metavar="N")
    add("--batch-size", "pictures in a batch", type=int, metavar="N")
    add("--lr", "learning rate", type=float, metavar="RATE")
    add("--schedule", "poly lets the rate fall to 0 at the end", choices=SCHEDULES)
    add("--flips", "mirror training pictures at random", action="store_true")
    add("--label-smoothing", "of the training loss, 0 .. 1", type=float, metavar="S")
    add("--soft-neighbors", "colors that a target is spread over", type=int, metavar="N")
    add("--soft-sigma", "width of such targets, in RGB", type=float, metavar="SIGMA")
    add("--rebalance", "weight of rare colors, 0 .. 1", type=float, metavar="R")
    add("--optimizer", "adamw adds a weight decay of 0.01", choices=OPTIMIZERS)
    add("--seed", "decides weights and batches", type=int, metavar="N")
    add("--device", "where to compute, as torch names it", metavar="NAME")
    add("--amp", "compute in bfloat16 where that is safe; on CUDA", action="store_true")
    parser.add_argument(
        "--no-cuda-graphs",
        dest="cuda_graphs",
        action="store_false",
        help="run the operators of a step one by one, on CUDA",
    )
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        help=f"where to write (default: {_default_out(network)}; -2, -3, ... is added if taken)",
    )
    add("--clip", "norm that gradients are scaled down to", type=float, metavar="NORM")
    add("--detect-anomaly", "name the layer that makes NaN or inf first", action="store_true")
    add("--sync-bn", "normalize over the batches of all processes", action="store_true")
    add("--tensorboard", "write for TensorBoard, too", action="store_true")
    add("--resume", "go on with the run in --out, and its settings", action="store_true")
    add("--reference", "plain torch instead of the fused operators", action="store_true")
    add("--kernel", "side of the convolutions", type=int, metavar="N")
    add("--num-filters", "filters of the first convolution", type=int, metavar="N")
    add("--dilation", "of the second convolution", type=int, metavar="N")
    add("--task", "what the network sees: grey pictures, or coarse ones", choices=TASKS)
    add("--palette", "horse24, sample24, a file, or auto for the one of the data", metavar="NAME")
    parser.add_argument(
        "--fixed-batches",
        dest="reshuffle",
        action="store_false",
        help="shuffle once instead of in every epoch, as in the course",
    )
    add("--threads", "CPU threads (default: torch's)", type=int, metavar="N")
    return parser


def _train(network: str, options: dict[str, Any]) -> None:
    import torch  # late, as the rest: --help answers at once

    threads = options.pop("threads", None)
    if threads is not None:
        if threads < 1:
            raise ValueError(f"--threads must be at least 1, got {threads}")
        torch.set_num_threads(threads)

    with ranks.joined(lambda: _config(network, options)) as config:
        history = _fit(config)
        if ranks.is_first():
            _report(history, config.out)


def _fit(config: Config) -> History:
    from colorseg.data import load
    from colorseg.training.checkpoint import open_folder
    from colorseg.training.color import new_network
    from colorseg.training.loop import fit

    ranks.from_first(lambda: open_folder(config))  # before the work of loading pictures
    logger.info("writing to %s", config.out)
    train, val = load(
        config.data,
        classes=config.classes,
        image_size=config.image_size,
        short_side=config.short_side,
        download=config.download,
    )
    try:
        return fit(new_network(config), train, val, config)
    except KeyboardInterrupt:
        logger.warning("continue with --resume")  # other commands that call fit have no such flag
        raise


def _config(network: str, options: dict[str, Any]) -> Config:
    """Flags given, over a file of settings, over the run to be resumed, over the defaults."""
    flags = dict(options)
    file = flags.pop("config", None)
    given = flags if file is None else Config.read_toml(file) | flags
    resume = given.get("resume", False)
    out = given.get("out") or numbered_out(_default_out(network), resume)
    saved = Path(str(out)) / "config.json"
    base = Config.load(saved) if resume and saved.exists() else Config()
    return dataclasses.replace(base, **given | {"network": network, "out": out, "resume": resume})


def _default_out(network: str) -> str:
    return f"runs/{network}"


def numbered_out(folder: str, resume: bool = False) -> str:
    """The first of ``folder``, ``folder-2``, ... without a run; to resume, the last with one."""
    names = (folder if number == 1 else f"{folder}-{number}" for number in count(1))
    last = folder
    for name in names:
        # the runs of a comparison are in folders of their own
        if not any(holds_run(folder) for folder in (Path(name), *Path(name).glob("*/"))):
            break
        last = name
    return last if resume else name


def _report(history: History, out: str) -> None:
    print(f"\n{'':12}{'epoch':>6}{'train loss':>12}{'val loss':>10}{'accuracy':>10}")
    _print_row("best", history.best)
    _print_row("last", history.epochs[-1])
    minutes, seconds = divmod(round(sum(history.column("seconds"))), 60)
    print(f"\nepochs: {len(history)}, time: {minutes} min {seconds} s")
    print(f"{out}/model.safetensors has the weights of the best epoch; see curves.png, samples.png")


def _print_row(name: str, epoch: Epoch) -> None:
    numbers = f"{epoch.epoch:>6}{epoch.train_loss:>12.4f}{epoch.val_loss:>10.4f}"
    print(f"{name:<12}{numbers}{100 * epoch.val_accuracy:>8.1f} %")


def _words(value: object) -> str:
    return " ".join(value) if isinstance(value, tuple) else str(value)


def _complain(problem: Exception | str) -> int:
    if isinstance(problem, str) or not ranks.is_told(problem):
        print(f"error: {problem}", file=sys.stderr)
    return 2
