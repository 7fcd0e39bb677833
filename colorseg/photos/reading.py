"""Photographs as people have them: any mode, 16 bits, turned by EXIF, with a color profile."""

import contextlib
import io
import os
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from colorseg._files import PICTURES

Picture: TypeAlias = "str | os.PathLike[str] | Image.Image | np.ndarray | Photo"

MAX_PIXELS = 200_000_000  # what is larger is taken for a decompression bomb
ORIENTATION = 0x0112  # the EXIF tag
_limit = threading.Lock()  # Pillow's own limit is global


@dataclass(frozen=True)
class Photo:
    """Pixels as they are meant to be seen, in sRGB.

    Args:
        rgb: (H, W, 3) uint8.
        alpha: (H, W) uint8, None where everything is opaque.
        name: for messages.
    """

    rgb: np.ndarray
    alpha: np.ndarray | None
    name: str

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.rgb.shape[0], self.rgb.shape[1]

    def image(self, rgb: np.ndarray) -> Image.Image:
        """A picture of those pixels (H, W, 3) uint8, as transparent as this photo."""
        if self.alpha is None:
            return Image.fromarray(rgb)
        return Image.fromarray(np.dstack([rgb, self.alpha]))


def read_photo(picture: Picture, max_pixels: int = MAX_PIXELS) -> Photo:
    """Read a photograph.

    Args:
        picture: a path, of a format in ``PICTURES``; a Pillow image; or an array (H, W),
            (H, W, 1), (H, W, 3) or (H, W, 4), uint8, uint16, or floating point in [0, 1]; a
            ``Photo`` is returned as it is.
        max_pixels: larger ones are refused before they are decoded.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be read.
        ValueError: it is no image, cut short, empty or too large.
        TypeError: neither path, image nor array of these.
    """
    if isinstance(picture, Photo):
        return picture
    if isinstance(picture, np.ndarray):
        return _from_array(picture, max_pixels)
    if isinstance(picture, Image.Image):
        name = str(getattr(picture, "filename", "") or "the image")
        return _from_image(picture, name, max_pixels)
    if not isinstance(picture, str | os.PathLike):
        kind = type(picture).__name__
        raise TypeError(f"a picture must be a path, a Pillow image or a numpy array, got {kind}")
    path = Path(picture)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name the pictures in it")
    content = path.read_bytes()
    with _unlimited():
        try:
            with Image.open(io.BytesIO(content), formats=PICTURES) as image:
                return _from_image(image, str(path), max_pixels)
        except UnidentifiedImageError:
            known = ", ".join(PICTURES)
            raise ValueError(f"{path} is no image in a known format: {known}") from None


@contextlib.contextmanager
def _unlimited() -> Iterator[None]:
    """Without Pillow's own limit of pixels, in whose place ours is checked."""
    with _limit, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _check_size(width: int, height: int, name: str, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ValueError(
            f"{name} has {width} x {height} = {width * height:,} pixels, more than the "
            f"{max_pixels:,} allowed; raise max_pixels (--max-pixels) if you trust it"
        )
    if width * height == 0:
        raise ValueError(f"{name} is empty: {width} x {height} pixels")


def _from_image(image: Image.Image, name: str, max_pixels: int) -> Photo:
    _check_size(*image.size, name, max_pixels)
    try:
        image.load()
        profile = image.info.get("icc_profile")
        turned = image
        if image.getexif().get(ORIENTATION, 1) != 1:  # else it would be copied
            turned = ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError) as error:
        # Pillow tells damage in all of these
        raise ValueError(f"{name} is damaged or cut short: {error}") from None
    if turned.mode.startswith(("I", "F")):  # 16 bits, or more than an image needs
        return _from_array(_deep(turned, name), max_pixels, name)
    alpha = None
    if "A" in turned.getbands() or "transparency" in turned.info:
        alpha = _unless_opaque(np.array(turned.convert("RGBA").getchannel("A")))
    return Photo(np.array(_to_srgb(turned, profile)), alpha, name)


def _unless_opaque(alpha: np.ndarray) -> np.ndarray | None:
    return None if alpha.min() == 255 else alpha


def _deep(image: Image.Image, name: str) -> np.ndarray:
    """The values of a grey image of 16 bits, or of numbers, as an array that _from_array takes."""
    values = np.array(image)
    if image.mode.startswith("I;16"):
        return values.astype(np.uint16)
    if image.mode == "I":
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > 65535:
            raise ValueError(f"{name} has values {low} to {high}; those of 16 bits can be read")
        return values.astype(np.uint16)
    return values.astype(np.float64)


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """RGB of 8 bits; a profile that cannot be used is taken for sRGB."""
    if profile and image.mode in ("L", "RGB", "CMYK"):
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            target = ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
            if converted is not None:
                return converted
        except (ImageCms.PyCMSError, OSError, ValueError):
            pass
    if image.mode == "LA":
        image = image.getchannel("L")
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_array(values: np.ndarray, max_pixels: int, name: str = "the array") -> Photo:
    values = values[..., None] if values.ndim == 2 else values
    if values.ndim != 3 or values.shape[2] not in (1, 3, 4):
        raise ValueError(
            f"{name} must be (H, W), or (H, W, channels) with 1, 3 or 4 channels, got shape "
            f"{values.shape}"
        )
    _check_size(values.shape[1], values.shape[0], name, max_pixels)
    if values.dtype == np.uint16:
        bytes_ = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    elif values.dtype == np.uint8:
        bytes_ = values
    elif np.issubdtype(values.dtype, np.floating):
        if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
            raise ValueError(f"{name} must have values in [0, 1] where they are floating point")
        bytes_ = (values * 255).round().astype(np.uint8)
    else:
        raise TypeError(f"{name} must be uint8, uint16 or floating point, got {values.dtype}")
    alpha = _unless_opaque(bytes_[..., 3].copy()) if bytes_.shape[2] == 4 else None
    colors = bytes_[..., :3] if bytes_.shape[2] > 1 else bytes_.repeat(3, 2)
    return Photo(np.ascontiguousarray(colors), alpha, name)
