"""Weight files: safetensors whose metadata fixes the network and its palette; plain state dicts are read too."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from colorseg.palette import Palette

if TYPE_CHECKING:
    from colorseg.models.color import ColorNetwork

ARGUMENTS = ("kernel", "num_filters", "num_colors", "num_in_channels")


class StoredWeights:
    """The content of a weights file: tensors, the arguments that they imply, and the palette if it is named."""

    def __init__(self, path: Path, tensors: dict[str, Tensor], palette: Palette | None) -> None:
        self.path, self.tensors, self.palette = path, tensors, palette

    def check_arguments(self, given: dict[str, Any]) -> dict[str, int]:
        """The network's arguments as the file fixes them; ValueError if one of ``given`` contradicts."""
        fixed = _arguments_of(self.tensors, self.path)
        for name, value in given.items():
            if value is not None and value != fixed[name]:
                raise ValueError(f"{self.path} holds weights for {name}={fixed[name]}, but {name}={value!r} was passed; leave it out")
        return fixed

    def load_into(self, model: nn.Module) -> None:
        """Copy the tensors into ``model``; ValueError that lists keys and shapes that do not fit."""
        expected = model.state_dict()
        missing, extra = expected.keys() - self.tensors.keys(), self.tensors.keys() - expected.keys()
        wrong = {k for k in expected.keys() & self.tensors.keys() if expected[k].shape != self.tensors[k].shape}
        if missing or extra or wrong:
            parts = {"missing": missing, "unknown": extra, "of another shape": wrong}
            listed = "; ".join(f"{what}: {', '.join(sorted(keys))}" for what, keys in parts.items() if keys)
            raise ValueError(f"{self.path} does not hold the weights of a {type(model).__name__} ({listed})")
        model.load_state_dict(self.tensors)


def _arguments_of(tensors: dict[str, Tensor], path: Path) -> dict[str, int]:
    try:
        first, last = tensors["module1.0.weight"], tensors["module_last.weight"]
        return dict(zip(ARGUMENTS, (first.shape[2], first.shape[0], last.shape[0], first.shape[1]), strict=True))
    except (KeyError, IndexError) as error:
        raise ValueError(f"{path} does not hold the weights of a colorseg network: no {error}") from error


def save_weights(model: "ColorNetwork", path: str | Path, palette: Palette | None = None, grey: str = "mean") -> None:
    """Write ``model`` to a safetensors file, at once or not at all.

    Args:
        model: one of the networks.
        path: of the file.
        palette: the colors its logits stand for; ``model.palette`` if None.
        grey: how input was made from RGB: "mean" is the mean of the channels of uint8 / 256.
    """
    from safetensors.torch import save_file

    palette = palette or model.palette
    metadata = {"network": type(model).__name__, "grey": grey}
    if palette is not None:
        metadata["palette"] = json.dumps({"name": palette.name, "rgb": palette.colors.tolist()})
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, temporary, metadata)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_weights(path: str | Path, network: str) -> StoredWeights:
    """Read a weights file for the class ``network``; never runs code from it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, foreign, or of another network.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no weights file {path}; pass the path of a .safetensors or .pth file")
    if path.suffix == ".safetensors":
        return _load_safetensors(path, network)
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
        return StoredWeights(path, {str(k): _tensor(v) for k, v in dict(tensors).items()}, None)
    except Exception as error:
        raise ValueError(f"{path} is not a state dict that can be loaded safely: {str(error).splitlines()[0]}") from error


def _tensor(value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"it holds a {type(value).__name__} where tensors belong")
    return value


def _load_safetensors(path: Path, network: str) -> StoredWeights:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
        stored = json.loads(metadata["palette"]) if "palette" in metadata else None
        palette = Palette(torch.tensor(stored["rgb"]), str(stored["name"])) if stored else None
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a readable colorseg weights file: {error}") from error
    if metadata.get("network", network) != network:
        raise ValueError(f"{path} holds weights of a {metadata['network']}, not of a {network}")
    return StoredWeights(path, tensors, palette)
