"""Networks from weights files, whichever they are of."""

import pytest
import torch
from photo_cases import GREEN
from torch import nn

from colorseg.models import (
    ConvTransposeNet,
    UNet,
    deeplabv3,
    load_network,
    load_segmenter,
    save_weights,
)


@pytest.mark.parametrize("network", [UNet, ConvTransposeNet])
def test_load_network_finds_the_class(network, tmp_path):
    save_weights(network(num_filters=4, num_colors=2), tmp_path / "x.safetensors", GREEN)
    model = load_network(tmp_path / "x.safetensors")
    assert type(model) is network
    assert not model.training
    assert model.palette.name == "green"


def test_load_network_mistakes(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no weights file"):
        load_network(tmp_path / "x.safetensors")
    save_weights(nn.Conv2d(1, 1, 1), tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="weights of a Conv2d, of none of PoolUpsampleNet"):
        load_network(tmp_path / "x.safetensors")


@pytest.mark.parametrize("output_stride", [8, 16])
def test_load_segmenter(output_stride, tmp_path):
    from colorseg.data.scenes import load_scenes
    from colorseg.training.segmentation import SegmentationTask

    model = deeplabv3("resnet18", 2, output_stride=output_stride).eval()
    task = SegmentationTask(load_scenes(32, 2, 2)[0], torch.device("cpu"))
    task.save(model, tmp_path / "x.safetensors")
    loaded, x = load_segmenter(tmp_path / "x.safetensors"), torch.rand(1, 3, 64, 64)
    save_weights(loaded, tmp_path / "y.safetensors")  # keeps what the file says
    for segmenter in (loaded, load_segmenter(tmp_path / "y.safetensors")):
        assert segmenter.classes == task.data.classes
        assert segmenter.output_stride == output_stride
        with torch.no_grad():
            assert torch.equal(segmenter(x)["out"], model(x)["out"])


def test_a_segmenter_of_a_plain_state_dict_has_the_stride_of_published_ones(tmp_path):
    torch.save(deeplabv3("resnet18", 2).state_dict(), tmp_path / "x.pth")
    assert load_segmenter(tmp_path / "x.pth").output_stride == 8
