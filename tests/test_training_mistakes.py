"""What ``fit``, ``evaluate`` and their commands refuse, by a sentence and before any work."""

import dataclasses

import pytest
import torch
from PIL import Image
from small_segmenters import TRAIN, VAL, SmallSegmenter
from torch import nn

from colorseg.cli import main
from colorseg.data import load
from colorseg.models import UNet, save_weights
from colorseg.palette import Palette
from colorseg.training import Config, SegmentationConfig, evaluate, fit
from colorseg.training.checkpoint import holds_run

PICTURES = load("sample")[1].subset(slice(0, 8))
THREE = dataclasses.replace(VAL, classes=("background", "flower", "leaf"))
SIX = Palette(torch.rand(6, 3), "six")


def unet(palette):
    model = UNet(num_filters=4, num_colors=6)
    model.palette = palette
    return model


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        (unet(None), PICTURES, r"shape \(8, 6, 32, 32\), but its palette has 24 colors"),
        (SmallSegmenter(), THREE, r"\(6, 2, .*has the classes background, flower, leaf; choose"),
        (nn.Flatten(), PICTURES, r"shape \(8, 1024\), but its palette has 24 colors"),
    ],
)
def test_evaluate_needs_a_result_per_color_or_class(model, data, message):
    with pytest.raises(ValueError, match=message):
        evaluate(model, data)


def test_fit_needs_a_result_per_color_or_class(tmp_path):
    config = Config(epochs=1, out=tmp_path)
    with pytest.raises(ValueError, match="its palette has 24 colors; give it the one"):
        fit(unet(None), PICTURES, PICTURES, config)
    config = SegmentationConfig(epochs=1, out=tmp_path)
    with pytest.raises(ValueError, match=r"has the classes background, flower, leaf"):
        fit(SmallSegmenter(), THREE, THREE, config)
    assert not holds_run(tmp_path)  # the corrected program need not resume


@pytest.mark.parametrize("size", [0, -1])
def test_evaluate_refuses_batches_without_pictures(size, capsys):
    with pytest.raises(ValueError, match=f"batch_size must be at least 1, got {size}"):
        evaluate(unet(SIX), PICTURES, batch_size=size)
    assert main(["evaluate", "horse24", "--batch-size", str(size)]) == 2
    assert f"error: batch_size must be at least 1, got {size}" in capsys.readouterr().err


def test_an_image_size_of_0_is_not_the_default(tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    for i in range(10):
        Image.new("RGB", (40, 40), (i, 0, 0)).save(tmp_path / f"photos/{i}.png")
    weights = tmp_path / "six.safetensors"
    save_weights(unet(SIX), weights, SIX)
    flags = ["--data", str(tmp_path / "photos"), "--image-size", "0"]
    assert main(["evaluate", str(weights), *flags]) == 2
    assert "error: the image size must be at least 1, got 0" in capsys.readouterr().err


@pytest.mark.parametrize("data", [PICTURES, PICTURES.images])
def test_a_network_that_segments_needs_masks(data, tmp_path):
    message = f"needs a SegmentationSet, got {type(data).__name__}; colorseg.data.load_seg"
    with pytest.raises(TypeError, match=message):
        fit(SmallSegmenter(), data, VAL, SegmentationConfig(out=tmp_path))
    with pytest.raises(TypeError, match=message):
        fit(SmallSegmenter(), TRAIN, data, SegmentationConfig(out=tmp_path))


@pytest.mark.parametrize("data", [VAL, VAL.images])
def test_a_network_that_colorizes_needs_pictures_alone(data, tmp_path):
    message = f"needs an ImageSet, got {type(data).__name__}; colorseg.data.load gives two"
    with pytest.raises(TypeError, match=message):
        fit(unet(SIX), data, PICTURES, Config(network="own", out=tmp_path))


def test_evaluate_needs_a_set():
    with pytest.raises(TypeError, match="needs an ImageSet, got Tensor"):
        evaluate(unet(SIX), PICTURES.images)
