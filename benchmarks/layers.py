"""Layers of the three networks, the inputs of the ``conv2d`` and ``conv_bn_relu`` benchmarks."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

BATCH = 100
TRANSPOSED = {"stride": 2, "transposed": True, "output_padding": 1}


@dataclass(frozen=True)
class Layer:
    name: str
    channels: int  # of x
    filters: int
    size: int  # height and width of x
    options: dict[str, Any] = field(default_factory=dict)  # of the operator
    skip: int = 0  # channels of a second input
    kernel: int = 3
    upsampled: bool = False  # x is, to the nearest, before it is convolved

    def tensors(self) -> list[Tensor]:
        """x, weight, bias, and skip if it has channels."""
        torch.manual_seed(0)
        both = self.channels + self.skip
        pair = (both, self.filters) if "transposed" in self.options else (self.filters, both)
        weight = torch.randn(*pair, self.kernel, self.kernel) / (self.kernel * both**0.5)
        x = torch.randn(BATCH, self.channels, self.size, self.size)
        skip = [torch.randn(BATCH, self.skip, self.size, self.size)] if self.skip else []
        return [x, weight, torch.randn(self.filters), *skip]

    def settings(self) -> dict[str, Any]:
        """The convolution's options; every layer keeps, halves or doubles the size."""
        return {"padding": self.kernel // 2, **self.options}

    def directions(self, forward: str) -> list[tuple[str, tuple[int, ...]]]:
        """What is timed, and which of the tensors get a gradient: all but images, of 1 channel."""
        images = {0: self.channels == 1, 3: self.skip <= 1}
        gradients = tuple(i for i in range(4) if not images.get(i))
        return [(forward, ()), ("forward+backward", gradients)]

    def work(self, backward: bool) -> dict[str, float]:
        """flops, 2 x multiply-adds, and bytes, the inputs read and the output written.

        The gradients of input and weight take as many operations as forward each, and the same
        maps again.
        """
        scale = {"stride": 1, **self.options}["stride"]
        side = 2 * self.size if self.upsampled else self.size
        pixels = side**2 if "transposed" in self.options else (side // scale) ** 2
        both = self.channels + self.skip
        flops = 2 * BATCH * pixels * both * self.filters * self.kernel**2
        large = pixels * scale**2 if "transposed" in self.options else pixels
        kept = {"maxpool2": 0.25, "upsample2": 4}.get(self.options.get("resample", ""), 1)
        values = self.size**2 * both + large * kept * self.filters
        return {
            "flops": flops * (3 - (self.channels == 1) if backward else 1),
            "bytes": 4 * BATCH * values * (3 if backward else 1),
        }
