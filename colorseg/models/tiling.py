"""Logits of images of any size, tile by tile."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from colorseg.ops._geometry import pair

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
    where it takes longer than 2 s.

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
    tiles, overlaps = pair("tile", tile), pair("overlap", overlap)
    for size, shared in zip(tiles, overlaps, strict=True):
        if not 0 <= shared < size:
            raise ValueError(f"overlap must be from 0 to below tile, got {shared} for {size}")
    images = image if image.dim() == 4 else image[None]
    axes = [
        _windows(length, size, shared, images)
        for length, size, shared in zip(images.shape[2:], tiles, overlaps, strict=True)
    ]
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        result = _blend(model, images, *axes)
    finally:
        for module in training:
            module.training = True
    return result if image.dim() == 4 else result[0]


Window = tuple[slice, Tensor]  # of one axis, and the weight of each of its pixels


def _windows(length: int, size: int, overlap: int, like: Tensor) -> list[Window]:
    """Windows of ``size`` that cover an axis, whose weights add up to 1 at every pixel."""
    step, size = size - overlap, min(size, length)
    starts = [*range(0, length - size, step), length - size]
    steps = torch.arange(1, size + 1, dtype=torch.float64)
    ramp = torch.minimum(steps, steps.flip(0)).clamp(max=overlap + 1)
    total = torch.zeros(length, dtype=torch.float64)
    for start in starts:
        total[start : start + size] += ramp
    dtype = like.dtype if like.is_floating_point() else torch.float32
    windows = [slice(start, start + size) for start in starts]
    return [(w, (ramp / total[w]).to(like.device, dtype)) for w in windows]


@torch.no_grad()
def _blend(model: nn.Module, images: Tensor, rows: list[Window], columns: list[Window]) -> Tensor:
    from tqdm import tqdm

    result: Tensor | None = None
    grid: Any = itertools.product(rows, columns)
    for (y, of_row), (x, of_column) in tqdm(
        grid, "tiles", len(rows) * len(columns), leave=False, delay=QUIET_S
    ):
        part = images[:, :, y, x]
        logits = model(part)
        logits = logits["out"] if isinstance(logits, dict) else logits
        if logits.dim() != 4 or logits.shape[2:] != part.shape[2:]:
            raise ValueError(
                f"the model makes {tuple(logits.shape)} of a tile {tuple(part.shape)}; tiles need "
                "logits (N, K, H, W) at the size of the tile"
            )
        if result is None:
            result = logits.new_zeros((*logits.shape[:2], *images.shape[2:]))
        result[:, :, y, x] += logits * (of_row[:, None] * of_column)
    assert result is not None
    return result
