"""``colorize``: colors for a photograph of any size from a network that has seen small ones."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from colorseg.models import load_network, predict_tiled
from colorseg.palette import Palette
from colorseg.photos.chroma import ROWS, Enlarged, chroma, join, luma
from colorseg.photos.reading import MAX_PIXELS, Photo, Picture, read_photo
from colorseg.training.color import palette_of
from colorseg.training.modes import eval_mode

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
        side: pixels of the shorter side that the network sees, 8 or more.  None: all of them, in
            overlapping tiles of 512, whose colors are blended; a network then sees no further than
            its field of view in the photograph itself.
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
    if side is None:
        colors = _tiled(network, photo, decode, temperature)
        return photo.image(_joined(photo, Enlarged(chroma(colors) * vividness, None, photo.size)))
    small = _reduced(photo, side)
    colors = predicted(network, small.mean(0, keepdim=True), decode, temperature)
    enlarged = Enlarged(chroma(colors) * vividness, luma(small) if edges else None, photo.size)
    return photo.image(_joined(photo, enlarged))


def network_of(model: Model) -> nn.Module:
    """The network itself, or one with weights of that name or path."""
    network = load_network(model) if isinstance(model, str | Path) else model
    channels = getattr(network, "num_in_channels", 1)
    if channels != 1:
        raise ValueError(
            f"colorize needs a network for one grey channel, this one takes {channels}; "
            "networks of super-resolution are another task"
        )
    return network


def predicted(network: nn.Module, grey: Tensor, decode: str, temperature: float) -> Tensor:
    """RGB (3, h, w) in [0, 1] from grey values (1, h, w) in [0, 1)."""
    parameter = next(network.parameters(), grey)
    palette = palette_of(network)
    with torch.inference_mode(), eval_mode(network):
        logits = network(grey[None].to(parameter.device, parameter.dtype))[0].float().cpu()
    return decoded(logits, palette, decode, temperature)


class Colors(nn.Module):
    """A network with its decoding: grey values (N, 1, h, w) in, RGB (N, 3, h, w) out."""

    def __init__(self, network: nn.Module, decode: str, temperature: float) -> None:
        super().__init__()
        self.network, self.decode, self.temperature = network, decode, temperature

    def forward(self, grey: Tensor) -> Tensor:
        """The colors of each picture."""
        colors = [predicted(self.network, g, self.decode, self.temperature) for g in grey]
        return torch.stack(colors)


def _tiled(network: nn.Module, photo: Photo, decode: str, temperature: float) -> Tensor:
    """RGB (3, H, W) of the photograph's own grey values."""
    grey = torch.from_numpy(photo.rgb.mean(2, dtype=np.float32) / 256)
    return predict_tiled(Colors(network, decode, temperature), grey[None], TILE, OVERLAP)


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


def _reduced(photo: Photo, side: int) -> Tensor:
    """(3, h, w) float32, value / 256: means of the photograph's pixels, never enlarged."""
    height, width = photo.size
    scale = min(1.0, side / min(height, width), LONGEST * side / max(height, width))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    reduced = Image.fromarray(photo.rgb).resize(size[::-1], Image.Resampling.BOX)
    return torch.from_numpy(np.array(reduced)).permute(2, 0, 1).float() / 256


def _joined(photo: Photo, enlarged: Enlarged) -> np.ndarray:
    """(H, W, 3) uint8."""
    result = np.empty_like(photo.rgb)
    for first in range(0, photo.size[0], ROWS):
        rows = torch.from_numpy(photo.rgb[first : first + ROWS]).permute(2, 0, 1).float() / 255
        y = luma(rows)
        rgb = join(y, enlarged.rows(first, y))
        result[first : first + ROWS] = (rgb * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return result
