"""``colorize``: colors for a photograph of any size from a network that has seen small ones."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from colorseg.models import load_network
from colorseg.models.tiling import tiled_rows
from colorseg.palette import Palette
from colorseg.photos.casting import cast_for
from colorseg.photos.chroma import ROWS, Enlarged, Successive, chroma, join, luma
from colorseg.photos.reading import MAX_PIXELS, Photo, Picture, read_photo
from colorseg.training.color import palette_of

DECODINGS = ("argmax", "mean", "annealed")
TEMPERATURE = 0.38  # of "annealed", as in Zhang, Isola, Efros, "Colorful Image Colorization", 2016
SIDE = 64  # of the shorter side as the network sees it
TILE, OVERLAP = 512, 64
LONGEST = 8  # times SIDE, of the longer side

Model = nn.Module | str | Path


def colorize(
    image: Picture,
    model: Model = "general",
    *,
    decode: str = "annealed",
    temperature: float = TEMPERATURE,
    vividness: float = 1.0,
    side: int | None = SIDE,
    edges: bool = True,
    max_pixels: int = MAX_PIXELS,
) -> Image.Image:
    """A photograph in the colors that a network sees in it.

    The network sees the photograph's grey values, made so small that its shorter side has ``side``
    pixels; its colors are enlarged and joined with the luma of the photograph, which stays as sharp
    as it was.

    Args:
        image: what ``read_photo`` takes; colors in it are not looked at.
        model: a network of ``colorseg.models`` for one grey channel, or what ``load_network``
            takes: a name such as ``"general"``, or the path of a weights file.
        decode: how probabilities of palette colors become a color: ``"argmax"``, the likeliest;
            ``"mean"``, which is pale where the network is unsure; ``"annealed"``, the mean of
            probabilities sharpened by ``temperature``.
        temperature: above 0; towards 0 it is argmax, 1 is the mean.
        vividness: factor of the colors; 0 is grey, 1 as predicted.
        side: pixels of the shorter side that the network sees, 8 or more; what is larger than 512
            in overlapping tiles, whose colors are blended.  None: all of them, which bounds memory
            too; a network then sees no further than its field of view in the photograph itself.
        edges: enlarge colors along the photograph's edges (guided filter) instead of bilinearly.
        max_pixels: larger photographs are refused.

    Returns:
        An RGB image of the photograph's size; RGBA where that was partly transparent.

    Raises:
        FileNotFoundError, OSError, ValueError, TypeError: as ``read_photo``; an option is none of
            those above; the model is for other inputs.
    """
    _check(decode, temperature, vividness, side)
    photo = read_photo(image, max_pixels)
    network = network_of(model)
    seen = photo.rgb if side is None else _reduced(photo, side)
    pixels = torch.from_numpy(seen).permute(2, 0, 1)[None]
    colors = Chroma(network, decode, temperature, vividness)
    rows = (part[0] for part in tiled_rows(colors, pixels, TILE, OVERLAP))
    if side is None:
        return photo.image(_joined(photo, Successive(rows)))
    guide = luma(pixels[0].float() / 256) if edges else None
    return photo.image(_joined(photo, Enlarged(torch.cat([*rows], 1), guide, photo.size)))


def network_of(model: Model) -> nn.Module:
    """The network itself, or one with weights of that name or path."""
    network = load_network(model) if isinstance(model, str | Path) else model
    channels = getattr(network, "num_in_channels", 1)
    if channels != 1:
        raise ValueError(
            f"colorize needs a network for one grey channel, this one takes {channels}; "
            "networks of super-resolution are another task"
        )
    grey = getattr(network, "grey", "mean")
    if grey != "mean":
        raise ValueError(
            f"this network was trained on grey values made by {grey!r}, and colorize makes them by "
            "the mean of the channels; give it one that was trained on means"
        )
    return network


class Chroma(nn.Module):
    """The colors a network sees: pixels (N, 3, h, w) uint8 in, chroma (N, 2, h, w) out."""

    def __init__(
        self, network: nn.Module, decode: str, temperature: float, vividness: float
    ) -> None:
        super().__init__()
        self.network, self.palette = network, palette_of(network)
        self.decode, self.temperature, self.vividness = decode, temperature, vividness

    def forward(self, pixels: Tensor) -> Tensor:
        """The colors of pictures whose own are not looked at, but for their mean."""
        grey = pixels.float().mean(1, keepdim=True) / 256
        logits = self.network(cast_for(self.network, grey)).float().cpu()
        colors = [
            chroma(decoded(one, self.palette, self.decode, self.temperature)) for one in logits
        ]
        return torch.stack(colors) * self.vividness


def decoded(logits: Tensor, palette: Palette, decode: str, temperature: float) -> Tensor:
    """Colors (3, h, w) of logits (K, h, w), see ``colorize``."""
    if len(logits) != len(palette):
        raise ValueError(
            f"the network has {len(logits)} colors, its palette {len(palette)}; set model.palette"
        )
    if decode == "argmax":
        shares = F.one_hot(logits.argmax(0), len(palette)).permute(2, 0, 1).float()
    else:
        shares = (logits / (temperature if decode == "annealed" else 1)).softmax(0)
    return torch.einsum("khw,kc->chw", shares, palette.colors)


def _check(decode: str, temperature: float, vividness: float, side: int | None) -> None:
    if decode not in DECODINGS:
        raise ValueError(f"decode must be one of {', '.join(DECODINGS)}, got {decode!r}")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    if not 0 <= vividness <= 10:
        raise ValueError(f"vividness must be in 0 .. 10, got {vividness}")
    if side is not None and side < 8:
        raise ValueError(f"side must be at least 8, or None for all pixels, got {side}")


def _reduced(photo: Photo, side: int) -> np.ndarray:
    """(h, w, 3) uint8: means of the photograph's pixels, never enlarged."""
    height, width = photo.size
    scale = min(1.0, side / min(height, width), LONGEST * side / max(height, width))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    return np.array(Image.fromarray(photo.rgb).resize(size[::-1], Image.Resampling.BOX))


def _joined(photo: Photo, colors: Enlarged | Successive) -> np.ndarray:
    """(H, W, 3) uint8."""
    result = np.empty_like(photo.rgb)
    for first in range(0, photo.size[0], ROWS):
        rows = torch.from_numpy(photo.rgb[first : first + ROWS]).permute(2, 0, 1).float() / 255
        y = luma(rows)
        rgb = join(y, colors.rows(first, y))
        result[first : first + ROWS] = (rgb * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return result
