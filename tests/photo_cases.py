"""A picture and a segmenter for the tests of photographs."""

from pathlib import Path

import numpy as np
import torch

from colorseg.data.scenes import load_scenes
from colorseg.models import deeplabv3
from colorseg.training.segmentation import SegmentationTask


def noise(height=90, width=130, channels=3):
    values = np.random.RandomState(0).randint(0, 256, (height, width, channels), dtype=np.uint8)
    return values if channels > 1 else values[..., 0]


def save_segmenter(path: Path, output_stride: int = 8) -> Path:
    """The weights file of a small network with a background and a flower."""
    torch.manual_seed(0)
    task = SegmentationTask(load_scenes(32, 2, 2)[0], torch.device("cpu"))
    task.save(deeplabv3("resnet18", 2, output_stride=output_stride), path)
    return path
