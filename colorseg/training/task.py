"""A set of pictures as a classification task: grey pictures in, palette colors out."""

from typing import Any

import torch
from torch import Tensor, nn

from colorseg import ops, reference
from colorseg.data import ImageSet
from colorseg.palette import Palette


class Task:
    """Batches of one set of pictures, and the loss on them.

    The operator quantizes RGB targets itself; the reference gets labels that are made once, as
    plain PyTorch programs do.

    Raises:
        ValueError: the set is empty.
    """

    def __init__(
        self, images: ImageSet, palette: Palette, device: torch.device, plain: bool = False
    ) -> None:
        if not len(images):
            raise ValueError(f"the set {images.name} has no pictures; choose other data")
        self.images = images
        self.palette = palette
        self.device = device
        self.targets = palette.quantize(images.images) if plain else images.images
        self._operator = reference.color_cross_entropy if plain else ops.color_cross_entropy
        self._colors = None if plain else palette.colors.to(device)

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Grey pictures ``(n, 1, H, W)`` and their targets, on the device."""
        grey = self.images.grey(index).to(self.device)
        return grey, self.targets[index].to(self.device)

    def loss(self, logits: Tensor, targets: Tensor, *, return_stats: bool = False) -> Any:
        """Mean cross-entropy; with ``return_stats`` also argmax, number correct, number valid."""
        return self._operator(logits, targets, self._colors, return_stats=return_stats)


def palette_of(model: nn.Module) -> Palette:
    """The palette that the model's weights belong to, horse24 for a model without one."""
    palette = getattr(model, "palette", None)
    return Palette.horse24() if palette is None else palette


def usable_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        ValueError: it is not there.
    """
    try:
        return torch.empty(0, device=name).device
    except (AssertionError, RuntimeError) as error:  # AssertionError: torch without CUDA
        reason = str(error).split("\n")[0].rstrip(".")
        raise ValueError(f"device {name} cannot be used: {reason}; use --device cpu") from None
