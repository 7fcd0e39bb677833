"""Weight files: what they hold and fix, and that they are written at once or not at all."""

import json
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import colorseg
from colorseg.models import NETWORKS, ConvTransposeNet, PoolUpsampleNet, UNet, save_weights
from colorseg.palette import Palette

PALETTE = Palette(torch.tensor([[0.0, 0.0, 0.0], [0.5, 0.25, 1.0], [1.0, 1.0, 1.0]]), "three")


def small(network=UNet):
    """A network with other arguments than the defaults, and running statistics too."""
    model = network(5, 4, 3, 2)
    model(torch.rand(2, 2, 8, 8))
    return model.eval()


@pytest.fixture
def stored(tmp_path):
    path = tmp_path / "net.safetensors"
    save_weights(small(), path, PALETTE)
    return path


def assert_same_weights(a, b):
    assert list(a.state_dict()) == list(b.state_dict())
    for name, tensor in a.state_dict().items():
        assert torch.equal(tensor, b.state_dict()[name]), name


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("change", [lambda m: m, colorseg.unfuse], ids=["fused", "unfused"])
def test_round_trip(network, change, tmp_path):
    model, path = change(small(network)), tmp_path / "net.safetensors"
    save_weights(model, path, PALETTE)
    again = network(weights=path)
    assert_same_weights(again, model)
    assert torch.equal(again.palette.colors, PALETTE.colors)
    assert again.palette.name == "three"
    assert torch.equal(again.eval()(torch.ones(1, 2, 8, 8)), small_output(model))


def small_output(model):
    return colorseg.fuse(model)(torch.ones(1, 2, 8, 8))


def test_metadata_names_network_palette_and_grey(stored, tmp_path):
    with safe_open(stored, "pt") as file:
        metadata = file.metadata()
    assert metadata["network"] == "UNet"
    assert metadata["grey"] == "mean"
    assert json.loads(metadata["palette"]) == {"name": "three", "rgb": PALETTE.colors.tolist()}


def test_palette_and_grey_stay_with_the_network(stored, tmp_path):
    assert small().palette is None
    save_weights(UNet(weights=stored), tmp_path / "a.safetensors", grey="luma")
    save_weights(UNet(weights=tmp_path / "a.safetensors"), tmp_path / "b.safetensors")
    last = UNet(weights=str(tmp_path / "b.safetensors"))
    assert last.grey == "luma"
    assert last.palette.name == "three"


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_dilation_stays_with_the_network(network, tmp_path):
    model, path = network(3, 4, 3, dilation=2).eval(), tmp_path / "net.safetensors"
    save_weights(model, path, PALETTE)
    loaded, x = network(weights=path).eval(), torch.rand(1, 1, 12, 16)
    assert loaded.module2[0].dilation == (2, 2)
    assert torch.equal(loaded(x), model(x))
    assert loaded(x).shape == (1, 3, 12, 16)
    with pytest.raises(ValueError, match=r"weights for dilation=2, but dilation=1 was passed"):
        network(weights=path, dilation=1)


def test_a_compiled_network_is_saved_as_the_network(tmp_path):
    model = small()
    save_weights(torch.compile(model), tmp_path / "net.safetensors", PALETTE)
    assert_same_weights(UNet(weights=tmp_path / "net.safetensors"), model)


@pytest.mark.parametrize("within", [lambda m: m, torch.nn.Sequential], ids=["alone", "within"])
def test_an_optimized_network_is_refused(within, tmp_path):
    model = within(colorseg.optimize_for_inference(UNet(num_filters=4)))
    with pytest.raises(
        ValueError, match=r"cannot save a model optimised .*; save the model it was"
    ):
        save_weights(model, tmp_path / "net.safetensors")
    assert not any(tmp_path.iterdir())


def test_shared_weights_are_saved_under_all_their_names(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    model[1].weight = model[0].weight
    save_weights(model, tmp_path / "net.safetensors")
    stored = load_file(tmp_path / "net.safetensors")
    assert torch.equal(stored["0.weight"], model[0].weight)
    assert torch.equal(stored["1.weight"], model[0].weight)


def test_plain_state_dict(tmp_path):
    model = small()
    torch.save(model.state_dict(), tmp_path / "net.pth")
    again = UNet(weights=tmp_path / "net.pth")
    assert_same_weights(again, model)
    assert again.palette is None


def test_equal_arguments_are_welcome_and_others_refused(stored):
    assert UNet(5, 4, 3, 2, weights=stored).num_colors == 3
    for name, stored_value in {
        "kernel": 5,
        "num_filters": 4,
        "num_colors": 3,
        "num_in_channels": 2,
    }.items():
        with pytest.raises(
            ValueError,
            match=f"net.safetensors holds weights for {name}={stored_value}, but {name}=9 was",
        ):
            UNet(**{name: 9}, weights=stored)


def test_another_network_is_refused(stored, tmp_path):
    with pytest.raises(ValueError, match="holds weights of a UNet, not of a PoolUpsampleNet"):
        PoolUpsampleNet(weights=stored)
    torch.save(small().state_dict(), tmp_path / "net.pth")
    with pytest.raises(
        ValueError, match=r"not hold the weights of a PoolUpsampleNet \(missing: module1.2.bias"
    ):
        PoolUpsampleNet(weights=tmp_path / "net.pth")
    with pytest.raises(
        ValueError, match=r"of a ConvTransposeNet \(of another shape: module4.0.weight, module_last"
    ):
        ConvTransposeNet(weights=tmp_path / "net.pth")


@pytest.mark.parametrize("name", ["nothing.safetensors", "nothing.pth", ""])
def test_no_such_file(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no weights file .*; pass the path of"):
        UNet(weights=tmp_path / name)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failing_write_leaves_the_old_file(call, stored, monkeypatch):
    before = stored.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match=r"cannot write .*net.safetensors: No space left on device"):
        save_weights(small(), stored)
    assert stored.read_bytes() == before
    assert list(stored.parent.iterdir()) == [stored]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(OSError, match=r"cannot write .*absent/net.safetensors: No such file"):
        save_weights(small(), tmp_path / "absent" / "net.safetensors")


def test_a_palette_of_another_size_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="a palette of 24 colors does not fit a network of 3"):
        save_weights(small(), tmp_path / "net.safetensors", Palette.horse24())
    assert not any(tmp_path.iterdir())
