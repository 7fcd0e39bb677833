"""Pictures written at once or not at all."""

import io
import os
from pathlib import Path

from PIL import Image

from colorseg._files import write_atomically

FORMATS = {
    ".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP",
    ".tif": "TIFF", ".tiff": "TIFF",
}  # fmt: skip
OPTIONS = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"quality": 95}}


def save_picture(image: Image.Image, path: str | os.PathLike[str]) -> None:
    """Write a picture in the format of its suffix; JPEG and WebP with quality 95.

    Raises:
        ValueError: another suffix.
        OSError: it cannot be written; what was there before is still there.
    """
    target = Path(path)
    kind = FORMATS.get(target.suffix.lower())
    if kind is None:
        known = ", ".join(FORMATS)
        raise ValueError(f"{target} must end in one of {known}")
    if kind == "JPEG" and image.mode != "RGB":
        image = _on_white(image)
    content = io.BytesIO()
    image.save(content, kind, **OPTIONS.get(kind, {}))
    write_atomically(target, content.getvalue())


def _on_white(image: Image.Image) -> Image.Image:
    """What JPEG can hold: no transparency."""
    if "A" not in image.getbands():
        return image.convert("RGB")
    ground = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")
