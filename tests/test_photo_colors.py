"""How good colors are, and brightness and color of a photograph apart."""

import math

import numpy as np
import pytest
import torch
from photo_cases import GREEN, Constant, noise

from colorseg.data import ImageSet
from colorseg.palette import Palette
from colorseg.photos import color_quality
from colorseg.photos.chroma import Enlarged, chroma, join, luma


def test_color_quality_of_a_network_that_knows_the_answer():
    pictures = ImageSet(torch.from_numpy(noise(16, 16)).permute(2, 0, 1)[None], "x")
    labels = GREEN.quantize(pictures.images, torch.int64)

    class Oracle(Constant):
        def forward(self, grey):
            return torch.nn.functional.one_hot(labels, 2).permute(0, 3, 1, 2).float() * 50

    right, wrong = (color_quality(model, pictures) for model in (Oracle(), Constant()))
    assert right["top5"] == 1
    assert right["psnr"] == pytest.approx(right["psnr palette"], abs=1e-3)
    assert wrong["psnr"] < right["psnr"]
    for name in ("psnr grey", "psnr palette", "colorfulness truth"):
        assert wrong[name] == right[name]


def test_top5_counts_the_five_likeliest():
    """A network that ranks eight colors alike everywhere, and pixels of each of them."""
    palette = Palette(torch.linspace(0, 1, 8)[:, None].expand(8, 3), "greys")

    class Ranking(Constant):
        def forward(self, grey):
            return -torch.arange(8.0)[None, :, None, None].expand(len(grey), 8, *grey.shape[2:])

    pixels = (palette.colors.T * 255).round().byte().reshape(1, 3, 2, 4)
    assert color_quality(Ranking(palette), ImageSet(pixels, "x"))["top5"] == 5 / 8


def test_color_quality_of_grey_pictures():
    """One of them has no error, and must not make the mean of all infinite."""
    grey, colored = np.zeros((16, 16, 3), np.uint8), noise(16, 16)
    several, alone, without = (
        color_quality(Constant(), ImageSet(torch.from_numpy(np.stack(p)).permute(0, 3, 1, 2), "x"))
        for p in ([grey, colored], [colored], [grey])
    )
    assert several["psnr grey"] == pytest.approx(alone["psnr grey"] + 10 * math.log10(2), abs=1e-4)
    assert without["psnr grey"] == math.inf


def test_luma_and_chroma_join_to_the_picture():
    rgb = torch.rand(3, 20, 30)
    assert torch.allclose(join(luma(rgb), chroma(rgb)), rgb, atol=1e-5)


def test_colors_out_of_gamut_are_paled():
    y = torch.full((1, 1, 1), 0.9)
    rgb = join(y, torch.tensor([0.4, -0.3])[:, None, None])
    assert rgb.min() >= 0
    assert rgb.max() <= 1
    assert torch.allclose(luma(rgb), y, atol=1e-5)


@pytest.mark.parametrize("guided", [True, False])
def test_enlarged_chroma(guided):
    small, guide = torch.rand(2, 6, 8), torch.rand(1, 6, 8)
    enlarged = Enlarged(torch.full((2, 6, 8), 0.25), guide if guided else None, (50, 70))
    assert torch.allclose(enlarged.rows(10, torch.rand(1, 7, 70)), torch.tensor(0.25), atol=1e-4)
    if not guided:  # rows at a time are those of the whole
        parts = Enlarged(small, None, (50, 70))
        rows = torch.cat([parts.rows(i, torch.empty(1, 10, 70)) for i in range(0, 50, 10)], 1)
        want = torch.nn.functional.interpolate(small[None], (50, 70), mode="bilinear")[0]
        assert torch.allclose(rows, want, atol=1e-5)


def test_guided_colors_follow_edges():
    """Two halves; colors at an eighth of the size change where the photograph's brightness does."""
    y = torch.zeros(1, 64, 64)
    y[:, :, 27:] = 1
    small_y = torch.nn.functional.avg_pool2d(y, 8)
    small = torch.cat([small_y, -small_y]) * 0.2
    errors = []
    for guide in (small_y, None):
        got = Enlarged(small, guide, (64, 64)).rows(0, y)
        errors.append((got - torch.cat([y, -y]) * 0.2).abs().mean().item())
    assert errors[0] < errors[1] / 3
