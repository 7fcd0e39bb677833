"""Make the embedded sample of colorseg.data: sample.png and sample_tiles.json, bit for bit again.

    pip install -e . scikit-image && python tools/make_sample.py

(The pixels never change; the bytes of the PNG depend on the zlib inside Pillow.)

Crops of 32 x 32 pixels are cut from photographs at four scales.  In each photograph a rectangle
is set aside for validation: validation crops lie in it, training crops do not touch it, at any
scale, so the two parts share no pixel.  The photographs are those that the scikit-image wheel
contains and that are in the public domain or CC0 (colorseg/data/sample_sources.md).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from skimage import data

from colorseg.data.sample import N_TRAIN, N_VALIDATION, TILE, join

FOLDER = Path(__file__).parent.parent / "colorseg" / "data"
# photograph: the rectangle kept for validation (top, left, bottom, right), 17 to 19 % of it
VALIDATION = {
    "astronaut": (192, 192, 448, 384),
    "chelsea": (64, 256, 256, 384),
    "coffee": (160, 256, 384, 448),
    "rocket": (56, 384, 424, 512),
}
# scale: share of the crops; coarse scales show things, scale 1 mostly texture
SHARES = {4: 0.25, 3: 0.25, 2: 0.3, 1: 0.2}
STEP = 8  # pixels of the scaled photograph between neighboring candidates
MIN_DEVIATION = 12  # of the values of a crop in its most varied channel; below it is plain sky


class Tile(NamedTuple):
    """A crop: ``TILE`` x ``TILE`` pixels from (top, left) of a photograph scaled down."""

    photograph: str
    scale: int
    top: int
    left: int

    def rectangle(self) -> tuple[int, int, int, int]:
        """(top, left, bottom, right) in the photograph itself."""
        return (
            self.top * self.scale,
            self.left * self.scale,
            (self.top + TILE) * self.scale,
            (self.left + TILE) * self.scale,
        )


def shrink(pixels: np.ndarray, scale: int) -> np.ndarray:
    """Mean of scale x scale blocks in integers, halves upwards; an incomplete block is left out."""
    height, width = pixels.shape[0] // scale, pixels.shape[1] // scale
    blocks = pixels[: height * scale, : width * scale].reshape(height, scale, width, scale, 3)
    total = blocks.sum((1, 3), dtype=np.int64)
    return ((2 * total + scale**2) // (2 * scale**2)).astype(np.uint8)


def candidates(photograph: str, scale: int, scaled: np.ndarray) -> Iterator[tuple[Tile, bool]]:
    """Crops that show something, each with whether it is for validation."""
    top0, left0, bottom0, right0 = VALIDATION[photograph]
    for y in range(0, scaled.shape[0] - TILE + 1, STEP):
        for x in range(0, scaled.shape[1] - TILE + 1, STEP):
            crop = scaled[y : y + TILE, x : x + TILE]
            tile = Tile(photograph, scale, y, x)
            top, left, bottom, right = tile.rectangle()
            inside = top0 <= top and bottom <= bottom0 and left0 <= left and right <= right0
            outside = bottom <= top0 or bottom0 <= top or right <= left0 or right0 <= left
            if (inside or outside) and crop.reshape(-1, 3).std(0).max() >= MIN_DEVIATION:
                yield tile, inside


def choose(count: int, validation: bool, scaled: dict[tuple[str, int], np.ndarray]) -> list[Tile]:
    """``count`` crops, as many of each photograph, in random order."""
    random = np.random.RandomState(0)  # its stream is frozen, unlike default_rng's
    chosen: list[Tile] = []
    for photograph in VALIDATION:
        wanted = len(chosen) + count // len(VALIDATION)
        carried = 0.0  # where a scale has too few, the next finer one makes up for it
        for scale, share in SHARES.items():
            carried += share * count / len(VALIDATION)
            found = candidates(photograph, scale, scaled[photograph, scale])
            tiles = [tile for tile, inside in found if inside == validation]
            room = wanted - len(chosen) if scale == 1 else round(carried)
            order = random.permutation(len(tiles))[:room]
            chosen += [tiles[i] for i in order]
            carried -= len(order)
    assert len(chosen) == count, f"{len(chosen)} crops found, {count} wanted"
    return [chosen[i] for i in random.permutation(count)]


def main() -> None:
    """Write the sheet and the list of its tiles."""
    photographs = {name: getattr(data, name)() for name in VALIDATION}
    scaled = {(n, s): shrink(p, s) for n, p in photographs.items() for s in SHARES}
    tiles = choose(N_TRAIN, False, scaled) + choose(N_VALIDATION, True, scaled)
    crops = [scaled[t.photograph, t.scale][t.top :, t.left :][:TILE, :TILE] for t in tiles]
    Image.fromarray(join(np.stack(crops))).save(FOLDER / "sample.png", optimize=True)
    rows = ",\n".join(f" {json.dumps(tile)}" for tile in tiles)
    columns = json.dumps(Tile._fields)
    text = f'{{"columns": {columns},\n"train": {N_TRAIN},\n"tiles": [\n{rows}\n]}}\n'
    (FOLDER / "sample_tiles.json").write_text(text)


if __name__ == "__main__":
    main()
