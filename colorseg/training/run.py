"""A training run, epoch by epoch, and what it keeps in its folder."""

import logging
import math
import time
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from colorseg._files import write_atomically
from colorseg.models import ColorNetwork, save_weights
from colorseg.training import checkpoint
from colorseg.training.config import Config
from colorseg.training.evaluation import measure
from colorseg.training.history import Epoch, History
from colorseg.training.plots import save_curves, save_samples
from colorseg.training.seeding import batch_order, seed_everything
from colorseg.training.task import Task

logger = logging.getLogger(__name__)

_LINE = (
    "epoch %d/%d: train loss %.4f, validation loss %.4f, accuracy %.1f %%, %.1f s, %.0f images/s"
)


class Run:
    """A run between two epochs, restored from its folder if that holds one."""

    def __init__(self, model: nn.Module, train: Task, val: Task, config: Config, out: Path) -> None:
        self.model, self.train, self.val, self.config, self.out = model, train, val, config, out
        self.optimizer = _optimizer(model, config)
        data = ", ".join(f"{t.images.name} {t.images.sha256()[:12]}" for t in (train, val))
        self.identity = checkpoint.identity(config, data)
        self.history = checkpoint.restore_checkpoint(
            out / "last.pt", model, self.optimizer, self.identity
        )

    def epoch(self) -> None:
        """Train and validate once, then bring the folder up to date."""
        number, config = len(self.history) + 1, self.config
        seed_everything(config.seed, number)
        order = batch_order(len(self.train), config.seed, number, config.reshuffle)
        start = time.perf_counter()
        train_loss = self._train(order, number)
        speed = len(order) / (time.perf_counter() - start)
        result = measure(self.model, self.val, self.config.batch_size)
        self._require_finite(result["loss"], f"validation of epoch {number}")
        row = Epoch(
            number,
            train_loss,
            result["loss"],
            result["accuracy"],
            time.perf_counter() - start,
            speed,
        )
        logger.info(_LINE, number, config.epochs, *row[1:3], 100 * row.val_accuracy, *row[4:])
        self._save(row)

    def finish(self) -> None:
        """Write what a finished run has beyond an interrupted one."""
        from safetensors.torch import load

        best = (self.out / "best.safetensors").read_bytes()
        self.model.load_state_dict(load(best))
        self.history.save_csv(self.out / "metrics.csv")
        save_curves(self.history, self.out / "curves.png")
        save_samples(self.model, self.val, self.out / "samples.png", self._title())
        write_atomically(self.out / "model.safetensors", best)

    def _title(self) -> str:
        best = self.history.best
        return (
            f"Validation pictures, weights of epoch {best.epoch}: "
            f"loss {best.val_loss:.3f}, accuracy {100 * best.val_accuracy:.1f} %"
        )

    def _train(self, order: Tensor, number: int) -> float:
        from tqdm import tqdm

        self.model.train()
        losses: list[float] = []
        title = f"epoch {number}/{self.config.epochs}"
        # disable=None: no bar where stderr is no terminal
        with tqdm(total=len(order), desc=title, unit=" images", leave=False, disable=None) as bar:
            for index in order.split(self.config.batch_size):
                loss = self._step(index)
                self._require_finite(loss, f"epoch {number}, batch {len(losses) + 1}")
                losses.append(loss)
                bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
                bar.update(len(index))
        return math.fsum(losses) / len(losses)

    def _step(self, index: Tensor) -> float:
        grey, targets = self.train.batch(index)
        loss = self.train.loss(self.model(grey), targets)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def _save(self, row: Epoch) -> None:
        # last.pt after the best weights: cut off in between, the resumed run repeats this epoch
        if not self.history.epochs or row.val_loss < self.history.best.val_loss:
            network = cast(ColorNetwork, self.model)  # or one of the user's, which works as well
            save_weights(network, self.out / "best.safetensors", self.train.palette)
        history = History([*self.history.epochs, row])
        checkpoint.save_checkpoint(
            self.out / "last.pt", self.model, self.optimizer, history, self.identity
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


def _optimizer(model: nn.Module, config: Config) -> Optimizer:
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
    fused = config.device.split(":")[0] in ("cpu", "cuda")  # one pass instead of one per operation
    return kind(model.parameters(), lr=config.lr, fused=fused)
