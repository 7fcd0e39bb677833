"""Pictures to color as a classification task: grey or coarse pictures in, palette colors out."""

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from colorseg import ops, reference
from colorseg.data import ImageSet, PhotoSet
from colorseg.data.images import Index
from colorseg.models import NETWORKS, ColorNetwork, save_weights
from colorseg.palette import Palette
from colorseg.training.config import Config
from colorseg.training.history import Epoch
from colorseg.training.modes import eval_mode
from colorseg.training.seeding import seed_everything
from colorseg.training.task import require_channels


class ColorTask:
    """Batches of one set of pictures, and the loss on them.

    The operator quantizes RGB targets itself; the reference gets labels that are made once, as
    plain PyTorch programs do.

    Args:
        images: the pictures.
        palette: of the targets.
        device: where the loss is computed.
        plain: use the reference.
        config: what changes the loss and the pictures in training; None to measure alone.

    Raises:
        TypeError: it is no ``ImageSet``.
        ValueError: it is empty.
    """

    row = Epoch
    smallest_batch = 1
    over_ranks = False
    why_no_graph: str | None = None

    def __init__(
        self, images: ImageSet, palette: Palette, device: torch.device, plain: bool = False,
        config: Config | None = None,
    ) -> None:  # fmt: skip
        if not isinstance(images, ImageSet):
            raise TypeError(
                f"a network that colorizes needs an ImageSet, got {type(images).__name__}; "
                "colorseg.data.load gives two"
            )
        if not len(images):
            raise ValueError(f"the set {images.name} has no pictures; choose other data")
        self.images = images
        self.name = images.name
        self.palette = palette
        self.device = device
        # on CUDA all pictures stay there, as bytes
        self._pictures = ImageSet(images.images.to(device), images.name)
        config = Config() if config is None else config
        soft = config.soft_neighbors > 0  # made of distances, which labels do not have
        labels = palette.quantize(images.images).to(device) if plain and not soft else None
        self.targets = self._pictures.images if labels is None else labels
        self._operator = reference.color_cross_entropy if plain else ops.color_cross_entropy
        self._colors = palette.colors.to(device) if labels is None else None
        if isinstance(images, PhotoSet):
            self.why_no_graph = "new squares are cut from the photographs outside of it"
        self._coarse = config.task == "super-resolution"
        self._flips = config.flips
        self._options: dict[str, Any] = {
            "label_smoothing": config.label_smoothing,
            "soft_neighbors": config.soft_neighbors,
            "soft_sigma": config.soft_sigma,
            "weight": _color_weights(images, palette, config.rebalance, device),
        }

    def __len__(self) -> int:
        return len(self.images)

    def sha256(self) -> str:
        """Hash of the pictures."""
        return self.images.sha256()

    def prepare(self, model: nn.Module) -> None:
        """Try the model on a picture."""
        self.pictures(model, torch.zeros(1, dtype=torch.long))

    def loss(self, model: nn.Module, index: Tensor) -> Tensor:
        """Mean cross-entropy, as the settings change it."""
        inputs, targets = self._drawn(index)
        if self._flips:
            mirrored = torch.rand(len(index), device=self.device) < 0.5
            inputs, targets = _flipped(inputs, mirrored), _flipped(targets, mirrored)
        loss: Any = self._operator(model(inputs), targets, self._colors, **self._options)
        return loss

    def measure(self, model: nn.Module, batch_size: int) -> dict[str, float]:
        """Plain ``loss`` and ``accuracy``, means over all pixels, and ``pixels``, their number."""
        loss, correct, pixels = 0.0, 0, 0
        with torch.no_grad(), eval_mode(model):
            for index in torch.arange(len(self)).split(batch_size):
                inputs, targets = self._batch(index)
                logits = self._logits(model, inputs)
                stats: Any = self._operator(logits, targets, self._colors, return_stats=True)
                mean, _, right, valid = stats
                loss += mean.item() * valid.item()  # weighted, because the last batch is smaller
                correct += right.item()
                pixels += valid.item()
        return {"loss": loss / pixels, "accuracy": correct / pixels, "pixels": pixels}

    def pictures(self, model: nn.Module, index: Tensor) -> list[Tensor]:
        """What the network sees, palette colors, and predicted ones."""
        inputs, _ = self._batch(index)
        with torch.no_grad(), eval_mode(model):
            predicted = self._logits(model, inputs).argmax(1).cpu()
        shown = (inputs.cpu() * 256).round().to(torch.uint8).expand(-1, 3, -1, -1)
        truth = self.palette.quantize(self.images.images[index])
        return [shown, self.palette.decode(truth), self.palette.decode(predicted)]

    def save(self, model: nn.Module, path: Path) -> None:
        """Weights and palette."""
        network = cast(ColorNetwork, model)  # or one of the user's, which works as well
        save_weights(network, path, self.palette)

    def _logits(self, model: nn.Module, inputs: Tensor) -> Tensor:
        logits: Tensor = model(inputs)
        count = len(self.palette)
        require_channels(
            logits, count, f"its palette has {count} colors; give it the one it was made for"
        )
        return logits

    def _batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Grey pictures ``(n, 1, H, W)``, or coarse ones ``(n, 3, H, W)``, and their targets."""
        return self._inputs(self._pictures, index), self.targets[index]

    def _drawn(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """A batch to train on: of photographs, other squares each time."""
        if not isinstance(self.images, PhotoSet):
            return self._batch(index)
        squares = self.images.squares(index)
        pictures = ImageSet(squares.to(self.device), self.name)
        if self._colors is not None:
            return self._inputs(pictures, slice(None)), pictures.images
        return self._inputs(pictures, slice(None)), self.palette.quantize(squares).to(self.device)

    def _inputs(self, pictures: ImageSet, index: Index) -> Tensor:
        return pictures.coarse(index) if self._coarse else pictures.grey(index)


def _flipped(pictures: Tensor, mirrored: Tensor) -> Tensor:
    """Those pictures (N, ..., W) mirrored, the others as they are."""
    return torch.where(mirrored.view(-1, *[1] * (pictures.dim() - 1)), pictures.flip(-1), pictures)


def _color_weights(
    images: ImageSet, palette: Palette, rebalance: float, device: torch.device
) -> Tensor | None:
    """(K,), see ``Config``."""
    if rebalance == 0:
        return None
    labels = palette.quantize(images.images).flatten()
    share = torch.bincount(labels, minlength=len(palette)) / labels.numel()
    weight = 1 / (rebalance * share + (1 - rebalance) / len(palette))
    weight[share == 0] = 0  # never a target; 1 / 0 where all weight is on frequency
    return (weight / (share * weight).sum()).float().to(device)


def new_network(config: Config) -> ColorNetwork:
    """The untrained network that a run's settings describe, with weights by its seed."""
    seed_everything(config.seed)
    palette = config.choose_palette()
    channels = 3 if config.task == "super-resolution" else 1
    model = NETWORKS[config.network](
        config.kernel, config.num_filters, len(palette), channels, dilation=config.dilation
    )
    model.palette = palette
    return model


def palette_of(model: nn.Module) -> Palette:
    """The palette that the model's weights belong to, horse24 for a model without one."""
    palette = getattr(model, "palette", None)
    return Palette.horse24() if palette is None else palette
