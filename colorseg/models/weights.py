"""Weight files: safetensors whose metadata names the network and palette; state dicts are read."""

import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from colorseg._files import load_torch, write_atomically
from colorseg.nn.optimized import require_original
from colorseg.palette import Palette

# names of weights that come with the package and their networks, see weights/README.md
SHIPPED = {
    "horse24": ("PoolUpsampleNet", "ConvTransposeNet", "UNet"),
    "general": ("UNet",),
}
ARGUMENTS = ("kernel", "num_filters", "num_colors", "num_in_channels")


class StoredWeights:
    """The content of a weights file: tensors, and what else it names."""

    def __init__(
        self,
        path: Path,
        tensors: dict[str, Tensor],
        palette: Palette | None = None,
        grey: str = "mean",
        dilation: int = 1,
        output_stride: int | None = None,
    ) -> None:
        self.path, self.tensors, self.palette, self.grey = path, tensors, palette, grey
        self.dilation, self.output_stride = dilation, output_stride

    def check_arguments(self, given: dict[str, Any]) -> dict[str, int]:
        """The network's arguments as the file has them; ValueError if ``given`` contradicts."""
        fixed = _arguments_of(self.tensors, self.path) | {"dilation": self.dilation}
        for name, value in given.items():
            if value is not None and value != fixed[name]:
                raise ValueError(
                    f"{self.path} holds weights for {name}={fixed[name]}, "
                    f"but {name}={value!r} was passed; leave it out"
                )
        if self.palette is not None:
            _check_palette(self.palette, fixed["num_colors"], self.path)
        return fixed

    def load_into(self, model: nn.Module) -> None:
        """Copy the tensors into ``model``; ValueError lists the keys and shapes that do not fit."""
        expected = model.state_dict()
        missing, extra = (
            expected.keys() - self.tensors.keys(),
            self.tensors.keys() - expected.keys(),
        )
        wrong = {
            k
            for k in expected.keys() & self.tensors.keys()
            if expected[k].shape != self.tensors[k].shape
        }
        if missing or extra or wrong:
            parts = {"missing": missing, "unknown": extra, "of another shape": wrong}
            listed = "; ".join(
                f"{what}: {', '.join(sorted(keys))}" for what, keys in parts.items() if keys
            )
            raise ValueError(
                f"{self.path} does not hold the weights of a {type(model).__name__} ({listed})"
            )
        model.load_state_dict(self.tensors)


def _arguments_of(tensors: dict[str, Tensor], path: Path) -> dict[str, int]:
    first, last = (
        tensors.get(name, torch.empty(0)) for name in ("module1.0.weight", "module_last.weight")
    )
    if first.dim() != 4 or last.dim() != 4:
        raise ValueError(
            f"{path} does not hold the weights of a colorseg network: it needs "
            "module1.0.weight and module_last.weight, of 4 dimensions each"
        )
    sizes = (first.shape[2], first.shape[0], last.shape[0], first.shape[1])
    return dict(zip(ARGUMENTS, sizes, strict=True))


def _check_palette(palette: Palette, num_colors: int, path: Path) -> None:
    if len(palette) != num_colors:
        raise ValueError(
            f"{path}: a palette of {len(palette)} colors does not fit a network of {num_colors}"
        )


def save_weights(
    model: nn.Module,
    path: str | Path,
    palette: Palette | None = None,
    grey: str | None = None,
    classes: Sequence[str] | None = None,
) -> None:
    """Write ``model`` to a safetensors file, at once or not at all.

    Args:
        model: one of the networks, or any other module; of one that ``torch.compile`` returned,
            the module inside.
        path: of the file.
        palette: the colors its logits stand for; ``model.palette`` if None.
        grey: how input was made from RGB; ``model.grey`` if None.
        classes: names of the classes its logits stand for; ``model.classes`` if None.

    Raises:
        ValueError: the palette has not one color per logit; the model is one optimised for
            inference.
        OSError: the file cannot be written; what was there before is still there.
    """
    from safetensors.torch import save

    path, model = Path(path), uncompiled(model)
    require_original(model, "save")
    palette = palette or getattr(model, "palette", None)
    metadata = {
        "network": type(model).__name__,
        "grey": str(grey or getattr(model, "grey", "mean")),
        "dilation": str(getattr(model, "dilation", 1)),
    }
    if hasattr(model, "output_stride"):
        metadata["output_stride"] = str(model.output_stride)
    classes = classes or getattr(model, "classes", None)
    if isinstance(classes, list | tuple):  # other modules call other things so
        metadata["classes"] = json.dumps(classes)
    if palette is not None:
        _check_palette(palette, getattr(model, "num_colors", len(palette)), path)
        metadata["palette"] = json.dumps({"name": palette.name, "rgb": palette.colors.tolist()})
    # clones, because safetensors refuses tensors that share memory, as tied weights do
    layout = torch.contiguous_format
    tensors = {k: v.clone(memory_format=layout) for k, v in model.state_dict().items()}
    write_atomically(path, save(tensors, metadata))


def uncompiled(model: nn.Module) -> nn.Module:
    """The module inside of one that ``torch.compile`` returned; others as they are."""
    inside: nn.Module = getattr(model, "_orig_mod", model)
    return inside


def load_weights(path: str | Path, network: str) -> StoredWeights:
    """Read a weights file for the class ``network``; never runs code from it.

    Args:
        path: of the file, or one of ``SHIPPED``.
        network: name of the class.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, foreign, or of another network.
    """
    path = _shipped(str(path), network) if str(path) in SHIPPED else Path(path)
    if not path.is_file():
        names = [name for name, networks in SHIPPED.items() if network in networks] or ["coco"]
        raise FileNotFoundError(
            f"there is no weights file {path}; pass the path of a .safetensors or .pth file, or "
            f"one of the names {', '.join(names)}"
        )
    if path.suffix == ".safetensors":
        return _load_safetensors(path, network)
    try:
        tensors = load_torch(path)
        return StoredWeights(path, {str(k): _tensor(v) for k, v in dict(tensors).items()})
    except Exception as error:
        cause = (str(error) or type(error).__name__).splitlines()[0]
        if "Unsupported global" in str(error):
            cause = "it holds more than tensors, such as a whole model; save model.state_dict()"
        raise ValueError(
            f"{path} is not a state dict that can be loaded safely: {cause}"
        ) from error


def metadata_of(path: str | Path) -> dict[str, str]:
    """All that a .safetensors file says of itself; nothing of other files."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(Path(path), "pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError):
        return {}  # load_weights says what is wrong with it


def _shipped(name: str, network: str) -> Path:
    if network not in SHIPPED[name]:
        raise FileNotFoundError(
            f"there are no weights {name} of a {network}, but of {', '.join(SHIPPED[name])}"
        )
    return Path(
        str(resources.files("colorseg.models") / "weights" / f"{name}-{network}.safetensors")
    )


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
        dilation = int(metadata.get("dilation", 1))
        stride = int(metadata["output_stride"]) if "output_stride" in metadata else None
        palette = None
        if "palette" in metadata:
            stored = json.loads(metadata["palette"])
            palette = Palette(torch.tensor(stored["rgb"]), str(stored["name"]))
    except (SafetensorError, OSError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} is not a readable colorseg weights file: {error}") from error
    if metadata.get("network", network) != network:
        raise ValueError(f"{path} holds weights of a {metadata['network']}, not of a {network}")
    return StoredWeights(path, tensors, palette, metadata.get("grey", "mean"), dilation, stride)
