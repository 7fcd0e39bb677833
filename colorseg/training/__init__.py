"""The training loop behind the examples and the command line."""

from colorseg.training.config import Config, SegmentationConfig
from colorseg.training.evaluation import evaluate
from colorseg.training.history import History
from colorseg.training.loop import fit

__all__ = ["Config", "History", "SegmentationConfig", "evaluate", "fit"]
