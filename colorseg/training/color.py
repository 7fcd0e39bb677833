"""Pictures to colorize as a classification task: grey pictures in, palette colors out."""

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from colorseg import ops, reference
from colorseg.data import ImageSet
from colorseg.models import NETWORKS, ColorNetwork, save_weights
from colorseg.palette import Palette
from colorseg.training.config import Config
from colorseg.training.history import Epoch
from colorseg.training.modes import eval_mode
from colorseg.training.seeding import seed_everything


class ColorTask:
    """Batches of one set of pictures, and the loss on them.

    The operator quantizes RGB targets itself; the reference gets labels that are made once, as
    plain PyTorch programs do.

    Raises:
        ValueError: the set is empty.
    """

    row = Epoch
    smallest_batch = 1
    why_no_graph: str | None = None

    def __init__(
        self, images: ImageSet, palette: Palette, device: torch.device, plain: bool = False
    ) -> None:
        if not len(images):
            raise ValueError(f"the set {images.name} has no pictures; choose other data")
        self.images = images
        self.name = images.name
        self.palette = palette
        self.device = device
        # on CUDA all pictures stay there, as bytes
        self._pictures = ImageSet(images.images.to(device), images.name)
        labels = palette.quantize(images.images).to(device) if plain else None
        self.targets = self._pictures.images if labels is None else labels
        self._operator = reference.color_cross_entropy if plain else ops.color_cross_entropy
        self._colors = None if plain else palette.colors.to(device)

    def __len__(self) -> int:
        return len(self.images)

    def sha256(self) -> str:
        """Hash of the pictures."""
        return self.images.sha256()

    def prepare(self, model: nn.Module) -> None:
        """Nothing to do."""

    def loss(self, model: nn.Module, index: Tensor) -> Tensor:
        """Mean cross-entropy."""
        grey, targets = self._batch(index)
        loss: Any = self._operator(model(grey), targets, self._colors)
        return loss

    def measure(self, model: nn.Module, batch_size: int) -> dict[str, float]:
        """``loss`` and ``accuracy``, means over all pixels, and ``pixels``, their number."""
        loss, correct, pixels = 0.0, 0, 0
        with torch.no_grad(), eval_mode(model):
            for index in torch.arange(len(self)).split(batch_size):
                grey, targets = self._batch(index)
                stats: Any = self._operator(model(grey), targets, self._colors, return_stats=True)
                mean, _, right, valid = stats
                loss += mean.item() * valid.item()  # weighted, because the last batch is smaller
                correct += right.item()
                pixels += valid.item()
        return {"loss": loss / pixels, "accuracy": correct / pixels, "pixels": pixels}

    def pictures(self, model: nn.Module, index: Tensor) -> list[Tensor]:
        """Grey pictures, palette colors, and predicted ones."""
        grey, _ = self._batch(index)
        with torch.no_grad(), eval_mode(model):
            predicted = model(grey).argmax(1).cpu()
        shown = (grey.cpu() * 256).round().to(torch.uint8).expand(-1, 3, -1, -1)
        truth = self.palette.quantize(self.images.images[index])
        return [shown, self.palette.decode(truth), self.palette.decode(predicted)]

    def save(self, model: nn.Module, path: Path) -> None:
        """Weights and palette."""
        network = cast(ColorNetwork, model)  # or one of the user's, which works as well
        save_weights(network, path, self.palette)

    def _batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Grey pictures ``(n, 1, H, W)`` and their targets, on the device."""
        return self._pictures.grey(index), self.targets[index]


def new_network(config: Config) -> ColorNetwork:
    """The untrained network that a run's settings describe, with weights by its seed."""
    seed_everything(config.seed)
    palette = config.choose_palette()
    model = NETWORKS[config.network](config.kernel, config.num_filters, len(palette))
    model.palette = palette
    return model


def palette_of(model: nn.Module) -> Palette:
    """The palette that the model's weights belong to, horse24 for a model without one."""
    palette = getattr(model, "palette", None)
    return Palette.horse24() if palette is None else palette
