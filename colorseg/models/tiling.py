"""Logits of images of any size, tile by tile."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from colorseg.ops._geometry import pair

STRIDE = 32  # the largest of common networks
QUIET_S = 2.0  # a progress bar for less is only noise


def predict_tiled(
    model: nn.Module, image: Tensor, tile: int | Sequence[int], overlap: int | Sequence[int]
) -> Tensor:
    """Logits of an image that is too large for one call, from overlapping tiles.

    The model runs in eval mode, without gradients, on one tile at a time, so beside the image and
    the result only one tile's maps are in memory.  Where tiles overlap their logits are blended,
    with weights that fall linearly towards a tile's edges and add up to 1.  A tile's model sees no
    further than the tile (and pools over it alone), so logits near its edges differ from those of
    the whole image; a larger overlap and larger tiles make that less.  A progress bar appears
    on a terminal where it takes longer than 2 s.

    Args:
        model: takes (N, C, H, W) and returns logits (N, K, H, W), or a dict with them as "out".
        image: (C, H, W) or (N, C, H, W), on the model's device.
        tile: height and width of a tile, or one number for both; an axis of the image that is
            shorter is not tiled.
        overlap: pixels that neighbors share at least, likewise; less than ``tile``.

    Returns:
        (K, H, W) or (N, K, H, W).

    Raises:
        ValueError: the sizes make no sense, or the model's result has not the size of the tile.
    """
    if image.dim() not in (3, 4) or image.numel() == 0:
        raise ValueError(f"image must be (C, H, W) or (N, C, H, W), got {tuple(image.shape)}")
    images = image if image.dim() == 4 else image[None]
    result: Tensor | None = None
    first = 0
    for rows in tiled_rows(model, images, tile, overlap):
        if result is None:
            result = rows.new_empty((*rows.shape[:2], *images.shape[2:]))
        result[:, :, first : first + rows.shape[2]] = rows
        first += rows.shape[2]
    assert result is not None
    return result if image.dim() == 4 else result[0]


def tiled_rows(
    model: nn.Module, images: Tensor, tile: int | Sequence[int], overlap: int | Sequence[int]
) -> Iterator[Tensor]:
    """The rows of what :func:`predict_tiled` makes of images (N, C, H, W), from top to bottom.

    Each part, (N, K, n, W), comes as soon as no other tile changes it, so that the whole result
    need not be in memory.  The model stays in eval mode until the last one.
    """
    tiles, overlaps = pair("tile", tile), pair("overlap", overlap)
    for size, shared in zip(tiles, overlaps, strict=True):
        if not 0 <= shared < size:
            raise ValueError(f"overlap must be from 0 to below tile, got {shared} for {size}")
    axes = [
        _windows(length, size, shared, images)
        for length, size, shared in zip(images.shape[2:], tiles, overlaps, strict=True)
    ]
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield from _complete(_strips(model, images, *axes), axes[0])
    finally:
        for module in training:
            module.training = True


Window = tuple[slice, Tensor]  # of one axis, and the weight of each of its pixels


def _windows(length: int, size: int, overlap: int, like: Tensor) -> list[Window]:
    """Windows of ``size`` that cover an axis, whose weights add up to 1 at every pixel.

    The last one is a little smaller where it would else start beside the grid that strides keep to.
    """
    step = size - overlap
    grid = math.gcd(step, STRIDE)
    left = max(0, length - size)
    starts = [*range(0, left, step), -(-left // grid) * grid]
    windows = [slice(start, min(start + size, length)) for start in starts]
    total, ramps = torch.zeros(length, dtype=torch.float64), []
    for window in windows:
        steps = torch.arange(1, window.stop - window.start + 1, dtype=torch.float64)
        ramps.append(torch.minimum(steps, steps.flip(0)).clamp(max=overlap + 1))
        total[window] += ramps[-1]
    dtype = like.dtype if like.is_floating_point() else torch.float32
    return [
        (window, (ramp / total[window]).to(like.device, dtype))
        for window, ramp in zip(windows, ramps, strict=True)
    ]


def _complete(strips: Iterator[Tensor], rows: list[Window]) -> Iterator[Tensor]:
    """Rows that are final, of strips that overlap."""
    waiting: Tensor | None = None  # rows that the next strip adds to
    starts = [window.start for window, _ in rows[1:]] + [rows[-1][0].stop]
    for strip, (window, _), start in zip(strips, rows, starts, strict=True):
        if waiting is not None:
            strip[:, :, : waiting.shape[2]] += waiting
        yield strip[:, :, : start - window.start]
        waiting = strip[:, :, start - window.start :]


@torch.no_grad()
def _strips(
    model: nn.Module, images: Tensor, rows: list[Window], columns: list[Window]
) -> Iterator[Tensor]:
    """Per row of tiles the sum of their weighted logits, (N, K, h, W)."""
    from tqdm import tqdm

    with tqdm(
        desc="tiles", total=len(rows) * len(columns), leave=False, delay=QUIET_S, disable=None
    ) as bar:
        for y, of_row in rows:
            strip: Tensor | None = None
            for x, of_column in columns:
                logits = _logits(model, images[:, :, y, x])
                if strip is None:
                    size = (*logits.shape[:3], images.shape[3])
                    strip = logits.new_zeros(size)
                strip[..., x] += logits * (of_row[:, None] * of_column)
                bar.update()
            assert strip is not None
            yield strip


def _logits(model: nn.Module, part: Tensor) -> Tensor:
    result: Any = model(part)
    logits: Tensor = result["out"] if isinstance(result, dict) else result
    if logits.dim() != 4 or logits.shape[2:] != part.shape[2:]:
        raise ValueError(
            f"the model makes {tuple(logits.shape)} of a tile {tuple(part.shape)}; tiles need "
            "logits (N, K, H, W) at the size of the tile"
        )
    return logits
