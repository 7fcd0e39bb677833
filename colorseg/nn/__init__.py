"""Modules on the fused operators, each with the state dict of its plain twin."""

from colorseg.nn.blocks import ConvBNReLU, FusedSequential, SkipConv2d, run_block
from colorseg.nn.freezing import freeze
from colorseg.nn.functional import conv_bn_relu
from colorseg.nn.fusion import fuse, unfuse
from colorseg.nn.losses import ColorCrossEntropyLoss, SoftIoULoss

__all__ = [
    "ColorCrossEntropyLoss",
    "ConvBNReLU",
    "FusedSequential",
    "SkipConv2d",
    "SoftIoULoss",
    "conv_bn_relu",
    "freeze",
    "fuse",
    "run_block",
    "unfuse",
]
