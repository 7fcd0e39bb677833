"""A step of training: forward, loss, backward, optimizer; on CUDA recorded as a graph."""

import logging

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from colorseg.nn.capture import captured
from colorseg.training import ranks
from colorseg.training.anomaly import check_gradients
from colorseg.training.run_config import RunConfig
from colorseg.training.task import Task

logger = logging.getLogger(__name__)

EAGER_STEPS = 3  # before a recording: libraries choose their algorithms, the optimizer its state


class Step:
    """Trains a model on batches of a task.

    Args:
        model: in training mode when called.
        task: whose loss is lowered.
        optimizer: of the model's parameters.
        config: its ``amp``, ``clip`` and ``detect_anomaly``.
    """

    def __init__(
        self, model: nn.Module, task: Task, optimizer: Optimizer, config: RunConfig
    ) -> None:
        self.model, self.task, self.optimizer, self.config = model, task, optimizer, config
        self._kind = task.device.type

    def __call__(self, index: Tensor) -> Tensor:
        """The loss of the pictures of that index, before the step; a scalar on the device.

        Of several ranks each takes a part of them.
        """
        part, share = ranks.own(index)
        self.optimizer.zero_grad()
        # bfloat16 has the range of float32, so that gradients need no scaling; a cache of casts
        # would not outlive a recording
        with torch.autocast(
            self._kind, torch.bfloat16, enabled=self.config.amp, cache_enabled=False
        ):
            loss = self.task.loss(self.model, part)
        loss = loss if share == 1 or self.task.over_ranks else loss * share
        loss.backward()
        if self.config.detect_anomaly:
            check_gradients(self.model)
        if self.config.clip > 0:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.optimizer.step()
        return ranks.mean(loss.detach())


class GraphedStep(Step):
    """The same, replayed as one CUDA graph for batches of the size of the first one.

    The optimizer must be ``capturable``, its learning rates tensors, and the task's pictures on the
    device.
    """

    def __init__(
        self, model: nn.Module, task: Task, optimizer: Optimizer, config: RunConfig
    ) -> None:
        super().__init__(model, task, optimizer, config)
        self._eager_steps = 0
        self._given: Tensor | None = None  # index of the batches that are replayed
        self._loss: Tensor | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._stream = torch.cuda.Stream(task.device)
        self._failed = False

    def __call__(self, index: Tensor) -> Tensor:
        """As for ``Step``."""
        if self._given is None:
            self._given = index.to(self.task.device)
        if self._failed or len(index) != len(self._given):
            return super().__call__(index)
        if self._graph is None and self._eager_steps < EAGER_STEPS:
            self._eager_steps += 1
            return self._aside(index)
        self._given.copy_(index)
        if self._graph is None and not self._record():
            return super().__call__(index)
        assert self._graph is not None
        assert self._loss is not None
        self._graph.replay()
        return self._loss.clone()

    def _aside(self, index: Tensor) -> Tensor:
        """A step on another stream, as recordings want those before them."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            loss = super().__call__(index)
        torch.cuda.current_stream().wait_stream(self._stream)
        return loss

    def _record(self) -> bool:
        graph = torch.cuda.CUDAGraph()
        assert self._given is not None
        try:
            with captured(graph):
                self._loss = super().__call__(self._given)
        except RuntimeError as error:
            self._failed = True
            reason = str(error).splitlines()[0]
            logger.warning("training without a CUDA graph: recording failed (%s)", reason)
            return False
        self._graph = graph
        return True
