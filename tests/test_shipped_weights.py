"""The weights that come with the package."""

from importlib import resources

import pytest
import torch

from colorseg.data import load
from colorseg.models import NETWORKS
from colorseg.training import evaluate

FOLDER = resources.files("colorseg.models") / "weights"
ALL = pytest.mark.parametrize("name", NETWORKS)
# loss and accuracy on the validation horses, as weights/README.md has them
MEASURED = {
    "pool_upsample": (1.494, 0.436),
    "conv_transpose": (1.041, 0.607),
    "unet": (0.943, 0.630),
}


# the same of a UNet with the weights general, on two sets
GENERAL = (("CIFAR-10", 1.152, 0.574), ("sample", 1.445, 0.502))


@ALL
def test_they_load_by_their_name(name):
    model = NETWORKS[name](weights="horse24").eval()
    assert model.palette.name == "horse24"
    assert (model.num_colors, model.num_in_channels, model.grey) == (24, 1, "mean")
    with torch.no_grad():
        assert model(torch.rand(1, 1, 33, 40)).shape == (1, 24, 33, 40)


@ALL
def test_they_are_small(name):
    file = FOLDER / f"horse24-{NETWORKS[name].__name__}.safetensors"
    assert len(file.read_bytes()) < 300_000


@ALL
def test_they_are_as_good_as_their_card_says(name, shared_data):
    _, val = load(shared_data / "cifar10-horses.npz")
    result = evaluate(NETWORKS[name](weights="horse24"), val)
    loss, accuracy = MEASURED[name]
    assert result["loss"] == pytest.approx(loss, abs=1e-3)
    assert result["accuracy"] == pytest.approx(accuracy, abs=1e-3)
    card = (FOLDER / "README.md").read_text()
    assert f"{loss:.3f} | {100 * accuracy:.1f} %" in card


def test_general_weights():
    model = NETWORKS["unet"](weights="general")
    assert (model.palette.name, model.num_colors, model.grey) == ("general32", 32, "mean")
    assert len((FOLDER / "general-UNet.safetensors").read_bytes()) < 2_000_000
    with pytest.raises(FileNotFoundError, match="no weights general of a ConvTransposeNet, but of"):
        NETWORKS["conv_transpose"](weights="general")


def test_general_weights_are_as_good_as_their_card_says(shared_data):
    parts = load(shared_data / "cifar10-exact-part.npz", classes=None)[1], load("sample")[1]
    model, card = NETWORKS["unet"](weights="general"), (FOLDER / "README.md").read_text()
    for part, (name, loss, accuracy) in zip(parts, GENERAL, strict=True):
        found = evaluate(model, part)
        assert found["loss"] == pytest.approx(loss, abs=1e-3)
        assert found["accuracy"] == pytest.approx(accuracy, abs=1e-3)
        assert f"| {name} | {loss:.3f} | {100 * accuracy:.1f} % |" in card


def test_arguments_that_do_not_fit():
    with pytest.raises(ValueError, match="holds weights for kernel=3, but kernel=5 was passed"):
        NETWORKS["unet"](kernel=5, weights="horse24")


def test_another_name_is_taken_for_a_path():
    with pytest.raises(
        FileNotFoundError, match=r"no weights file zebra24; .* names horse24, general"
    ):
        NETWORKS["unet"](weights="zebra24")
