"""The cases of a GPU: networks, losses and DeepLabV3, in float32, in tf32 and in bfloat16.

Small ones check results, and run on the CPU too.
"""

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from math import prod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import colorseg
from colorseg import models, ops, reference
from colorseg.benchmark import TIES, Case, Contestant
from colorseg.benchmark.gpu import graphed, graphed_if_it_can, precision
from colorseg.benchmark.models import NETWORKS, SIZE, Segmenter
from colorseg.benchmark.networks import Problem
from colorseg.benchmark.parity import ROUGH
from colorseg.benchmark.peers import Layout, channels_last, default_layout, operator_case

CHECKED = 32  # images of which results are compared with float64, for which there is memory
ALLOWED = {"float32": TIES, "tf32": ROUGH, "bfloat16": ROUGH}
BATCHES = (100, 1024, 8192)


class Setting(NamedTuple):
    """How a peer runs: memory layout, mode of torch.compile if any, and whether as a graph."""

    layout: Layout
    compile: str | None = None
    graph: bool = False


SETTINGS = {
    "channels_last" if (name, suffix) == ("eager", "+channels_last") else name + suffix: Setting(
        layout, *how
    )
    for suffix, layout in (("", default_layout), ("+channels_last", channels_last))
    for name, how in {
        "eager": (None, False),
        "graph": (None, True),
        "compile": ("default", False),
        "reduce-overhead": ("reduce-overhead", False),
        "max-autotune": ("max-autotune", False),
    }.items()
}


class Work(NamedTuple):
    """A network with inputs in one layout, and the loss of its training."""

    model: nn.Module
    images: Tensor
    labels: Tensor
    loss: Callable[..., Any]


def training_step(work: Work, compile: str | None) -> Callable[[], None]:
    """Forward, loss, backward, fused Adam."""
    place = work.images.device.type
    optimizer = torch.optim.Adam(work.model.parameters(), fused=True, capturable=place == "cuda")
    run = compiled(lambda: work.loss(work.model(work.images), work.labels), compile)

    def call() -> None:
        optimizer.zero_grad()
        run().backward()
        optimizer.step()

    return call


def training_results(work: Work) -> list[Tensor]:
    """The loss and all gradients."""
    loss = work.loss(work.model(work.images), work.labels)
    return [loss.detach(), *torch.autograd.grad(loss, list(work.model.parameters()))]


def compiled(function: Callable[[], Any], mode: str | None) -> Callable[[], Any]:
    return function if mode is None else torch.compile(function, dynamic=False, mode=mode)


def under(name: str, call: Callable[[], Any]) -> Callable[[], Any]:
    """The call, computed in that precision."""

    def precise() -> Any:
        with precision(name), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the mix of old and new ways to say it
            return call()

    return precise


class NetworkCase:
    """A network's "training step" or "inference" of ``batch`` images, in one precision.

    ``compared``: how many of the results, the loss and then all gradients, are; ``layout``: ours.
    """

    def __init__(
        self, name: str, network: Callable[[], nn.Module], batch: int, size: tuple[int, int, int],
        direction: str, numbers: str, device: str, compared: int | None = None,
        layout: Layout = default_layout,
    ) -> None:  # fmt: skip
        self.compared, self.layout = compared, layout
        self.name, self.network, self.batch, self.size = name, network, batch, size
        self.direction, self.numbers = direction, numbers
        self.training = direction == "training step"
        self.whole = Problem(network, batch, size, self.training, device)
        self.few = Problem(network, min(batch, CHECKED), size, self.training, device)

    def plain(self, problem: Problem, layout: Layout) -> Work:
        model, images = problem.plain(layout), layout(problem.images)
        return Work(model, images, problem.labels, F.cross_entropy)

    def our(self, problem: Problem) -> Work:
        model, images = problem.ours(self.layout), self.layout(problem.images)
        return Work(model, images, problem.labels, ops.color_cross_entropy)

    def peer(self, setting: Setting) -> Contestant:
        timed, checked = (self.plain(p, setting.layout) for p in (self.whole, self.few))
        call = self.call_of(timed, setting.compile)
        if setting.graph:
            call = graphed(call)
        return Contestant(call, partial(self.results_of, checked))

    def ours(self) -> Contestant:
        if self.training:
            call = graphed(self.call_of(self.our(self.whole), None))
            return Contestant(call, partial(self.results_of, self.our(self.few)))
        half = self.numbers == "bfloat16"
        dtype = torch.bfloat16 if half else torch.float32

        def optimized(problem: Problem) -> Callable[[], Tensor]:
            network = problem.ours(self.layout)
            images = self.layout(problem.images.to(dtype))
            # what it runs as on a GPU; the CPU may have no kernels in that type
            half_on_cpu = half and images.device.type == "cpu"
            model = (
                network.to(dtype)
                if half_on_cpu
                else colorseg.optimize_for_inference(network, dtype)
            )
            strictness = "float32" if half else self.numbers
            return under(strictness, torch.inference_mode()(partial(model, images)))

        return Contestant(optimized(self.whole), lambda: [optimized(self.few)()])

    def call_of(self, work: Work, compile: str | None) -> Callable[[], Any]:
        if self.training:
            return under(self.numbers, training_step(work, compile))
        run = compiled(lambda: work.model(work.images), compile)
        return under(self.numbers, torch.no_grad()(run))

    def results_of(self, work: Work) -> list[Tensor]:
        results = training_results if self.training else self.logits
        return under(self.numbers, partial(results, work))()[: self.compared]

    def logits(self, work: Work) -> list[Tensor]:
        with torch.no_grad():
            return [work.model(work.images)]

    def case(self) -> Case:
        passes = 3 if self.training else 1
        sizes = models.summary(self.network().to("meta"), self.size)
        width = 2 if self.numbers == "bfloat16" else 4
        return Case(
            "models", self.name, (self.batch, *self.size), self.numbers, self.direction, self.ours,
            {who: partial(self.peer, setting) for who, setting in SETTINGS.items()},
            lambda: self.few.reference()[: self.compared], ALLOWED[self.numbers],
            flops=2 * self.batch * sizes.total("connections") * passes,
            bytes=self.batch * width * (prod(self.size) + 2 * sizes.outputs()) * passes,
        )  # fmt: skip


def network_cases(device: str, small: bool) -> Iterator[Case]:
    for direction in ("training step", "inference"):
        for batch in (2,) if small else BATCHES:
            for name, network in NETWORKS.items():
                for numbers in ALLOWED:
                    size = (1, 8, 8) if small else SIZE
                    yield NetworkCase(name, network, batch, size, direction, numbers, device).case()


def segmentation_cases(device: str, small: bool) -> Iterator[Case]:
    backbone, batch, side = ("resnet18", 2, 32) if small else ("resnet101", 16, 224)
    for direction in ("inference", "training step"):
        network, name = partial(Segmenter, backbone), f"DeepLabV3-{backbone}"
        # gradients of a new ResNet in bfloat16 are half off, whoever computes them
        yield NetworkCase(
            name, network, batch, (3, side, side), direction, "bfloat16", device, compared=1,
            layout=channels_last,
        ).case()  # fmt: skip


def loss_cases(device: str, small: bool) -> Iterator[Case]:
    """Of logits far larger than the L2 cache; who can is replayed as a graph."""
    torch.manual_seed(0)
    for name, shape in {"24 colors": (2048, 24, 32, 32), "2 classes": (64, 2, 512, 512)}.items():
        n, classes, height, width = (2, shape[1], 8, 8) if small else shape
        logits = torch.randn(n, classes, height, width, device=device)
        labels = torch.randint(classes, (n, height, width), device=device)
        pair: tuple[Callable[..., Tensor], Callable[..., Tensor]]
        pair, plain = (ops.color_cross_entropy, reference.color_cross_entropy), F.cross_entropy
        if classes == 2:
            pair = (ops.soft_iou_loss, reference.soft_iou_loss)
            plain = pair[1]
        for direction, gradients in (("forward", ()), ("forward+backward", (0,))):
            yield operator_case(
                (pair[0].__name__, name, direction), *pair, [logits, labels], gradients=gradients,
                scaled=False, recorded=graphed_if_it_can, plain=plain,
                bytes=logits.nbytes * (1 + len(gradients)) + labels.nbytes,
            )  # fmt: skip


def cases(device: str, small: bool = False) -> Iterator[Case]:
    """All of them, on "cuda" or "cpu"."""
    yield from loss_cases(device, small)
    yield from network_cases(device, small)
    yield from segmentation_cases(device, small)
