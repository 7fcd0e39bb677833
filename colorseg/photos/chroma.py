"""Brightness of a photograph joined with colors of a smaller picture of it."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

# Y, Cb and Cr of R, G and B, all of full range: ITU-R BT.601 as in JFIF 1.02
_YCC = torch.tensor(
    [
        [0.299, 0.587, 0.114],
        [-0.168735892, -0.331264108, 0.5],
        [0.5, -0.418687589, -0.081312411],
    ]
)
_RGB = torch.tensor([[1.0, 0.0, 1.402], [1.0, -0.344136286, -0.714136286], [1.0, 1.772, 0.0]])
ROWS = 256  # of the photograph that are joined at a time, which bounds memory
RADIUS, SMOOTHNESS = 2, 1e-4  # of the guided filter, in pixels of the small picture


def luma(rgb: Tensor) -> Tensor:
    """Y (1, H, W) of RGB (3, H, W), in the same range."""
    return torch.einsum("c,chw->hw", _YCC[0].to(rgb), rgb)[None]


def chroma(rgb: Tensor) -> Tensor:
    """Cb and Cr (2, H, W), centered on 0, of RGB (3, H, W)."""
    return torch.einsum("dc,chw->dhw", _YCC[1:].to(rgb), rgb)


def join(y: Tensor, colors: Tensor) -> Tensor:
    """RGB (3, H, W) in [0, 1] of luma (1, H, W) and chroma (2, H, W).

    Colors that are out of gamut are paled until they are in it, which keeps the luma.
    """
    offset = torch.einsum("cd,dhw->chw", _RGB[:, 1:].to(colors), colors)
    room = torch.where(offset > 0, 1 - y, y)  # of each channel up or down to its end
    fits = (room / offset.abs().clamp_min(1e-6)).amin(0, keepdim=True).clamp(0, 1)
    return (y + offset * fits).clamp(0, 1)


class Enlarged:
    """The chroma of a small picture at every row of a photograph.

    Args:
        small: (2, h, w).
        guide: the photograph's luma at that size, (1, h, w): then chroma is a local line in luma,
            so that its edges are the photograph's (He, Sun, Tang, "Guided Image Filtering", 2010,
            and "Fast Guided Filter", 2015).  None: bilinear.
        size: height and width of the photograph.
    """

    def __init__(self, small: Tensor, guide: Tensor | None, size: tuple[int, int]) -> None:
        self.size, self.guided = size, guide is not None
        self._maps = small if guide is None else _lines(small, guide)  # (2, ...) or (4, ...)

    def rows(self, first: int, y: Tensor) -> Tensor:
        """Chroma (2, n, W) of the rows from ``first`` on, whose luma is ``y`` (1, n, W)."""
        height, width = self.size
        at = torch.arange(first, first + y.shape[1], dtype=torch.float64)
        maps = _between(self._maps, (at + 0.5) * self._maps.shape[1] / height - 0.5)
        maps = F.interpolate(maps[None], (y.shape[1], width), mode="bilinear", align_corners=False)[
            0
        ]
        return maps[:2] * y + maps[2:] if self.guided else maps


class Successive:
    """Chroma of a photograph that comes in parts, (2, n, W) each, and is asked for in order."""

    def __init__(self, parts: Iterator[Tensor]) -> None:
        self._parts, self._waiting = parts, next(parts)

    def rows(self, first: int, y: Tensor) -> Tensor:
        """Chroma (2, n, W) of the next rows, as many as luma ``y`` (1, n, W) has."""
        while self._waiting.shape[1] < y.shape[1]:
            self._waiting = torch.cat([self._waiting, next(self._parts)], 1)
        rows, self._waiting = self._waiting[:, : y.shape[1]], self._waiting[:, y.shape[1] :]
        return rows


def _between(maps: Tensor, places: Tensor) -> Tensor:
    """Rows (C, n, w) of maps (C, h, w) at fractional places, linearly between whole ones."""
    places = places.clamp(0, maps.shape[1] - 1)
    below = places.floor().long().clamp_max(maps.shape[1] - 1)
    above = (below + 1).clamp_max(maps.shape[1] - 1)
    share = (places - below).to(maps)[:, None]
    return maps[:, below] * (1 - share) + maps[:, above] * share


def _lines(small: Tensor, guide: Tensor) -> Tensor:
    """Slopes and intercepts, (4, h, w), of small = slope * guide + intercept around each pixel."""

    def mean(maps: Tensor) -> Tensor:
        padded = F.pad(maps[None], [RADIUS] * 4, mode="replicate")
        return F.avg_pool2d(padded, 2 * RADIUS + 1, stride=1)[0]

    center, colors = mean(guide), mean(small)
    covariance = mean(guide * small) - center * colors
    variance = mean(guide.square()) - center.square()
    slope = covariance / (variance + SMOOTHNESS)
    return torch.cat([mean(slope), mean(colors - slope * center)])
