"""``nearest_color``: the palette index of every pixel."""

import torch
from torch import Tensor

from colorseg.ops._registration import check_usable, register_fake


def nearest_color(rgb: Tensor, palette: Tensor, *, dtype: torch.dtype = torch.int64) -> Tensor:
    """Index of the palette color nearest to each pixel, by Euclidean distance in RGB.

    Equivalent to :func:`colorseg.reference.nearest_color`.

    Args:
        rgb: (N, 3, H, W), uint8 (divided by 256) or floating point in the palette's unit.
        palette: (K, 3), floating point in [0, 1].
        dtype: integer dtype of the result; uint8 holds up to 256 colors.

    Returns:
        (N, H, W) in ``dtype``; a tie goes to the lowest index.

    Raises:
        RuntimeError: shapes do not fit, or the palette is empty.
        TypeError, ValueError: a dtype does not fit.
    """
    check_usable("nearest_color", rgb)
    check_rgb("rgb", rgb)
    check_palette(palette)
    if dtype.is_floating_point or dtype.is_complex or dtype == torch.bool:
        raise TypeError(f"dtype must be an integer dtype, got {dtype}")
    if palette.shape[0] - 1 > torch.iinfo(dtype).max:
        raise ValueError(f"{dtype} cannot number {palette.shape[0]} colors; pass torch.int64")
    return torch.ops.colorseg.nearest_color.default(rgb, palette).to(dtype)


def check_rgb(name: str, rgb: Tensor) -> None:
    """Raise unless the dtype is uint8 or floating point."""
    if rgb.dtype != torch.uint8 and not rgb.is_floating_point():
        raise TypeError(f"{name} must be uint8 or floating point, got {rgb.dtype}")


def check_palette(palette: Tensor) -> None:
    """Raise unless it is a tensor of a floating point dtype."""
    if not isinstance(palette, Tensor):
        kind = type(palette).__name__
        raise TypeError(
            f"palette must be a tensor (K, 3), got {kind}: pass "
            + ("palette.colors" if hasattr(palette, "colors") else "torch.as_tensor(palette)")
        )
    if not palette.is_floating_point():
        raise TypeError(
            f"palette must be floating point, got {palette.dtype}; divide 8-bit colors by 255"
        )


@register_fake("nearest_color")
def _(rgb, palette):  # type: ignore[no-untyped-def]
    return rgb.new_empty(rgb.shape[0], *rgb.shape[2:], dtype=torch.int64)
