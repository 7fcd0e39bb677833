"""The three networks: a training step and inference, of 32 x 32 images."""

import copy
import sys
from collections.abc import Callable, Iterator
from functools import cached_property

import torch
import torch.nn.functional as F
from layers import BATCH
from peers import LAYOUTS, TIES, check_parity, default_layout, double
from torch import Tensor, nn

from colorseg import models, ops, unfuse
from colorseg.benchmark import Case, main

SIZE = (1, 32, 32)
NETWORKS = (models.PoolUpsampleNet, models.ConvTransposeNet, models.UNet)
Loss = Callable[[Tensor, Tensor], Tensor]


class Contestant:
    """A copy of a network with its images in one layout."""

    def __init__(self, model: nn.Module, images: Tensor, labels: Tensor, loss: Loss) -> None:
        self.model, self.images, self.labels, self.loss = model, images, labels, loss

    @cached_property  # inference does without it, and without the seconds of its import
    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.model.parameters(), fused=True)

    def step(self) -> None:
        """Forward, loss, backward, fused Adam."""
        self.optimizer.zero_grad()
        self.loss(self.model(self.images), self.labels).backward()
        self.optimizer.step()

    def infer(self) -> Tensor:
        with torch.inference_mode():
            return self.model(self.images)

    def results(self) -> list[Tensor]:
        """What is checked: logits, and in training mode all gradients."""
        if not self.model.training:
            return [self.infer()]
        logits = self.model(self.images)
        loss = self.loss(logits, self.labels)
        return [logits.detach(), *torch.autograd.grad(loss, list(self.model.parameters()))]


def contestants(network: type[nn.Module], batch: int, training: bool) -> dict[str, Contestant]:
    """Ours, the peers, and the float64 reference, all with the same numbers."""
    torch.manual_seed(0)
    model = network().train(training)
    images, labels = torch.rand(batch, *SIZE), torch.randint(24, (batch, *SIZE[1:]))
    plain = unfuse(copy.deepcopy(model))
    made = {"ours": Contestant(model, default_layout(images), labels, ops.color_cross_entropy)}
    for name, lay_out in {**LAYOUTS, "reference": double}.items():
        twin = copy.deepcopy(plain).to(lay_out(images).dtype)
        if name == "channels_last":
            twin = twin.to(memory_format=torch.channels_last)
        made[name] = Contestant(twin, lay_out(images), labels, F.cross_entropy)
    return made


def model_case(network: type[nn.Module], batch: int, training: bool) -> Case:
    made = contestants(network, batch, training)
    reference = made.pop("reference")
    direction = "training step" if training else "inference"

    def check() -> None:
        want = reference.results()
        for who, contestant in made.items():
            check_parity(want, f"{network.__name__} {direction}, {who}", contestant.results(), TIES)

    calls = {who: c.step if training else c.infer for who, c in made.items()}
    sizes = models.summary(reference.model, SIZE)
    return Case(
        "models", network.__name__, (batch, *SIZE), "float32", direction,
        calls.pop("ours"), calls, check,
        flops=2 * batch * sizes.total("connections") * (3 if training else 1),
    )  # fmt: skip


def cases() -> Iterator[Case]:
    for batch, training in ((1, False), (BATCH, False), (BATCH, True)):
        for network in NETWORKS:
            yield model_case(network, batch, training)


if __name__ == "__main__":
    sys.exit(main(cases()))
