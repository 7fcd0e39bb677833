"""Palettes: presets, k-means, quantizing and decoding."""

import re
import sys

import numpy as np
import pytest
import torch

from colorseg.palette import Palette


def colors(k: int = 5) -> torch.Tensor:
    return torch.rand(k, 3, generator=torch.manual_seed(k))


def random_images(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.manual_seed(seed)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


class TestColors:
    def test_kept_as_a_float32_copy(self):
        given_colors = colors().double().requires_grad_()
        palette = Palette(given_colors, "x")
        assert palette.colors.dtype == torch.float32
        assert not palette.colors.requires_grad
        assert torch.equal(palette.colors, given_colors.float())
        with torch.no_grad():
            given_colors.zero_()
        assert palette.colors.sum() > 0
        assert (len(palette), palette.name) == (5, "x")
        assert Palette(colors()).name == "custom"

    def test_is_frozen(self):
        with pytest.raises(AttributeError):
            Palette(colors()).name = "y"

    def test_limits_are_allowed(self):
        assert len(Palette(torch.tensor([[0.0, 1.0, 0.5]]))) == 1
        assert len(Palette(torch.ones(256, 3))) == 256

    @pytest.mark.parametrize(
        ("wrong", "error", "words"),
        [
            ([[0.0, 0.0, 0.0]], TypeError, "float tensor in [0, 1], got list"),
            (torch.zeros(4, 3, dtype=torch.uint8), TypeError, "got torch.uint8; divide bytes by"),
            (torch.zeros(3), ValueError, "(K, 3) with K from 1 to 256, got (3,)"),
            (torch.zeros(3, 4), ValueError, "got (3, 4)"),
            (torch.zeros(0, 3), ValueError, "got (0, 3)"),
            (torch.zeros(257, 3), ValueError, "got (257, 3)"),
            (torch.full((2, 3), torch.nan), ValueError, "must be finite"),
            (torch.full((2, 3), torch.inf), ValueError, "must be finite"),
            (torch.full((2, 3), -0.5), ValueError, "in [0, 1], got -0.5 to -0.5"),
            (torch.full((2, 3), 255.0), ValueError, "got 255 to 255; divide bytes by 255"),
        ],
    )
    def test_errors(self, wrong, error, words):
        with pytest.raises(error, match=re.escape(words)):
            Palette(wrong)


class TestHorse24:
    def test_colors(self):
        palette = Palette.horse24()
        assert (len(palette), palette.name) == (24, "horse24")
        first, last = torch.tensor([12, 11, 11]), torch.tensor([244, 245, 244])
        assert torch.equal(palette.colors[0], first / 255)
        assert torch.equal(palette.colors[-1], last / 255)
        distances = torch.cdist(palette.colors, palette.colors) + 9 * torch.eye(24)
        assert 31.5 < distances.min() * 255 < 31.9  # the smallest distance that was published

    def test_agrees_with_the_file(self, shared_data):
        loaded = Palette.load(shared_data / "palette_horse24.json")
        assert torch.equal(loaded.colors, Palette.horse24().colors)
        assert loaded.name.startswith("cifar10_horse_kmeans24")


class TestFit:
    def test_finds_separate_colors(self):
        true = torch.tensor([[250, 10, 10], [10, 20, 240], [0, 0, 0], [20, 230, 30]])
        labels = torch.randint(0, 4, (3, 16, 16), generator=torch.manual_seed(0))
        images = true[labels].permute(0, 3, 1, 2).to(torch.uint8)
        fitted = Palette.fit(images, 4)
        want = true[[2, 1, 0, 3]].float() / 256  # from dark to light
        assert torch.allclose(fitted.colors, want, atol=1e-6)
        assert fitted.name == "kmeans4"

    def test_same_seed_same_bits(self):
        images = random_images(4, 3, 32, 32)
        first, second = (Palette.fit(images, 8, seed=3, max_pixels=1000) for _ in range(2))
        assert torch.equal(first.colors, second.colors)
        assert not torch.equal(first.colors, Palette.fit(images, 8, 4, 1000).colors)
        luma = first.colors @ torch.tensor([0.299, 0.587, 0.114])
        assert (luma.diff() >= 0).all()

    def test_caller_random_state_is_untouched(self):
        images = random_images(2, 3, 32, 32)
        numpy_state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()
        Palette.fit(images, 3, max_pixels=100)
        assert np.array_equal(np.random.get_state()[1], numpy_state)
        assert torch.equal(torch.get_rng_state(), torch_state)

    def test_memory_format_does_not_matter(self):
        images = random_images(2, 3, 16, 16)
        last = images.contiguous(memory_format=torch.channels_last)
        assert torch.equal(Palette.fit(images, 5).colors, Palette.fit(last, 5).colors)

    def test_one_color_is_the_mean(self):
        images = random_images(1, 3, 8, 8)
        mean = images.double().mean((0, 2, 3)) / 256
        assert torch.allclose(Palette.fit(images, 1).colors[0].double(), mean, atol=1e-6)

    @pytest.mark.parametrize(
        ("images", "k", "options", "error", "words"),
        [
            (
                torch.rand(1, 3, 8, 8),
                2,
                {},
                TypeError,
                "uint8 tensor (N, 3, H, W), got torch.float",
            ),
            (np.zeros((1, 3, 8, 8)), 2, {}, TypeError, "got ndarray"),
            (random_images(3, 8, 8), 2, {}, ValueError, "got shape (3, 8, 8)"),
            (random_images(1, 8, 8, 3), 2, {}, ValueError, "must be (N, 3, H, W)"),
            (random_images(1, 3, 8, 8), 0, {}, ValueError, "k must be 1 to 256 colors, got 0"),
            (random_images(1, 3, 8, 8), 257, {}, ValueError, "got 257"),
            (random_images(1, 3, 8, 8), 2, {"max_pixels": 0}, ValueError, "max_pixels must be pos"),
            (random_images(0, 3, 8, 8), 1, {}, ValueError, "only 0 different"),
            (random_images(1, 3, 2, 2), 5, {}, ValueError, "5 colors were asked of pixels that ha"),
        ],
    )
    def test_errors(self, images, k, options, error, words):
        with pytest.raises(error, match=re.escape(words)):
            Palette.fit(images, k, **options)

    def test_without_scikit_learn(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
        with pytest.raises(ImportError, match=re.escape("pip install 'colorseg[palette]'")):
            Palette.fit(random_images(1, 3, 8, 8), 2)


class TestLabels:
    def test_decode(self):
        palette = Palette(torch.tensor([[0.0, 0.5, 1.0], [0.1, 0.2, 0.3]]))
        labels = torch.tensor([[[0, 1, 1], [1, 0, 0]]])
        rgb8 = torch.tensor([[0, 128, 255], [26, 51, 76]])  # 127.5, 25.5, 76.5 round to even
        for dtype in (torch.uint8, torch.int32, torch.int64):
            decoded = palette.decode(labels.to(dtype))
            assert torch.equal(decoded, rgb8[labels].permute(0, 3, 1, 2).to(torch.uint8))
            assert decoded.stride() == (18, 6, 3, 1)

    def test_decode_gives_back_8_bit_colors(self):
        image = Palette.horse24().decode(torch.arange(24).reshape(1, 4, 6))
        assert image[0, :, 0, 3].tolist() == [0x55, 0x32, 0x1F]
        assert image[0, :, 3, 5].tolist() == [0xF4, 0xF5, 0xF4]

    def test_decode_nothing(self):
        assert Palette(colors()).decode(torch.zeros(0, 4, 4, dtype=torch.uint8)).shape[1] == 3

    @pytest.mark.parametrize(
        ("labels", "error", "words"),
        [
            (torch.zeros(1, 2, 2), TypeError, "must be integers, got torch.float32"),
            (torch.zeros(1, 2, 2, dtype=torch.bool), TypeError, "got torch.bool"),
            (torch.zeros(2, 2, dtype=torch.long), ValueError, "(N, H, W), got shape (2, 2)"),
            (torch.full((1, 2, 2), 5), ValueError, "0 to 4 for this palette, got 5 to 5"),
            (torch.full((1, 2, 2), -1), ValueError, "got -1 to -1"),
        ],
    )
    def test_decode_errors(self, labels, error, words):
        with pytest.raises(error, match=re.escape(words)):
            Palette(colors()).decode(labels)

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
    def test_quantize(self, dtype):
        palette = Palette.horse24()
        images = random_images(2, 3, 8, 8)
        for rgb, scale in ((images, 256), (images.float() / 255, 1), (images.double() / 255, 1)):
            pixels = rgb.double().permute(0, 2, 3, 1)[..., None, :] / scale
            distances = (pixels - palette.colors.double()).square().sum(-1)
            labels = palette.quantize(rgb, dtype)
            assert labels.dtype == dtype
            assert labels.shape == (2, 8, 8)
            # of colors equally far to within rounding, either will do
            found = distances.gather(-1, labels.long()[..., None])[..., 0]
            assert (found - distances.amin(-1)).max() < 1e-6
        assert palette.quantize(images).dtype == torch.uint8

    def test_quantize_undoes_decode(self):
        palette = Palette.horse24()
        labels = torch.randint(0, 24, (2, 8, 8), dtype=torch.uint8)
        assert torch.equal(palette.quantize(palette.decode(labels)), labels)

    def test_ties_go_to_the_lowest_label(self):
        palette = Palette(torch.tensor([[0.75] * 3, [0.25] * 3, [0.25] * 3]))
        assert palette.quantize(torch.full((1, 3, 1, 1), 0.5)).item() == 0
        assert palette.quantize(torch.full((1, 3, 1, 1), 0.25)).item() == 1
