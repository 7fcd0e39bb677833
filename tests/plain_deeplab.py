"""DeepLabV3 on a ResNet in plain torch, after the papers and torchvision's parameter names."""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

DEPTHS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
}


class PlainBlock(nn.Module):
    """Both kinds of residual block: a list of (kernel, channels, stride, dilation)."""

    def __init__(self, inputs, layers):
        super().__init__()
        self.count = len(layers)
        channels = inputs
        for i, (kernel, outputs, stride, dilation) in enumerate(layers, 1):
            pad = dilation if kernel == 3 else 0
            conv = nn.Conv2d(channels, outputs, kernel, stride, pad, dilation, bias=False)
            self.add_module(f"conv{i}", conv)
            self.add_module(f"bn{i}", nn.BatchNorm2d(outputs))
            channels = outputs
        stride = max(layer[2] for layer in layers)
        if stride > 1 or channels != inputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x):
        y = x
        for i in range(1, self.count + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = F.relu(y) if i < self.count else y
        return F.relu(y + (self.downsample(x) if hasattr(self, "downsample") else x))


def plain_layer(deep, inputs, width, depth, stride, first_dilation, dilation):
    blocks = []
    for i in range(depth):
        s, d = (stride, first_dilation) if i == 0 else (1, dilation)
        layers = (
            [(1, width, 1, 1), (3, width, s, d), (1, 4 * width, 1, 1)]
            if deep
            else [(3, width, s, d), (3, width, 1, d)]
        )
        blocks.append(PlainBlock(inputs, layers))
        inputs = layers[-1][1]
    return nn.Sequential(*blocks)


def conv_bn_relu(inputs, outputs, kernel, dilation=1):
    pad = dilation if kernel == 3 else 0
    conv = nn.Conv2d(inputs, outputs, kernel, padding=pad, dilation=dilation, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]


class PlainASPP(nn.Module):
    def __init__(self, inputs, rates):
        super().__init__()
        branches = [nn.Sequential(*conv_bn_relu(inputs, 256, 1))]
        branches += [nn.Sequential(*conv_bn_relu(inputs, 256, 3, rate)) for rate in rates]
        pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), *conv_bn_relu(inputs, 256, 1))
        self.convs = nn.ModuleList([*branches, pooled])
        self.project = nn.Sequential(*conv_bn_relu(1280, 256, 1), nn.Dropout(0.5))

    def forward(self, x):
        *branches, pooled = [conv(x) for conv in self.convs]
        return self.project(torch.cat([*branches, pooled.expand_as(branches[0])], 1))


class PlainDeepLab(nn.Module):
    def __init__(self, name, classes, output_stride=8, aux=False):
        super().__init__()
        deep, wide = (
            name in ("resnet50", "resnet101"),
            4 if name in ("resnet50", "resnet101") else 1,
        )
        # (stride, dilation of the first block, dilation of the others) of layer2 to layer4
        plan = {
            8: [(2, 1, 1), (1, 1, 2), (1, 2, 4)],
            16: [(2, 1, 1), (2, 1, 1), (1, 1, 2)],
        }[output_stride]
        d2, d3, d4 = DEPTHS[name][1:]
        self.backbone = nn.ModuleDict(
            {
                "conv1": nn.Conv2d(3, 64, 7, 2, 3, bias=False),
                "bn1": nn.BatchNorm2d(64),
                "layer1": plain_layer(deep, 64, 64, DEPTHS[name][0], 1, 1, 1),
                "layer2": plain_layer(deep, 64 * wide, 128, d2, *plan[0]),
                "layer3": plain_layer(deep, 128 * wide, 256, d3, *plan[1]),
                "layer4": plain_layer(deep, 256 * wide, 512, d4, *plan[2]),
            }
        )
        rates = [rate * 8 // output_stride for rate in (12, 24, 36)]
        self.classifier = nn.Sequential(
            PlainASPP(512 * wide, rates), *conv_bn_relu(256, 256, 3), nn.Conv2d(256, classes, 1)
        )
        if aux:
            self.aux_classifier = nn.Sequential(
                *conv_bn_relu(256 * wide, 64 * wide, 3),
                nn.Dropout(0.1),
                nn.Conv2d(64 * wide, classes, 1),
            )

    def forward(self, x):
        b = self.backbone
        y = F.max_pool2d(F.relu(b["bn1"](b["conv1"](x))), 3, 2, 1)
        third = b["layer3"](b["layer2"](b["layer1"](y)))
        logits = OrderedDict(out=self.classifier(b["layer4"](third)))
        if hasattr(self, "aux_classifier"):
            logits["aux"] = self.aux_classifier(third)
        return OrderedDict(
            (k, F.interpolate(v, x.shape[2:], mode="bilinear")) for k, v in logits.items()
        )
