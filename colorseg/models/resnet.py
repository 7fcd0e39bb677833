"""ResNet without its head, dilated instead of strided: the backbone of DeepLabV3.

Names and order of parameters are torchvision's, so that its weights load as they are.
"""

from collections import OrderedDict
from typing import NamedTuple

from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut.

    Args:
        in_channels: of the map.
        channels: of the result.
        stride: of the first convolution.
        dilation: of both; torchvision has none here.
        downsample: what makes the shortcut fit, or None.
    """

    expansion = 1

    def __init__(
        self, in_channels: int, channels: int, stride: int, dilation: int,
        downsample: nn.Module | None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.conv1 = _conv3x3(in_channels, channels, stride, dilation)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = _conv3x3(channels, channels, 1, dilation)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Result (N, channels, H, W) of a map (N, in_channels, H, W), at stride 1."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """A 3x3 convolution between two 1x1 ones, and a shortcut; arguments of :class:`BasicBlock`."""

    expansion = 4

    def __init__(
        self, in_channels: int, channels: int, stride: int, dilation: int,
        downsample: nn.Module | None,
    ) -> None:  # fmt: skip
        super().__init__()
        out_channels = channels * self.expansion
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = _conv3x3(channels, channels, stride, dilation)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Result (N, 4 * channels, H, W) of a map (N, in_channels, H, W), at stride 1."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


def _conv3x3(in_channels: int, channels: int, stride: int, dilation: int) -> nn.Conv2d:
    return nn.Conv2d(
        in_channels, channels, 3, stride, padding=dilation, dilation=dilation, bias=False
    )


class Architecture(NamedTuple):
    """A ResNet: its kind of block, and how many each layer has."""

    block: type[BasicBlock] | type[Bottleneck]
    counts: tuple[int, int, int, int]

    def channels(self, layer: int) -> int:
        """Of the result of layer 1 to 4."""
        return 32 * 2**layer * self.block.expansion


RESNETS = {
    "resnet18": Architecture(BasicBlock, (2, 2, 2, 2)),
    "resnet34": Architecture(BasicBlock, (3, 4, 6, 3)),
    "resnet50": Architecture(Bottleneck, (3, 4, 6, 3)),
    "resnet101": Architecture(Bottleneck, (3, 4, 23, 3)),
}


class Backbone(nn.ModuleDict):
    """The layers of a ResNet up to layer4; the strides beyond ``output_stride`` become dilations.

    Args:
        name: one of RESNETS.
        output_stride: of the result, 8 or 16.
        return_layers: which layers' results are returned, and under which names.

    Shape:
        (N, 3, H, W) -> names to maps; "layer4" has H / output_stride lines.
    """

    def __init__(self, name: str, output_stride: int, return_layers: dict[str, str]) -> None:
        block, counts = RESNETS[name]
        layers: dict[str, nn.Module] = {
            "conv1": nn.Conv2d(3, 64, 7, 2, padding=3, bias=False),
            "bn1": nn.BatchNorm2d(64),
            "relu": nn.ReLU(inplace=True),
            "maxpool": nn.MaxPool2d(3, 2, padding=1),
        }
        channels, reached, dilation = 64, 4, 1
        for i, count in enumerate(counts):
            stride, first_dilation = 1 if i == 0 else 2, dilation
            if reached * stride > output_stride:
                # a block behind a stride that became a dilation starts with the old one
                stride, dilation = 1, dilation * stride
            reached *= stride
            width = 64 * 2**i
            first = block(
                channels, width, stride, first_dilation,
                _shortcut(channels, width * block.expansion, stride),
            )  # fmt: skip
            channels = width * block.expansion
            rest = [block(channels, width, 1, dilation, None) for _ in range(count - 1)]
            layers[f"layer{i + 1}"] = nn.Sequential(first, *rest)
        super().__init__(layers)
        self.return_layers = return_layers
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        """The maps that ``return_layers`` names, of images (N, 3, H, W)."""
        results: OrderedDict[str, Tensor] = OrderedDict()
        for name, module in self.items():
            x = module(x)
            if name in self.return_layers:
                results[self.return_layers[name]] = x
        return results


def _shortcut(in_channels: int, channels: int, stride: int) -> nn.Module | None:
    """What makes a map fit to be added, or None where it does already."""
    if stride == 1 and in_channels == channels:
        return None
    conv = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels))
