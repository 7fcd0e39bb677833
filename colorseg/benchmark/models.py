"""The cases of networks: a training step and inference of the three, of sizes in general, and of
DeepLabV3.
"""

from collections.abc import Callable, Iterator
from functools import partial
from math import prod

import torch
from torch import Tensor, nn

from colorseg import models
from colorseg.benchmark.case import Case, Make
from colorseg.benchmark.inference import settings
from colorseg.benchmark.networks import Problem, our_inference, our_step, plain_step
from colorseg.benchmark.parity import DEEP, HALF, TIES
from colorseg.benchmark.peers import SETTINGS

SIZE = (1, 32, 32)
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "PoolUpsampleNet": models.PoolUpsampleNet,
    "ConvTransposeNet": models.ConvTransposeNet,
    "UNet": models.UNet,
}
# name: network, batch and image of sizes that nothing was tuned for
GENERIC: dict[str, tuple[Callable[[], nn.Module], int, tuple[int, int, int]]] = {
    "UNet-64-filters": (partial(models.UNet, num_filters=64), 4, (1, 256, 256)),
    "UNet-kernel-5": (partial(models.UNet, kernel=5), 100, SIZE),
    "UNet-3-channels": (partial(models.UNet, num_in_channels=3), 100, (3, 32, 32)),
}
SEGMENTATION = "resnet50", 4, (3, 224, 224)


class Segmenter(nn.Module):
    """DeepLabV3 as the harness takes networks: logits alone, and no dropout, which would make
    every result another one.
    """

    def __init__(self, backbone: str) -> None:
        super().__init__()
        self.network = models.deeplabv3(backbone, 24)
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 24, H, W) of images (N, 3, H, W)."""
        logits: Tensor = self.network(x)["out"]
        return logits


def model_case(
    name: str, network: Callable[[], nn.Module], batch: int, size: tuple[int, int, int],
    direction: str, bfloat16: bool = False, allowed: float = TIES,
) -> Case:  # fmt: skip
    """A network's "training step" or "inference" of a batch of images of ``size`` (C, H, W)."""
    training = direction == "training step"
    problem = Problem(network, batch, size, training)
    dtype = torch.bfloat16 if bfloat16 else torch.float32
    ours: Make
    peers: dict[str, Make]
    if training:
        ours = partial(our_step, problem)
        peers = {who: partial(plain_step, problem, *s) for who, s in SETTINGS.items()}
    else:
        ours, peers = partial(our_inference, problem, dtype), settings(problem, bfloat16)
    passes = 3 if training else 1  # backward: once for the inputs, once for the weights
    sizes = models.summary(network().to("meta"), size)  # counts without computing
    return Case(
        "models", name, (batch, *size), str(dtype).removeprefix("torch."), direction, ours, peers,
        problem.reference, HALF if bfloat16 else allowed,
        flops=2 * batch * sizes.total("connections") * passes,
        # the image read, each convolution's output written and read, even when all else is fused
        bytes=batch * dtype.itemsize * (prod(size) + 2 * sizes.outputs()) * passes,
    )  # fmt: skip


def cases() -> Iterator[Case]:
    """All of them; those of bfloat16 only for inference."""
    for batch in (1, 100):
        for name, network in NETWORKS.items():
            yield model_case(name, network, batch, SIZE, "inference")
    for batch in (32, 100):
        for name, network in NETWORKS.items():
            yield model_case(name, network, batch, SIZE, "training step")
    for batch in (1, 100):
        for name, network in NETWORKS.items():
            yield model_case(name, network, batch, SIZE, "inference", bfloat16=True)
    for name, (network, batch, size) in GENERIC.items():
        for direction in ("inference", "training step"):
            yield model_case(name, network, batch, size, direction)
    backbone, batch, size = SEGMENTATION
    for direction in ("inference", "training step"):
        network = partial(Segmenter, backbone)
        name, allowed = f"DeepLabV3-{backbone}", TIES if direction == "inference" else DEEP
        yield model_case(name, network, batch, size, direction, allowed=allowed)
