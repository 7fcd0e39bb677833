"""The networks, their summary, and their weight files."""

from colorseg.models.color import (
    NETWORKS,
    ColorNetwork,
    ConvTransposeNet,
    PoolUpsampleNet,
    UNet,
    load_network,
)
from colorseg.models.deeplabv3 import DeepLabV3, deeplabv3, load_segmenter, segments
from colorseg.models.summary import Summary, summary
from colorseg.models.tiling import predict_tiled
from colorseg.models.weights import load_weights, save_weights

__all__ = [
    "NETWORKS",
    "ColorNetwork",
    "ConvTransposeNet",
    "DeepLabV3",
    "PoolUpsampleNet",
    "Summary",
    "UNet",
    "deeplabv3",
    "load_network",
    "load_segmenter",
    "load_weights",
    "predict_tiled",
    "save_weights",
    "segments",
    "summary",
]
