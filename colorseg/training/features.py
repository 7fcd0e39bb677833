"""The frozen part of a DeepLabV3 computed once per picture, where that changes no result."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from colorseg.data import SegmentationSet, normalize

LIMIT = 2 << 30  # bytes that features of a set may take
_BATCH = 8  # pictures at a time

logger = logging.getLogger(__name__)


class FrozenFeatures:
    """What the frozen part gives for every picture of a set; made by ``of``."""

    def __init__(self, model: Any, skipped: int, stored: dict[str, Tensor]) -> None:
        self.model, self.skipped, self.stored = model, skipped, stored

    @classmethod
    def of(cls, model: Any, data: SegmentationSet, device: torch.device) -> Self | None:
        """Features of all pictures; None if the model has no such part, or they are too large.

        The part is ``model.backbone``, and of ``model.classifier`` what precedes the first module
        that is trained.  It must not change from step to step: no parameter of it is trained, no
        batch norm in it counts, no dropout in it is active.
        """
        backbone, head = getattr(model, "backbone", None), getattr(model, "classifier", None)
        model.train()  # as it is going to be trained; what is frozen stays as it is
        if not isinstance(backbone, nn.Module) or not isinstance(head, nn.Sequential):
            return None
        if not is_settled(backbone):
            return None
        settled = [is_settled(module) for module in head]
        skipped = settled.index(False) if False in settled else len(settled)
        stored: dict[str, list[Tensor]] = {}
        for index in torch.arange(len(data)).split(_BATCH):
            with torch.no_grad():
                features = dict(backbone(normalize(data.images[index].to(device))))
                for module in list(head)[:skipped]:
                    features["out"] = module(features["out"])
            for name, value in features.items():
                stored.setdefault(name, []).append(value)
            size = sum(value[0].nbytes for value in features.values()) * len(data)
            if size > LIMIT:
                logger.info("%s: frozen features are not kept, being %d MB", data.name, size >> 20)
                return None
        layer = f"classifier.{skipped}" if skipped else "the classifier"
        logger.info(
            "%s: all in front of %s is frozen, so its results for %d pictures are kept (%.0f MB)",
            *(data.name, layer, len(data), size / 2**20),
        )
        return cls(model, skipped, {name: torch.cat(parts) for name, parts in stored.items()})

    @contextmanager
    def in_place(self, index: Tensor) -> Iterator[None]:
        """Inside the block the model starts from the stored features of these pictures."""
        backbone, head = self.model.backbone, self.model.classifier
        chosen = index.to(next(iter(self.stored.values())).device)
        self.model.backbone = _Stored({name: v[chosen] for name, v in self.stored.items()})
        if self.skipped:
            self.model.classifier = nn.Sequential(*list(head)[self.skipped :])
        try:
            yield
        finally:
            self.model.backbone, self.model.classifier = backbone, head


class _Stored(nn.Module):
    def __init__(self, features: dict[str, Tensor]) -> None:
        super().__init__()
        self.features = features

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return self.features


def is_settled(module: nn.Module) -> bool:
    """Whether a module in its present mode gives the same for the same picture in every step."""
    if any(parameter.requires_grad for parameter in module.parameters()):
        return False
    return not any(
        child.training and (isinstance(child, _BatchNorm) or _drops(child))
        for child in module.modules()
    )


def _drops(module: nn.Module) -> bool:
    return isinstance(module, _DropoutNd) and module.p > 0
