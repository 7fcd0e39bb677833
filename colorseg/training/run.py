"""A training run, epoch by epoch, and what it keeps in its folder."""

import logging
import math
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from colorseg._files import write_atomically
from colorseg.models.weights import uncompiled
from colorseg.training import checkpoint, ranks
from colorseg.training.board import Board
from colorseg.training.history import History, Row
from colorseg.training.plots import save_curves, save_samples
from colorseg.training.run_config import RunConfig
from colorseg.training.seeding import batch_order, seed_everything
from colorseg.training.step import GraphedStep, Step
from colorseg.training.task import Task

logger = logging.getLogger(__name__)

LOOK_EVERY = 50  # batches on CUDA
SEEDS_APART = 7919  # of two ranks
POWER = 0.9  # of the polynomial schedule, as in torchvision's references/segmentation


class Run:
    """A run between two epochs, restored from its folder if that holds one."""

    def __init__(
        self, model: nn.Module, train: Task, val: Task, config: RunConfig, out: Path
    ) -> None:
        self.model, self.train, self.val, self.config, self.out = model, train, val, config, out
        self._original = uncompiled(model)  # whose names the files have
        self.optimizer, graphed = _optimizer(model, train, config)
        _batches(torch.arange(len(train)), config.batch_size, train)  # for its check
        data = ", ".join(f"{task.name} {task.sha256()[:12]}" for task in (train, val))
        self.identity = config.identity() | {"data": data}
        ranks.require_same(data, "pictures")
        last = out / "last.pt"  # the first rank's file: others may be machines without it
        state = ranks.from_first(lambda: checkpoint.read_checkpoint(last, self.identity))
        self.history = checkpoint.restore_checkpoint(
            state, last, self._original, self.optimizer, train.row
        )
        for group in self.optimizer.param_groups:
            group["lr"] = _rate(config, train.device, graphed)
        self.board: Board | None = None
        called = ranks.parallel(model, config.sync_bn)
        self._step = (GraphedStep if graphed else Step)(called, train, self.optimizer, config)
        if len(self.history) < config.epochs:
            for task in (train, val):
                task.prepare(model)

    def epoch(self) -> None:
        """Train and validate once, then bring the folder up to date."""
        number, config = len(self.history) + 1, self.config
        # ranks mirror their pictures by chances of their own
        seed_everything((config.seed + SEEDS_APART * ranks.rank()) % 2**32, number)
        order = batch_order(len(self.train), config.seed, number, config.reshuffle)
        start = time.perf_counter()
        train_loss = self._train(order, number)
        speed = len(order) / (time.perf_counter() - start)
        result = self.val.measure(self.model, self.config.batch_size)
        self._require_finite(result["loss"], f"validation of epoch {number}")
        figures = {f"val_{name}": value for name, value in result.items()} | {
            "epoch": number,
            "train_loss": train_loss,
            "seconds": time.perf_counter() - start,
            "images_per_second": speed,
        }
        row = self.train.row(*(figures[name] for name in self.train.row._fields))
        logger.info("epoch %d/%d: %s", number, config.epochs, row.words)
        self._save(row)
        if self.board is not None:
            rate = self.optimizer.param_groups[0]["lr"]
            self.board.tell(row, float(rate), self.val, self.model)

    def finish(self) -> None:
        """Write what a finished run has beyond an interrupted one."""
        from safetensors.torch import load

        best = ranks.from_first((self.out / "best.safetensors").read_bytes)
        self._original.load_state_dict(load(best))
        if not ranks.is_first():
            return
        self.history.save_csv(self.out / "metrics.csv")
        save_curves(self.history, self.out / "curves.png")
        save_samples(self.model, self.val, self.out / "samples.png", self._title())
        write_atomically(self.out / "model.safetensors", best)

    def _title(self) -> str:
        best = self.history.best
        figures = f"loss {best.val_loss:.3f}, accuracy {100 * best.val_accuracy:.1f} %"
        if hasattr(best, "val_miou"):
            figures = f"mIoU {best.val_miou:.3f}, {figures}"
        return f"Validation pictures, weights of epoch {best.epoch}: {figures}"

    def _train(self, order: Tensor, number: int) -> float:
        from tqdm import tqdm

        self.model.train()
        losses: list[float] = []
        waiting: list[Tensor] = []  # looking at a loss waits for the device
        look_every = 1 if self.train.device.type == "cpu" else LOOK_EVERY
        title = f"epoch {number}/{self.config.epochs}"
        hidden = None if ranks.is_first() else True  # None: where stderr is no terminal
        with tqdm(total=len(order), desc=title, unit=" images", leave=False, disable=hidden) as bar:
            batches = _batches(order, self.config.batch_size, self.train)
            for number_of_batch, index in enumerate(batches):
                self._set_rate(number - 1 + number_of_batch / len(batches))
                waiting.append(self._step(index))
                if len(waiting) == look_every or number_of_batch + 1 == len(batches):
                    for loss in torch.stack(waiting).tolist():
                        self._require_finite(loss, f"epoch {number}, batch {len(losses) + 1}")
                        losses.append(loss)
                    waiting.clear()
                    bar.set_postfix(loss=f"{losses[-1]:.4f}", refresh=False)
                bar.update(len(index))
        return math.fsum(losses) / len(losses)

    def _set_rate(self, epochs: float) -> None:
        """The learning rate after so many epochs."""
        if self.config.schedule == "poly":
            left = 1 - epochs / self.config.epochs
            rate = self.config.lr * left**POWER
            for group in self.optimizer.param_groups:
                if isinstance(group["lr"], Tensor):  # which a recorded step reads
                    group["lr"].fill_(rate)
                else:
                    group["lr"] = rate

    def _save(self, row: Row) -> None:
        history = History([*self.history.epochs, row])
        if not ranks.is_first():
            self.history = history
            return
        # last.pt after the best weights: cut off in between, the resumed run repeats this epoch
        if not self.history.epochs or row.score > self.history.best.score:
            self.train.save(self.model, self.out / "best.safetensors")
        checkpoint.save_checkpoint(
            self.out / "last.pt", self._original, self.optimizer, history, self.identity
        )
        self.history = history
        history.save_csv(self.out / "metrics.csv")

    def _require_finite(self, loss: float, where: str) -> None:
        if not math.isfinite(loss):
            kept = f"the finished epochs ({len(self.history)}) are in {self.out}"
            raise FloatingPointError(
                f"the loss became {loss} in {where}, so training stopped; {kept}; "
                f"try a learning rate below {self.config.lr}"
            )


def _batches(order: Tensor, size: int, task: Task) -> list[Tensor]:
    """Batches of an epoch; a last one that is too small for the task is left out."""
    smallest = task.smallest_batch * ranks.count()
    batches = [index for index in order.split(size) if len(index) >= smallest]
    if not batches:
        raise ValueError(
            f"a batch must have at least {smallest} pictures, but {task.name} has "
            f"{len(task)} and batch_size is {size}"
        )
    return batches


def _optimizer(model: nn.Module, task: Task, config: RunConfig) -> tuple[Optimizer, bool]:
    """The optimizer, and whether its steps are recorded as a CUDA graph."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise ValueError("no parameter of the model is trained; leave a part of it unfrozen")
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
    place = task.device.type
    alone = ranks.count() == 1 and not config.detect_anomaly
    graphed = place == "cuda" and config.cuda_graphs and alone
    if graphed and task.why_no_graph is not None:
        logger.info("training without a CUDA graph: %s", task.why_no_graph)
        graphed = False
    fused = place in ("cpu", "cuda")  # one pass instead of one per operation
    rate = _rate(config, task.device, graphed)
    return kind(trained, lr=rate, fused=fused, capturable=graphed), graphed


def _rate(config: RunConfig, device: torch.device, graphed: bool) -> float | Tensor:
    """The learning rate, as a tensor where a recorded step reads it."""
    return torch.tensor(config.lr, device=device) if graphed else config.lr
