"""Generated pictures of flowers with exact masks: an example that runs without any download.

A scene has a textured ground, grass, blurred lights, stems, leaves in front of and behind one to
four flowers, shadows, and a light of some color from some side.  It depends on the seed alone.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.random import Generator

from colorseg.data.segmentation_set import SegmentationSet

CLASSES = ("background", "flower")
FINER = 2  # painted at this multiple of the size, then averaged
_GROUNDS = ((38, 62, 24), (70, 96, 38), (88, 70, 46), (52, 74, 66), (120, 112, 62), (30, 38, 28))
_PETALS = (
    (246, 206, 40), (245, 243, 236), (236, 120, 160), (150, 70, 180), (208, 40, 44), (244, 140, 40),
    (92, 98, 214),
)  # fmt: skip
_CENTERS = ((238, 160, 20), (90, 58, 26), (232, 214, 70), (120, 30, 30))


def load_scenes(
    size: int = 96, train: int = 120, val: int = 30, seed: int = 0
) -> tuple[SegmentationSet, SegmentationSet]:
    """Scenes to train and to validate on; no two are alike.

    Args:
        size: height and width.
        train: number of scenes to train on.
        val: number of scenes to validate on.
        seed: decides what is in them.
    """
    return _scenes(size, train, seed, 0, "train"), _scenes(size, val, seed, 1, "validation")


def scene(size: int, rng: Generator) -> tuple[np.ndarray, np.ndarray]:
    """One scene: (size, size, 3) uint8 pixels, and (size, size) uint8 with 1 where a flower is."""
    canvas = _Canvas(size * FINER, rng)
    canvas.grass()
    canvas.lights()
    flowers = [canvas.place_flower() for _ in range(rng.integers(1, 5))]
    for _ in range(rng.integers(3, 9)):
        canvas.leaf()
    for flower in flowers:
        canvas.stem(flower)
    for flower in flowers:
        canvas.flower(flower)
    if rng.random() < 0.4:
        canvas.leaf()
    return canvas.finish(size)


def _scenes(size: int, number: int, seed: int, part: int, name: str) -> SegmentationSet:
    drawn = [scene(size, np.random.default_rng((seed, part, i))) for i in range(number)]
    pixels, masks = (torch.from_numpy(np.stack(each)) for each in zip(*drawn, strict=True))
    return SegmentationSet(
        pixels.permute(0, 3, 1, 2).contiguous(), masks, CLASSES, f"scenes/{name}"
    )


class _Canvas:
    """A picture that is being painted; x and y run over [0, 1], y downwards."""

    def __init__(self, size: int, rng: Generator) -> None:
        self.rng, self.size = rng, size
        middle = (np.arange(size, dtype=np.float32) + 0.5) / size
        self.y, self.x = np.meshgrid(middle, middle, indexing="ij")
        self.mask = np.zeros((size, size), bool)
        dark, light = (self._color(_GROUNDS) for _ in range(2))
        amount = self.noise(int(rng.integers(2, 7)), 4)[..., None]
        self.rgb = dark + (light - dark) * amount

    def noise(self, cells: int, octaves: int) -> np.ndarray:
        """Smooth noise in [0, 1], (size, size)."""
        total = np.zeros((self.size, self.size), np.float32)
        for octave in range(octaves):
            side = cells * 2**octave + 1
            grid = self.rng.random((side, side), np.float32)
            for _ in range(2):  # linear between the values, one direction and then the other
                place = np.linspace(0, side - 1, self.size, dtype=np.float32)[:, None]
                before = np.minimum(place[:, 0].astype(int), side - 2)
                grid = (grid[before] + (place - before[:, None]) * np.diff(grid, axis=0)[before]).T
            total += grid / 2**octave
        return (total - total.min()) / (total.max() - total.min())

    def paint(self, cover: np.ndarray, color: np.ndarray) -> None:
        """Mix in a color (3,) or (size, size, 3) where ``cover``, in [0, 1], says so."""
        self.rgb += cover[..., None] * (color - self.rgb)

    def grass(self) -> None:
        """Thin bent blades."""
        for _ in range(self.rng.integers(0, 40)):
            foot, bend, lean = self.rng.uniform(-0.1, 1.1), *self.rng.uniform(-0.4, 0.4, 2)
            top, width = self.rng.uniform(0, 0.8), self.rng.uniform(0.002, 0.012)
            up = np.clip(1 - self.y, 0, 1)
            away = np.abs(self.x - foot - lean * up - bend * up**2)
            blade = (away < width * (1 - up * top)) & (self.y > top)
            self.paint(blade * np.float32(0.8), self._green())

    def lights(self) -> None:
        """Things far behind, out of focus; in colors of flowers too, so that color misleads."""
        for _ in range(self.rng.integers(0, 9)):
            x, y = self.rng.random(2)
            radius, soft = self.rng.uniform(0.02, 0.1), self.rng.uniform(0.02, 0.08)
            away = np.hypot(self.x - x, self.y - y)
            cover = _step((radius + soft - away) / (2 * soft)) * self.rng.uniform(0.3, 0.8)
            self.paint(cover, self._color(_PETALS if self.rng.random() < 0.6 else _GROUNDS) * 0.8)

    def leaf(self) -> None:
        """A pointed oval with a rib and veins; what it hides of a flower leaves the mask."""
        x, y = self.rng.random(2)
        along, across = self._turned(x, y, self.rng.uniform(0, math.tau))
        length, width = self.rng.uniform(0.12, 0.4), self.rng.uniform(0.02, 0.08)
        u = along / length
        edge = width * np.clip(1 - u**2, 0, 1) ** self.rng.uniform(0.7, 1.2)
        inside = np.abs(across) < edge
        veins = 0.06 * np.cos((along + np.abs(across)) * self.rng.uniform(150, 260))
        shade = 0.85 + veins + 0.3 * np.sign(across) * across / width
        shade = np.where(np.abs(across) < 0.06 * width, 1.25, shade)
        self.paint(inside.astype(np.float32), self._green() * shade[..., None])
        self.mask &= ~inside

    def place_flower(self) -> tuple[float, float, float]:
        """Centre and radius."""
        x, y = self.rng.uniform(0.1, 0.9, 2)
        return x, y, self.rng.uniform(0.1, 0.36)

    def stem(self, flower: tuple[float, float, float]) -> None:
        """From the flower down to the edge."""
        x, y, radius = flower
        down = np.clip(self.y - y, 0, 1)
        away = np.abs(self.x - x - self.rng.uniform(-0.5, 0.5) * down**2)
        stem = (away < 0.06 * radius + 0.004) & (self.y > y)
        self.paint(stem.astype(np.float32), self._green())

    def flower(self, flower: tuple[float, float, float]) -> None:
        """Petals in one or two layers around a centre, and the shadow that they throw."""
        x, y, radius = flower
        turn, squash = self.rng.uniform(0, math.tau), self.rng.uniform(0.55, 1)
        along, across = self._turned(x, y, turn)
        across = across / squash
        away, angle = np.hypot(along, across) / radius, np.arctan2(across, along)
        shadow = np.hypot(self.x - x - 0.03, (self.y - y - 0.05) / squash) / radius
        self.paint(0.45 * _step((1.3 - shadow) / 0.8), np.zeros(3, np.float32))
        number = int(self.rng.choice([5, 5, 6, 6, 8, 13, 18]))
        color = self._color(_PETALS)
        inner = color * self.rng.uniform(0.6, 1.05, 3).astype(np.float32)
        for layer in range(self.rng.integers(1, 3)):
            nearer, turned = away / (1 - 0.3 * layer), angle + layer * math.pi / number
            self._petals(nearer, turned, number, (color, inner))
        self._center(away, angle, self.rng.uniform(0.15, 0.34))

    def _petals(
        self,
        away: np.ndarray,
        angle: np.ndarray,
        number: int,
        colors: tuple[np.ndarray, np.ndarray],  # at the tips, and inside
    ) -> None:
        color, inner = colors
        depth, power = self.rng.uniform(0.25, 0.6), self.rng.uniform(0.5, 1.3)
        which = np.floor(angle * number / math.tau + 0.5).astype(int) % number
        lengths = self.rng.uniform(0.85, 1, number).astype(np.float32)[which]
        wave = np.abs(np.cos(angle * number / 2)) ** power  # 1 along a petal, 0 between two
        edge = lengths * (1 - depth + depth * wave)
        inside = away < edge
        ray = np.clip(away / edge, 0, 1)[..., None]
        veins = 1 + 0.05 * np.cos(angle * number * 5)[..., None]
        crease = (0.72 + 0.28 * wave)[..., None]
        tint = self.rng.uniform(0.88, 1.05, number).astype(np.float32)[which][..., None]
        shade = veins * crease * tint
        self.paint(inside.astype(np.float32), (inner + (color - inner) * ray) * shade)
        self.mask |= inside

    def _center(self, away: np.ndarray, angle: np.ndarray, size: float) -> None:
        inside = away < size * (1 + 0.05 * np.cos(9 * angle))
        dots = 0.8 + 0.4 * self.noise(24, 1)
        dome = 1.1 - 0.5 * (away / size) ** 2
        self.paint(inside.astype(np.float32), self._color(_CENTERS) * (dots * dome)[..., None])
        self.mask |= inside

    def finish(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Light, the camera's noise, and both at the size asked for."""
        side = self.rng.uniform(0, math.tau)
        slope = (self.x - 0.5) * math.cos(side) + (self.y - 0.5) * math.sin(side)
        light = 1 + self.rng.uniform(0, 0.8) * slope + 0.4 * (self.noise(3, 2) - 0.5)
        tint = self.rng.uniform(0.6, 1.25) * self.rng.uniform(0.9, 1.1, 3)
        blocks = (size, FINER, size, FINER)
        rgb = (self.rgb * light[..., None] * tint).reshape(*blocks, 3).mean((1, 3))
        rgb += self.rng.normal(0, self.rng.uniform(1, 7), rgb.shape)
        cover = self.mask.reshape(blocks).mean((1, 3))
        return np.clip(np.round(rgb), 0, 255).astype(np.uint8), (cover >= 0.5).astype(np.uint8)

    def _turned(self, x: float, y: float, angle: float) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates along and across a direction, from a point."""
        right, down = self.x - x, self.y - y
        c, s = math.cos(angle), math.sin(angle)
        return right * c + down * s, down * c - right * s

    def _color(self, choices: tuple[tuple[int, int, int], ...]) -> np.ndarray:
        chosen = np.array(choices[self.rng.integers(len(choices))], np.float32)
        return chosen * self.rng.uniform(0.85, 1.1, 3).astype(np.float32)

    def _green(self) -> np.ndarray:
        return self._color(((58, 110, 40), (92, 140, 58), (44, 82, 44), (120, 140, 60)))


def _step(value: np.ndarray) -> np.ndarray:
    """0 below 0, 1 above 1, smooth between."""
    value = np.clip(value, 0, 1)
    return value * value * (3 - 2 * value)
