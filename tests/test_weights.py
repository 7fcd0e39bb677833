"""Weight files: what they fix, what is refused, and that loading runs no code."""

import json
import os
import pickle
import zipfile

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import colorseg
from colorseg.models import NETWORKS, ConvTransposeNet, PoolUpsampleNet, UNet, save_weights
from colorseg.palette import Palette

PALETTE = Palette(torch.tensor([[0.0, 0.0, 0.0], [0.5, 0.25, 1.0], [1.0, 1.0, 1.0]]), "three")


def small(network=UNet):
    """A network whose arguments all differ from the defaults, with running statistics that do too."""
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


def drop(state):
    del state["module2.0.bias"]


def add(state):
    state["module9.weight"] = torch.zeros(2)


def cut(state):
    state["module2.1.bias"] = torch.zeros(2)


def flatten(state):
    state["module1.0.weight"] = state["module1.0.weight"].flatten()


DAMAGE = {
    "missing": (drop, r"does not hold the weights of a UNet \(missing: module2.0.bias\)"),
    "extra": (add, r"\(unknown: module9.weight\)"),
    "shape": (cut, r"\(of another shape: module2.1.bias\)"),
    "all": (lambda s: (drop(s), add(s), cut(s)), "missing: .* unknown: .* of another shape: "),
    "no first layer": (
        lambda s: s.pop("module1.0.weight"),
        "needs module1.0.weight and module_last.weight",
    ),
    "flat": (flatten, "needs module1.0.weight and module_last.weight, of 4 dimensions each"),
    "empty": (dict.clear, "needs module1.0.weight"),
}


@pytest.mark.parametrize(("change", "message"), DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_keys_and_shapes_that_do_not_fit(change, message, suffix, tmp_path):
    state, path = dict(small().state_dict()), tmp_path / f"net.{suffix}"
    change(state)
    (save_file if suffix == "safetensors" else torch.save)(state, path)
    with pytest.raises(ValueError, match=rf"net.{suffix} .*{message}"):
        UNet(weights=path)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_a_truncated_file_is_refused_at_every_length(suffix, stored, tmp_path):
    path = tmp_path / f"cut.{suffix}"
    whole = stored.read_bytes()
    if suffix == "pth":
        torch.save(small().state_dict(), path)
        whole = path.read_bytes()
    for length in [0, 1, 7, 8, *range(9, len(whole), len(whole) // 20), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=rf"cut.{suffix} is not a (readable|state dict)"):
            UNet(weights=path)


class Payload:
    """Unpickling this would create a file."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


def save_zip(content, path):
    torch.save(content, path)
    assert zipfile.is_zipfile(path)


SAVERS = {
    "zip": save_zip,
    "legacy": lambda content, path: torch.save(content, path, _use_new_zipfile_serialization=False),
    "bare pickle": lambda content, path: path.write_bytes(pickle.dumps(content, 2)),
}


@pytest.mark.parametrize("save", SAVERS.values(), ids=SAVERS)
@pytest.mark.parametrize(
    "wrap", [lambda p: p, lambda p: {"module1.0.weight": p}], ids=["root", "value"]
)
def test_a_hostile_pickle_runs_nothing(save, wrap, tmp_path):
    trace, path = tmp_path / "trace", tmp_path / "net.pth"
    save(wrap(Payload(trace)), path)
    with pytest.raises(ValueError, match="net.pth is not a state dict that can be loaded safely"):
        UNet(weights=path)
    assert not trace.exists()


OTHER = {
    "checkpoint": ({"model": {}, "epoch": 3}, "it holds a dict where tensors belong"),
    "tensor": (torch.zeros(3), "cannot be converted|not a state dict"),
    "list": ([1, 2], "not a state dict"),
    "module": (nn.Linear(1, 1), "not a state dict"),
}


@pytest.mark.parametrize(("content", "message"), OTHER.values(), ids=OTHER)
def test_other_content_is_refused(content, message, tmp_path):
    torch.save(content, tmp_path / "net.pth")
    with pytest.raises(ValueError, match=message):
        UNet(weights=tmp_path / "net.pth")


PALETTES = {
    "no JSON": "{",
    "no colors": "{}",
    "a number": "3",
    "deep": "[" * 100_000,
    "text": '{"name": "x", "rgb": "abc"}',
    "out of range": '{"name": "x", "rgb": [[0, 0, 2.5], [0, 0, 0], [0, 0, 0]]}',
    "huge": '{"name": "x", "rgb": [[1e400, 0, 0], [0, 0, 0], [0, 0, %d]]}' % 10**30,
    "too few": '{"name": "x", "rgb": [[0.5, 0.5, 0.5]]}',
}


@pytest.mark.parametrize("text", PALETTES.values(), ids=PALETTES)
def test_a_damaged_palette_is_refused(text, tmp_path):
    path = tmp_path / "net.safetensors"
    save_file(small().state_dict(), path, {"network": "UNet", "palette": text})
    with pytest.raises(ValueError, match=r"net.safetensors(: a palette| is not a readable)"):
        UNet(weights=path)


def test_a_palette_of_another_size_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="a palette of 24 colors does not fit a network of 3"):
        save_weights(small(), tmp_path / "net.safetensors", Palette.horse24())
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["nothing.safetensors", "nothing.pth", ""])
def test_no_such_file(name, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no weights file .*; pass the path of"):
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
