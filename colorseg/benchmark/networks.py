"""A network with its inputs, and a training step of it by ours and by each peer."""

import copy
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import colorseg
from colorseg import ops, unfuse
from colorseg.benchmark.case import Contestant, Unavailable
from colorseg.benchmark.peers import Layout, channels_last, compiled, default_layout, double

Loss = Callable[..., Any]  # of logits and labels, a scalar tensor


class Problem:
    """The same numbers for every contestant, made when first asked for.

    Args:
        network: makes the network, with fused blocks.
        batch: images.
        size: (C, H, W) of an image.
        training: whether the network is in training mode.
        device: of everything.
    """

    def __init__(
        self, network: Callable[[], nn.Module], batch: int, size: tuple[int, int, int],
        training: bool, device: str = "cpu",
    ) -> None:  # fmt: skip
        self._network, self._shape, self._training = network, (batch, *size), training
        self.device = device

    @cached_property
    def model(self) -> nn.Module:
        """Ours; copy it before changing it."""
        torch.manual_seed(0)
        return self._network().train(self._training).to(self.device)

    @cached_property
    def images(self) -> Tensor:
        """(N, C, H, W) float32."""
        images = torch.rand(self._shape, generator=torch.Generator().manual_seed(1))
        return images.to(self.device)

    @cached_property
    def labels(self) -> Tensor:
        """(N, H, W) int64, below the 24 colors of the networks."""
        shape = (self._shape[0], *self._shape[2:])
        labels = torch.randint(24, shape, generator=torch.Generator().manual_seed(2))
        return labels.to(self.device)

    def plain(self, layout: Layout = default_layout) -> nn.Module:
        """A copy of the network in plain PyTorch, its weights in that layout and dtype."""
        return unfuse(self.ours(layout))

    def ours(self, layout: Layout) -> nn.Module:
        """A copy of the network with its fused blocks, alike."""
        model: nn.Module = copy.deepcopy(self.model).to(layout(self.images[:1]).dtype)
        last = layout is channels_last  # stated in either case: a network may choose its own
        memory_format = torch.channels_last if last else torch.contiguous_format
        return model.to(memory_format=memory_format)  # type: ignore[call-overload]

    def reference(self) -> list[Tensor]:
        """Float64 results: logits, or in training mode the loss and all gradients."""
        model, images = self.plain(double), double(self.images)
        if self._training:
            return list(step(model, images, self.labels, F.cross_entropy).results())
        with torch.inference_mode():
            return [model(images)]


def step(
    model: nn.Module, images: Tensor, labels: Tensor, loss: Loss, compiling: bool = False
) -> Contestant:
    """Forward, loss, backward, fused Adam; the results are the loss and all gradients."""
    optimizer = torch.optim.Adam(model.parameters(), fused=True)

    def forward(x: Tensor, y: Tensor) -> Tensor:
        return loss(model(x), y)

    run = compiled(forward) if compiling else forward

    def call() -> None:
        optimizer.zero_grad()
        run(images, labels).backward()
        optimizer.step()

    def results() -> list[Tensor]:
        value = run(images, labels)
        return [value.detach(), *torch.autograd.grad(value, list(model.parameters()))]

    return Contestant(call, results)


def plain_step(problem: Problem, layout: Layout, compiling: bool) -> Contestant:
    """A peer's training step."""
    images = layout(problem.images)
    return step(problem.plain(layout), images, problem.labels, F.cross_entropy, compiling)


def our_step(problem: Problem) -> Contestant:
    """Our training step: fused blocks, and the loss on ready labels as the peers have it."""
    model, images = copy.deepcopy(problem.model), default_layout(problem.images)
    return step(model, images, problem.labels, ops.color_cross_entropy)


def our_inference(problem: Problem, dtype: torch.dtype = torch.float32) -> Contestant:
    """Our inference: the network as ``optimize_for_inference`` makes it; Unavailable in a dtype
    without kernels.
    """
    images = default_layout(problem.images).to(dtype)
    try:
        model = colorseg.optimize_for_inference(copy.deepcopy(problem.model), dtype=dtype)
    except ValueError as error:
        raise Unavailable(str(error)) from None

    @torch.inference_mode()
    def call() -> Tensor:
        return model(images)

    return Contestant(call, lambda: [call()])
