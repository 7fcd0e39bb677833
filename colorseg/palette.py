"""The colors a colorization network chooses from: presets, k-means, files, encoding and decoding.

Pixels are compared with palette colors in RGB, both in [0, 1]; uint8 images count as value / 256,
palettes given in 8 bits as value / 255 (the two conventions of the assignment the networks
come from).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from colorseg._palette_files import read, write

# 8-bit colors, darkest first.  horse24: the k-means palette of the CIFAR-10 horses, read off
# published
# figures, so exact to 1/255.  sample24: Palette.fit of the embedded sample's training images.
PRESETS = {
    "horse24": (
        "0c0b0b 25201b 34352e 55321f 4a473c 545757 764d35 596835 716655 727674 a3693f 788949 "
        "8f7d63 5d8bb5 8f8d84 b5936f 9aaa64 a5a39a c7b689 9cbfdd bcbab5 ddcfb5 d7dbdd f4f5f4"
    ),
    "sample24": (
        "070303 2b150c 20273c 75140f 503417 2d3c5c 4f494a 3c4f74 a62e10 794a28 57627a a75024 "
        "896140 c26534 9a7354 a7856f c38150 e2764c ad9c94 cd9972 beb4af dfba96 d4cac5 f2eae4"
    ),
}
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
_MAX_COLORS = 256  # labels fit into uint8


@dataclass(frozen=True, eq=False)
class Palette:
    """K colors and their name; label k of an image stands for row k of ``colors``.

    Args:
        colors: (K, 3) floating-point RGB in [0, 1], K from 1 to 256; kept as a float32 copy.
        name: what reports and checkpoints call the palette.

    Raises:
        TypeError: ``colors`` is no floating-point tensor.
        ValueError: another shape, or a value that is not finite or not in [0, 1].
    """

    colors: Tensor
    name: str = "custom"

    def __post_init__(self) -> None:
        _check_colors(self.colors)
        copy = self.colors.detach().to("cpu", torch.float32, copy=True).contiguous()
        object.__setattr__(self, "colors", copy)

    def __len__(self) -> int:
        return len(self.colors)

    @classmethod
    def horse24(cls) -> Palette:
        """The 24 colors of the horse experiments, darkest first: 8-bit values / 255 in float32."""
        return cls._preset("horse24")

    @classmethod
    def sample24(cls) -> Palette:
        """24 colors fitted to the embedded sample, darkest first: 8-bit values / 255 in float32."""
        return cls._preset("sample24")

    @classmethod
    def named(cls, name: str | os.PathLike[str]) -> Palette:
        """A built-in palette by its name, or :meth:`load` of a path.

        Raises:
            ValueError: neither a built-in name nor a ``.json`` or ``.npy`` file.
        """
        if str(name) in PRESETS:
            return cls._preset(str(name))
        if Path(name).suffix not in (".json", ".npy"):
            known = ", ".join(PRESETS)
            raise ValueError(f"there is no palette {name}; choose {known}, or a .json or .npy file")
        return cls.load(name)

    @classmethod
    def _preset(cls, name: str) -> Palette:
        rgb8 = [list(bytes.fromhex(color)) for color in PRESETS[name].split()]
        return cls(torch.tensor(rgb8, dtype=torch.float32) / 255, name)

    @classmethod
    def fit(cls, images: Tensor, k: int, seed: int = 0, max_pixels: int = 200_000) -> Palette:
        """K-means of the pixels of ``images``, sorted from dark to light (BT.601 luma).

        Args:
            images: (N, 3, H, W) uint8 RGB; value / 256 is clustered.
            k: number of colors, 1 to 256, at most the number of different pixels.
            seed: of the choice of pixels and of k-means++; the same seed gives the same palette.
            max_pixels: that many pixels, drawn without replacement, if there are more.

        Raises:
            ImportError: scikit-learn is absent.
            ValueError, TypeError: images or numbers that cannot be clustered.
        """
        pixels = _draw_pixels(images, k, seed, max_pixels)
        centers = torch.from_numpy(_kmeans(pixels / 256.0, k, seed)).float().clamp(0, 1)
        order = (centers.double() @ torch.tensor(_LUMA, dtype=torch.float64)).argsort(stable=True)
        return cls(centers[order], f"kmeans{k}")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Palette:
        """A palette from ``.json`` or ``.npy``.

        JSON: an object with ``"rgb"``, K rows of three floats in [0, 1], or ``"rgb8"``, K rows of
        three integers out of 255, and optionally ``"name"``.  NPY: a plain (K, 3) float array in
        [0, 1].  Pickled arrays are refused, since loading one runs whatever code it holds.

        Raises:
            FileNotFoundError: no such file.
            ValueError: anything in it that is no palette.
        """
        colors, name = read(Path(path))
        try:
            return cls(torch.from_numpy(colors), name)
        except ValueError as error:
            raise ValueError(f"{path} holds no palette: {error}") from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write ``.npy`` (colors) or ``.json`` (name and colors); both load back bit for bit.

        The file appears whole or not at all: it is written beside its place and then moved there.

        Raises:
            ValueError: another suffix.
            FileNotFoundError: the folder does not exist.
        """
        write(Path(path), self.colors.numpy(), self.name)

    def quantize(self, rgb: Tensor, dtype: torch.dtype = torch.uint8) -> Tensor:
        """The label of every pixel: its nearest color, the lowest label on ties.

        Args:
            rgb: (N, 3, H, W), uint8 (value / 256 is compared) or floating point in [0, 1].
            dtype: torch.uint8 or torch.int64.

        Returns:
            (N, H, W) labels on the device of ``rgb``.
        """
        from colorseg import ops  # here, so that palettes work without the compiled operators

        return ops.nearest_color(rgb, self.colors.to(rgb.device), dtype=dtype)

    def decode(self, labels: Tensor) -> Tensor:
        """The image that labels stand for: (N, H, W) integers -> (N, 3, H, W) uint8 RGB.

        Raises:
            TypeError: labels that are no integers.
            ValueError: another number of dimensions, or a label outside the palette.
        """
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise TypeError(f"labels must be integers, got {labels.dtype}")
        if labels.dim() != 3:
            raise ValueError(f"labels must be (N, H, W), got shape {tuple(labels.shape)}")
        if labels.numel() and not 0 <= labels.min() <= labels.max() < len(self):
            found = f"{int(labels.min())} to {int(labels.max())}"
            raise ValueError(f"labels must be 0 to {len(self) - 1} for this palette, got {found}")
        rgb8 = (self.colors * 255).round().to(labels.device, torch.uint8)
        return rgb8[labels.long()].permute(0, 3, 1, 2).contiguous()


def _check_colors(colors: object) -> None:
    if not isinstance(colors, Tensor) or not colors.is_floating_point():
        kind = colors.dtype if isinstance(colors, Tensor) else type(colors).__name__
        raise TypeError(f"colors must be a float tensor in [0, 1], got {kind}; divide bytes by 255")
    if colors.dim() != 2 or colors.shape[1] != 3 or not 1 <= len(colors) <= _MAX_COLORS:
        shape = tuple(colors.shape)
        raise ValueError(f"colors must be (K, 3) with K from 1 to {_MAX_COLORS}, got {shape}")
    if not colors.isfinite().all():
        raise ValueError("colors must be finite, but some are NaN or infinite")
    if colors.min() < 0 or colors.max() > 1:
        low, high = float(colors.min()), float(colors.max())
        raise ValueError(f"colors must be in [0, 1], got {low:g} to {high:g}; divide bytes by 255")


def _draw_pixels(images: Tensor, k: int, seed: int, max_pixels: int) -> np.ndarray:
    """The pixels that k-means sees, (P, 3) uint8."""
    if not isinstance(images, Tensor) or images.dtype != torch.uint8:
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"images must be a uint8 tensor (N, 3, H, W), got {kind}")
    if images.dim() != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be (N, 3, H, W), got shape {tuple(images.shape)}")
    if not 1 <= k <= _MAX_COLORS:
        raise ValueError(f"k must be 1 to {_MAX_COLORS} colors, got {k}")
    if max_pixels < 1:
        raise ValueError(f"max_pixels must be positive, got {max_pixels}")
    pixels = images.cpu().permute(0, 2, 3, 1).reshape(-1, 3).numpy()
    if len(pixels) > max_pixels:
        pixels = pixels[np.random.RandomState(seed).choice(len(pixels), max_pixels, replace=False)]
    different = len(np.unique(pixels.astype(np.int32) @ np.array([65536, 256, 1])))
    if different < k:
        raise ValueError(f"{k} colors were asked of pixels that have only {different} different")
    return pixels


def _kmeans(points: np.ndarray, k: int, seed: int) -> np.ndarray:
    """Cluster centers, (k, 3) float64."""
    try:
        from sklearn.cluster import KMeans
        from threadpoolctl import threadpool_limits
    except ImportError as error:
        raise ImportError(
            "fitting a palette needs scikit-learn: pip install 'colorseg[palette]'"
        ) from error
    # several threads add their parts in any order, and the last bits would differ between runs
    with threadpool_limits(1):
        return KMeans(k, n_init=1, random_state=seed).fit(points).cluster_centers_
