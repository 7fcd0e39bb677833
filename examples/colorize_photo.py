"""Color a photograph with the weights in the package: grey, colored and original side by side.

Without arguments: some pictures of the embedded sample that no training has seen.
"""

import argparse
import sys

import numpy as np
from PIL import Image

import colorseg
from colorseg.data import load
from colorseg.photos import read_photo, save_picture
from colorseg.training.command import guarded


def parse() -> argparse.Namespace:
    """The settings."""
    parser = argparse.ArgumentParser(description="Color a photograph.")
    add = parser.add_argument
    add("photo", nargs="?", help="a picture of any size (default: pictures of the sample)")
    add("--vividness", type=float, default=1.0, help="factor of the colors")
    add("--out", default="colored.png", help="where to write (default: colored.png)")
    return parser.parse_args()


def compared(rgb: np.ndarray, vividness: float) -> np.ndarray:
    """Grey, colored and original beside one another, (H, 3 W, 3) uint8, of (H, W, 3) uint8."""
    grey = colorseg.colorize(rgb, "general", vividness=0)
    colored = colorseg.colorize(rgb, "general", vividness=vividness)
    return np.hstack([grey, colored, rgb])


def main() -> None:
    """Color the photograph, or eight pictures of the sample."""
    options = parse()
    if options.photo:
        picture = Image.fromarray(compared(read_photo(options.photo).rgb, options.vividness))
    else:
        _, sample = load("sample")
        tiles = sample.images[:: len(sample) // 8][:8].permute(0, 2, 3, 1).numpy()
        rows = np.vstack([compared(tile, options.vividness) for tile in tiles])
        small = Image.fromarray(rows)
        picture = small.resize((4 * small.width, 4 * small.height), Image.Resampling.NEAREST)
    save_picture(picture, options.out)
    print(f"{options.out}: grey, colored, original")


if __name__ == "__main__":
    sys.exit(guarded(main, "use a smaller photograph"))
