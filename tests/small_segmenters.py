"""Networks in the shape of DeepLabV3, small enough for tests of the training loop."""

import torch
from torch import nn

from colorseg.data.scenes import load_scenes
from colorseg.training import SegmentationConfig, fit
from colorseg.training.seeding import seed_everything

TRAIN, VAL = load_scenes(32, 13, 6)
CPU = torch.device("cpu")


class SmallSegmenter(nn.Module):
    """``backbone``, ``classifier`` and, if asked, ``aux_classifier``."""

    def __init__(self, num_classes: int = 2, aux: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.classifier = nn.Sequential(
            nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.Dropout(dropout)),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, num_classes, 1),
        )
        self.aux_classifier = nn.Conv2d(8, num_classes, 1) if aux else None

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.backbone(x)
        logits = {"out": self.classifier(features["out"])}
        if self.aux_classifier is not None:
            logits["aux"] = self.aux_classifier(features["aux"])
        return {
            name: nn.functional.interpolate(value, x.shape[-2:], mode="bilinear")
            for name, value in logits.items()
        }


class Backbone(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.calls = 0

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        self.calls += 1
        early = self[1](self[0](x))
        return {"out": self[2](early), "aux": early}


def run(out, model=None, **settings):
    config = SegmentationConfig(out=out, **{"epochs": 2, "batch_size": 4, "lr": 0.01} | settings)
    if model is None:
        seed_everything(config.seed)
        model = SmallSegmenter()
    return model, fit(model, TRAIN, VAL, config)
