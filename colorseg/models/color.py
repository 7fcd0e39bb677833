"""The three colorisation networks: grey image in, logits over palette colors out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from colorseg.models.weights import load_weights, metadata_of
from colorseg.nn import ConvBNReLU, SkipConv2d
from colorseg.nn.chain import Link, run_chain
from colorseg.nn.padding import conv_padding
from colorseg.ops._registration import memory_format
from colorseg.palette import Palette

REDUCTION = 4  # the networks halve the resolution twice


class Frame(NamedTuple):
    """Checks an image for a network, pads it to a size that the network can halve, and crops."""

    name: str  # of the network
    channels: int

    def run(self, x: Tensor, body: Callable[[Tensor], Tensor]) -> Tensor:
        """``body`` of the image ``x``, (N, channels, H, W), in the layout of ``x``.

        An image of one channel is of both layouts, and so is what is made of it.
        """
        if not isinstance(x, Tensor):
            raise TypeError(
                f"{self.name} takes a tensor, got {type(x).__name__}; torch.fx cannot follow what "
                "depends on the image's size: torch.export.export can"
            )
        if x.dim() != 4 or x.shape[1] != self.channels:
            expected = f"(N, {self.channels}, H, W)"
            raise ValueError(f"{self.name} takes images {expected}, got {tuple(x.shape)}")
        if not x.is_floating_point():
            raise TypeError(
                f"{self.name} takes floating-point images, got {x.dtype}; divide bytes by 256"
            )
        height, width = x.shape[2:]
        bottom, right = -height % REDUCTION, -width % REDUCTION
        if bottom or right:
            x = F.pad(x, (0, right, 0, bottom), mode="replicate")
        y = body(x)
        if self.channels > 1 or not x.is_contiguous():
            y = y.contiguous(memory_format=memory_format(x))
        return y[..., :height, :width] if bottom or right else y


class ColorNetwork(nn.Module):
    """What the three networks share: their arguments, and inputs of any size.

    An input whose height or width is no multiple of 4 is padded on the right and at the bottom by
    repeating its edge, and the output cropped.

    Args:
        kernel: size of every convolution; even ones pad one more pixel right and bottom at stride
            1.
        num_filters: channels after the first block.
        num_colors: palette colors, the channels of the result.
        num_in_channels: 1 for grey input.
        dilation: of the second, the middle convolution.
        weights: a name of weights that come with the package: ``"horse24"``, trained on CIFAR-10's
            horses, or of a UNet ``"general"``, on all of its classes and on photographs; or path
            of a file written by :func:`colorseg.models.save_weights`, or of a plain state dict
            (.pth).
            The file fixes the other arguments; one that contradicts it is an error.

    Shape:
        (N, num_in_channels, H, W) -> (N, num_colors, H, W).
    """

    palette: Palette | None = None  # the colors the logits stand for, where a weights file says so
    grey: str = "mean"  # how its input is made from RGB: the mean of the channels of uint8 / 256

    def __init__(
        self,
        kernel: int | None = None,
        num_filters: int | None = None,
        num_colors: int | None = None,
        num_in_channels: int | None = None,
        *,
        dilation: int | None = None,
        weights: str | Path | None = None,
    ) -> None:
        super().__init__()
        given = {
            "kernel": kernel,
            "num_filters": num_filters,
            "num_colors": num_colors,
            "num_in_channels": num_in_channels,
            "dilation": dilation,
        }
        defaults = {
            "kernel": 3,
            "num_filters": 32,
            "num_colors": 24,
            "num_in_channels": 1,
            "dilation": 1,
        }
        stored = load_weights(weights, type(self).__name__) if weights is not None else None
        fixed = stored.check_arguments(given) if stored else {}
        arguments = {
            name: _size(name, fixed.get(name, default if given[name] is None else given[name]))
            for name, default in defaults.items()
        }
        self.num_in_channels, self.num_colors = (
            arguments["num_in_channels"],
            arguments["num_colors"],
        )
        self.dilation = arguments["dilation"]
        self._build(*arguments.values())
        if stored:
            self.palette, self.grey = stored.palette, stored.grey
            stored.load_into(self)

    def _build(
        self, kernel: int, num_filters: int, num_colors: int, num_in_channels: int, dilation: int
    ) -> None:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_colors, H, W) of an image (N, num_in_channels, H, W)."""
        return self.frame().run(x, lambda image: run_chain(image, self.links()))

    def frame(self) -> "Frame":
        """What happens to images around the blocks."""
        return Frame(type(self).__name__, self.num_in_channels)

    def links(self) -> list[Link]:
        """The blocks and what each reads; one behind the other unless a network says otherwise."""
        names = ("module1", "module2", "module3", "module4", "module_last")
        return [Link(self.get_submodule(name), i) for i, name in enumerate(names)]


def _size(name: str, value: Any) -> int:
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a positive int, got {value!r}")
    return value


class PoolUpsampleNet(ColorNetwork):
    """Max-pools down and upsamples back, both between convolution and batch norm."""

    def _build(
        self, kernel: int, num_filters: int, num_colors: int, num_in_channels: int, dilation: int
    ) -> None:
        nf, nc = num_filters, num_colors
        self.module1 = ConvBNReLU(num_in_channels, nf, kernel, resample="maxpool2")
        self.module2 = ConvBNReLU(nf, 2 * nf, kernel, dilation=dilation, resample="maxpool2")
        self.module3 = ConvBNReLU(2 * nf, nf, kernel, resample="upsample2")
        self.module4 = ConvBNReLU(nf, nc, kernel, resample="upsample2")
        self.module_last = SkipConv2d(nc, nc, kernel, **conv_padding(kernel))


class ConvTransposeNet(ColorNetwork):
    """Strided convolutions down and transposed convolutions back."""

    def _build(
        self, kernel: int, num_filters: int, num_colors: int, num_in_channels: int, dilation: int
    ) -> None:
        nf, nc = num_filters, num_colors
        self.module1 = ConvBNReLU(num_in_channels, nf, kernel, stride=2)
        self.module2 = ConvBNReLU(nf, 2 * nf, kernel, stride=2, dilation=dilation)
        self.module3 = ConvBNReLU(2 * nf, nf, kernel, stride=2, transposed=True)
        self.module4 = ConvBNReLU(nf, nc, kernel, stride=2, transposed=True)
        self.module_last = SkipConv2d(nc, nc, kernel, **conv_padding(kernel))


class UNet(ColorNetwork):
    """ConvTransposeNet whose decoder also sees the first block's output and the input itself.

    The decoder's channels come first, the skipped ones behind them: the order of trained weights.
    """

    def _build(
        self, kernel: int, num_filters: int, num_colors: int, num_in_channels: int, dilation: int
    ) -> None:
        nf, nc = num_filters, num_colors
        self.module1 = ConvBNReLU(num_in_channels, nf, kernel, stride=2)
        self.module2 = ConvBNReLU(nf, 2 * nf, kernel, stride=2, dilation=dilation)
        self.module3 = ConvBNReLU(2 * nf, nf, kernel, stride=2, transposed=True)
        self.module4 = ConvBNReLU(2 * nf, nc, kernel, stride=2, transposed=True)
        self.module_last = SkipConv2d(nc + num_in_channels, nc, kernel, **conv_padding(kernel))

    def links(self) -> list[Link]:
        """The blocks: two of them read a second map."""
        return [
            Link(self.module1, 0),
            Link(self.module2, 1),
            Link(self.module3, 2),
            Link(self.module4, 3, skip=1),
            Link(self.module_last, 4, skip=0),
        ]


def load_network(weights: str | Path) -> ColorNetwork:
    """The network of a weights file, in eval mode: a UNet unless the file says otherwise.

    Args:
        weights: as for a network.

    Raises:
        FileNotFoundError, ValueError: as for a network.
    """
    name = metadata_of(weights).get("network", UNet.__name__)
    known = {network.__name__: network for network in NETWORKS.values()}
    if name not in known:
        raise ValueError(f"{weights} holds the weights of a {name}, of none of {', '.join(known)}")
    return known[name](weights=weights).eval()


NETWORKS: dict[str, type[ColorNetwork]] = {
    "pool_upsample": PoolUpsampleNet,
    "conv_transpose": ConvTransposeNet,
    "unet": UNet,
}
