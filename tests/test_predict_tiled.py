"""Tiled inference: exact where it can be, blended where it cannot, in bounded memory."""

import sys

import pytest
import torch
from conftest import assert_close
from torch import nn

from colorseg import models
from colorseg.models import predict_tiled, tiling


class Watched(nn.Module):
    """Remembers the shapes of its inputs and its mode."""

    def __init__(self, body):
        super().__init__()
        self.body, self.shapes = body, []

    def forward(self, x):
        self.shapes.append((*x.shape, self.training, torch.is_grad_enabled()))
        return self.body(x)


def pixelwise():
    return nn.Conv2d(3, 5, 1).double()


@pytest.mark.parametrize("size", [(8, 8), (17, 30), (3, 50), (41, 9)])
@pytest.mark.parametrize(("tile", "overlap"), [(8, 0), (8, 3), ((16, 7), (15, 0)), (64, 10)])
def test_pixelwise_models_are_exact(size, tile, overlap):
    """So every pixel is covered, once in weight."""
    model, image = pixelwise(), torch.randn(2, 3, *size, dtype=torch.float64)
    assert_close(predict_tiled(model, image, tile, overlap), model(image))


def test_tiles_start_where_strides_do():
    """Cells of 8 pixels are the same in all tiles, wherever the image ends."""
    cells = nn.Sequential(nn.Conv2d(3, 5, 8, stride=8), nn.Upsample(scale_factor=8)).double()
    image = torch.randn(1, 3, 56, 72, dtype=torch.float64)
    assert_close(predict_tiled(cells, image, 32, 16), cells(image))


def test_rows_come_one_after_the_other():
    model, image = pixelwise(), torch.randn(1, 3, 50, 20, dtype=torch.float64)
    watched = Watched(model)
    rows = tiling.tiled_rows(watched, image, (20, 8), (12, 2))
    first = next(rows)
    assert first.shape == (1, 5, 8, 20)  # what the second row of tiles does not reach
    assert len(watched.shapes) == 3
    parts = [first, *rows]
    assert [part.shape[2] for part in parts] == [8, 8, 8, 8, 18]
    assert_close(torch.cat(parts, 2), model(image))


def test_tiles_cover_the_image_in_eval_mode_without_gradients():
    model = Watched(pixelwise()).train()
    model.body.eval()
    y = predict_tiled(model, torch.randn(3, 20, 9, dtype=torch.float64), (8, 16), (2, 4))
    assert y.shape == (5, 20, 9)
    assert not y.requires_grad
    assert model.shapes == [(1, 3, 8, 9, False, False)] * 3
    assert model.training
    assert not model.body.training


def test_the_mode_comes_back_after_an_error():
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1)).train()
    with pytest.raises(ValueError, match=r"makes \(1, 3, 1, 1\) of a tile \(1, 3, 8, 8\)"):
        predict_tiled(model, torch.randn(3, 20, 9), 8, 0)
    assert model.training


def step_across(y, line):
    """How much the logits jump between two columns."""
    return (y[..., line] - y[..., line - 1]).abs().mean().item()


def test_overlap_takes_the_seams_away():
    """A model that puts a tile's mean into its logits jumps where tiles meet."""

    class Mean(nn.Module):
        def forward(self, x):
            return x.mean((2, 3), keepdim=True).expand_as(x)

    image = torch.linspace(0, 1, 64).expand(1, 1, 16, 64).contiguous()
    seams = [step_across(predict_tiled(Mean(), image, 16, n), 16) for n in (0, 4, 12)]
    assert seams[0] == pytest.approx(0.254, abs=0.001)  # of two tiles' means
    assert seams[0] > 4 * seams[1] > 4 * seams[2]


def test_deeplab_seams_are_small_and_get_smaller():
    """Measured: the largest jump at a seam, beside what the untiled logits do there."""
    torch.manual_seed(0)
    model = models.deeplabv3("resnet18", 2)
    with torch.no_grad():
        for _ in range(2):
            model(torch.rand(2, 3, 64, 64))  # statistics of such images
    image = torch.rand(3, 64, 128)
    whole = model.eval()(image[None])["out"][0]
    tiled = {n: predict_tiled(model, image, 64, n) for n in (0, 32)}
    error = {n: (y - whole).abs().mean().item() for n, y in tiled.items()}
    assert error[32] < error[0]
    assert step_across(tiled[32], 64) < step_across(tiled[0], 64)
    assert not torch.equal(tiled[32], whole)  # which is why none of it is promised


def test_a_progress_bar_only_where_it_takes_long(monkeypatch, capsys):
    image = torch.randn(3, 16, 16, dtype=torch.float64)
    predict_tiled(pixelwise(), image, 8, 0)
    assert "tiles" not in capsys.readouterr().err
    monkeypatch.setattr(tiling, "QUIET_S", 0)
    predict_tiled(pixelwise(), image, 8, 0)
    assert "tiles" not in capsys.readouterr().err  # no terminal
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    predict_tiled(pixelwise(), image, 8, 0)
    assert "tiles" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("image", "tile", "overlap", "message"),
    [
        (torch.zeros(8, 8), 4, 0, r"image must be \(C, H, W\) or \(N, C, H, W\), got \(8, 8\)"),
        (torch.zeros(3, 0, 8), 4, 0, r"got \(3, 0, 8\)"),
        (torch.zeros(3, 8, 8), 4, 4, "overlap must be from 0 to below tile, got 4 for 4"),
        (torch.zeros(3, 8, 8), 4, -1, "got -1 for 4"),
    ],
)
def test_mistakes(image, tile, overlap, message):
    with pytest.raises(ValueError, match=message):
        predict_tiled(nn.Identity(), image, tile, overlap)
