"""Photographs of any size: read, colorized, segmented, written."""

from colorseg.photos.colorizing import colorize
from colorseg.photos.quality import color_quality
from colorseg.photos.reading import Photo, read_photo
from colorseg.photos.segmenting import overlay, segment, segment_labels
from colorseg.photos.writing import save_picture

__all__ = [
    "Photo",
    "color_quality",
    "colorize",
    "overlay",
    "read_photo",
    "save_picture",
    "segment",
    "segment_labels",
]
