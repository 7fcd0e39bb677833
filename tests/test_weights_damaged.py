"""Weight files that are cut off, foreign or hostile are refused with a sentence and run no code."""

import os
import pickle
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from colorseg.models import UNet, save_weights


def small():
    return UNet(5, 4, 3, 2)


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
def test_a_truncated_file_is_refused_at_every_length(suffix, tmp_path):
    path = tmp_path / f"cut.{suffix}"
    if suffix == "pth":
        torch.save(small().state_dict(), path)
    else:
        save_weights(small(), path)
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
    with pytest.raises(ValueError, match=r"net.pth is not a state dict that can be loaded safely"):
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
    "huge": '{"name": "x", "rgb": [[1e400, 0, 0], [0, 0, 0], [0, 0, 1' + 30 * "0" + "]]}",
    "too few": '{"name": "x", "rgb": [[0.5, 0.5, 0.5]]}',
}


@pytest.mark.parametrize("text", PALETTES.values(), ids=PALETTES)
def test_a_damaged_palette_is_refused(text, tmp_path):
    path = tmp_path / "net.safetensors"
    save_file(small().state_dict(), path, {"network": "UNet", "palette": text})
    with pytest.raises(ValueError, match=r"net.safetensors(: a palette| is not a readable)"):
        UNet(weights=path)


def test_a_whole_model_is_told_apart(tmp_path):
    torch.save(small(), tmp_path / "whole.pth")
    with pytest.raises(ValueError, match=r"such as a whole model; save model\.state_dict\(\)$"):
        UNet(weights=tmp_path / "whole.pth")
