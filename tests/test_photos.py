"""``colorseg.photos``: photographs of any kind, colored and segmented."""

import numpy as np
import pytest
import torch
from conftest import skip
from photo_cases import GREEN, Constant, noise
from torch import nn

import colorseg
from colorseg.data import ImageSet
from colorseg.models import (
    UNet,
    deeplabv3,
    load_network,
    save_weights,
)
from colorseg.palette import Palette
from colorseg.photos import color_quality, overlay, read_photo, segment_labels
from colorseg.photos.chroma import luma
from colorseg.photos.colorizing import decoded


class TestColorize:
    @pytest.mark.parametrize("size", [(90, 130), (5, 400), (1, 1), (64, 64), (3, 2)])
    def test_size_and_luma_stay(self, size):
        pixels = noise(*size)
        result = colorseg.colorize(pixels, Constant())
        assert result.mode == "RGB"
        assert result.size == size[::-1]
        before, after = (
            luma(torch.from_numpy(np.array(p)).permute(2, 0, 1).float()) for p in (pixels, result)
        )
        assert (before - after).abs().max() < 1.5  # bytes are rounded

    def test_color_is_that_of_the_palette(self):
        grey = np.full((40, 40), int(255 * luma(GREEN.colors[0][:, None, None])), np.uint8)
        result = np.array(colorseg.colorize(grey, Constant()))
        want = (GREEN.colors[0] * 255).numpy()
        assert np.abs(result - want).max() <= 2

    def test_all_pixels_in_tiles(self):
        small, large, constant = noise(64, 80), noise(600, 700), Constant()
        network = load_network("general")
        whole = colorseg.colorize(small, network, side=None)  # one tile
        assert np.array_equal(whole, colorseg.colorize(small, network, side=64, edges=False))
        tiled = colorseg.colorize(large, constant, side=None)
        assert 400 < max(constant.seen.shape) <= 512
        untiled = np.array(colorseg.colorize(large, constant, side=600, edges=False)).astype(int)
        assert np.abs(np.array(tiled) - untiled).max() <= 1

    @pytest.mark.parametrize("side", [None, 600])
    def test_no_seams_where_tiles_meet(self, side, monkeypatch):
        """A trained network's colors are those of one large tile, but for the tiles' edges."""
        photo, network = noise(150, 170), load_network("general")
        want = np.array(colorseg.colorize(photo, network, side=side)).astype(int)
        monkeypatch.setattr("colorseg.photos.colorizing.TILE", 96)
        blended = np.array(colorseg.colorize(photo, network, side=side)).astype(int)
        monkeypatch.setattr("colorseg.photos.colorizing.OVERLAP", 0)
        cut = np.array(colorseg.colorize(photo, network, side=side)).astype(int)
        assert np.abs(blended - want).max() < 20
        assert np.abs(blended - want).mean() < 0.3 * np.abs(cut - want).mean()

    def test_a_large_side_is_seen_in_tiles(self):
        network = Constant()
        colorseg.colorize(noise(700, 520), network, side=520)
        assert 400 < max(network.seen.shape) <= 512

    def test_a_photo_that_was_read_before(self):
        photo = read_photo(noise())
        assert read_photo(photo, max_pixels=1) is photo
        results = [colorseg.colorize(picture, Constant()) for picture in (photo, noise())]
        assert np.array_equal(*results)

    def test_vividness(self):
        grey = np.full((40, 40), 128, np.uint8)
        none = np.array(colorseg.colorize(grey, Constant(), vividness=0))
        assert (none == 128).all()
        spread = [
            np.ptp(np.array(colorseg.colorize(grey, Constant(), vividness=v))) for v in (0.5, 1)
        ]
        assert spread[0] < spread[1]

    def test_colors_of_the_photograph_are_not_looked_at(self):
        pixels = noise()
        grey = pixels.astype(np.int64).sum(2, keepdims=True) // 3
        network = Constant()
        colorseg.colorize(np.repeat(grey, 3, 2).astype(np.uint8), network, side=32)
        plain = network.seen
        colorseg.colorize(pixels, network, side=32)
        assert (network.seen - plain).abs().max() < 2 / 256

    def test_the_network_sees_a_small_picture(self):
        network = Constant()
        colorseg.colorize(noise(400, 600), network, side=32)
        assert network.seen.shape == (1, 1, 32, 48)
        colorseg.colorize(noise(20, 30), network)
        assert network.seen.shape == (1, 1, 20, 30)

    def test_transparency_stays(self):
        pixels = noise(channels=4)
        result = colorseg.colorize(pixels, Constant())
        assert result.mode == "RGBA"
        assert np.array_equal(np.array(result)[..., 3], pixels[..., 3])

    def test_shipped_weights_by_name(self):
        result = np.array(colorseg.colorize(noise())).astype(int)
        assert np.ptp(result, axis=2).max() > 3  # not grey

    def test_training_mode_and_statistics_stay(self):
        model = UNet(num_filters=4).train()
        before = {k: v.clone() for k, v in model.state_dict().items()}
        colorseg.colorize(noise(), model)
        assert model.training
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"decode": "best"}, "decode must be one of argmax, mean, annealed"),
            ({"temperature": 0}, "temperature must be above 0"),
            ({"vividness": -1}, r"vividness must be in 0 .. 10"),
            ({"side": 4}, "side must be at least 8"),
            ({"max_pixels": 100}, "more than the 100 allowed"),
            ({"model": UNet(num_in_channels=3)}, "this one takes 3"),
            ({"model": Constant(Palette.horse24())}, None),
        ],
    )
    def test_mistakes(self, options, message):
        if message is None:
            colorseg.colorize(noise(), **options)
            return
        with pytest.raises(ValueError, match=message):
            colorseg.colorize(noise(), **options)


def test_grey_values_of_another_kind_are_refused():
    network = UNet(num_filters=2)
    network.grey = "luma"
    with pytest.raises(ValueError, match="grey values made by 'luma', and colorize makes them by"):
        colorseg.colorize(np.zeros((8, 8, 3), np.uint8), network)


def test_decodings():
    logits = torch.tensor([2.0, 1.0])[:, None, None]
    share = logits[:, 0, 0].softmax(0)
    first, second = GREEN.colors
    assert torch.equal(decoded(logits, GREEN, "argmax", 1)[:, 0, 0], first)
    mean = decoded(logits, GREEN, "mean", 0.38)[:, 0, 0]
    assert torch.allclose(mean, share[0] * first + share[1] * second)
    sharp = (logits[:, 0, 0] / 0.38).softmax(0)
    annealed = decoded(logits, GREEN, "annealed", 0.38)[:, 0, 0]
    assert torch.allclose(annealed, sharp[0] * first + sharp[1] * second)


class Bright(nn.Module):
    """Class 1 where the picture is bright."""

    def forward(self, x):
        bright = x.mean(1)
        return {"out": torch.stack([-bright, bright], 1)}


class TestSegment:
    @pytest.mark.parametrize("side", [None, 64, 32])
    def test_a_bright_half(self, side):
        pixels = np.zeros((160, 240, 3), np.uint8)
        pixels[:, 120:] = 255
        labels = segment_labels(pixels, Bright(), side=side)
        assert labels.dtype == np.uint8
        assert labels.shape == (160, 240)
        want = pixels[..., 0] // 255
        assert (labels != want).mean() < 0.02

    def test_mask_is_an_image_of_classes(self):
        mask = colorseg.segment(noise(), Bright())
        assert mask.mode == "P"
        assert mask.size == (130, 90)
        assert set(np.unique(np.array(mask))) <= {0, 1}

    def test_overlay(self):
        labels = np.zeros((90, 130), np.uint8)
        labels[:, 50:] = 1
        result = np.array(overlay(noise(), labels, opacity=1))
        assert np.array_equal(result[:, :50], noise()[:, :50])
        assert len(np.unique(result[:, 50:].reshape(-1, 3), axis=0)) == 1
        with pytest.raises(ValueError, match="not alike"):
            overlay(noise(), labels[:5])
        with pytest.raises(ValueError, match="opacity must be in"):
            overlay(noise(), labels, opacity=2)

    def test_mistakes(self, tmp_path):
        with pytest.raises(ValueError, match="side must be at least 32"):
            colorseg.segment(noise(), Bright(), side=8)
        save_weights(UNet(num_filters=4), tmp_path / "unet.safetensors")
        with pytest.raises(ValueError, match="holds weights of a UNet, not of a DeepLabV3"):
            colorseg.segment(noise(), tmp_path / "unet.safetensors")


@pytest.mark.parametrize("kind", ["double", "bfloat16", "optimized bfloat16"])
def test_networks_of_other_dtypes(kind):
    """A network gets the photograph in the dtype that it was converted to or optimised for."""
    if kind.startswith("optimized") and not colorseg.build_info()["cpu_bfloat16"]:
        skip("isa")
    converted = {
        "double": nn.Module.double,
        "bfloat16": nn.Module.bfloat16,
        "optimized bfloat16": lambda m: colorseg.optimize_for_inference(m, torch.bfloat16),
    }[kind]
    torch.manual_seed(0)
    painter, cutter = UNet(num_filters=4).eval(), deeplabv3("resnet18", 2, output_stride=16).eval()
    wanted = colorseg.colorize(noise(), painter), segment_labels(noise(), cutter)
    painter, cutter = converted(painter), converted(cutter)
    colored, labels = colorseg.colorize(noise(), painter), segment_labels(noise(), cutter)
    assert np.abs(np.array(colored).astype(int) - np.array(wanted[0])).max() < 20
    assert (labels != wanted[1]).mean() < 0.1
    pictures = ImageSet(torch.from_numpy(noise(16, 16)).permute(2, 0, 1)[None], "x")
    assert color_quality(painter, pictures)["psnr"] > 0
