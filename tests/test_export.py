"""``colorseg.export``: networks as ONNX and .pt2 files that need no colorseg."""

import io
import json
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import assert_close

import colorseg
from colorseg import exporting
from colorseg.cli import main
from colorseg.models import NETWORKS, deeplabv3
from colorseg.palette import Palette


def network(name="unet", **options):
    torch.manual_seed(0)
    model = NETWORKS[name](num_filters=4, num_colors=24, **options)
    model(torch.rand(4, model.num_in_channels, 16, 16))  # running statistics
    model.palette = Palette.horse24()
    return model.train()


def run_onnx(path, image):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {"image": image.numpy()})[0])


def run_program(path, image):
    return torch.export.load(str(path)).module()(image)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("suffix", "run"), [(".onnx", run_onnx), (".pt2", run_program)])
def test_color_networks_of_any_batch_and_size(name, suffix, run, tmp_path):
    model, path = network(name), tmp_path / f"net{suffix}"
    before = {k: v.clone() for k, v in model.state_dict().items()}
    colorseg.export(model, path)
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    for size in ((1, 32, 32), (3, 40, 84)):
        image = torch.rand(size[0], 1, *size[1:])
        with torch.no_grad():
            assert_close(run(path, image), model.eval()(image))


def test_onnx_names_palette_and_grey(tmp_path):
    colorseg.export(network(), tmp_path / "net.onnx")
    model = onnx.load(tmp_path / "net.onnx")
    onnx.checker.check_model(model)
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert facts["network"] == "UNet"
    assert facts["grey"] == "mean"
    assert np.allclose(json.loads(facts["palette"]), Palette.horse24().colors)
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}


def test_deeplabv3(tmp_path):
    model, path = deeplabv3("resnet18", 2, output_stride=16).eval(), tmp_path / "net.onnx"
    colorseg.export(model, path)
    image = torch.rand(1, 3, 70, 90)
    with torch.no_grad():
        assert_close(run_onnx(path, image), model(image)["out"])


def test_a_program_needs_no_colorseg(tmp_path):
    colorseg.export(network(), tmp_path / "net.pt2")
    script = (
        "import sys, torch; f = torch.export.load(sys.argv[1]).module();"
        "print(tuple(f(torch.rand(2, 1, 36, 48)).shape)); assert 'colorseg' not in sys.modules"
    )
    command = [sys.executable, "-P", "-c", script, str(tmp_path / "net.pt2")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.strip() == "(2, 24, 36, 48)", done.stderr


def test_what_differs_is_not_written(tmp_path, monkeypatch):
    other = exporting._program(
        exporting.Logits(network().eval()), *exporting._dynamic(1, exporting.MULTIPLE), {}
    )
    monkeypatch.setattr(exporting, "_program", lambda *_: other)
    torch.manual_seed(1)
    model = NETWORKS["unet"](num_filters=4)
    with pytest.raises(
        ValueError, match=r"would differ from the network by .* nothing was written"
    ):
        colorseg.export(model, tmp_path / "net.pt2")
    assert not [*tmp_path.iterdir()]
    colorseg.export(model, tmp_path / "net.pt2", check=False)
    assert torch.export.load(io.BytesIO((tmp_path / "net.pt2").read_bytes()))


def test_the_command(tmp_path, capsys, monkeypatch):
    path = tmp_path / "net.pt2"
    assert main(["export", "horse24", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}: UNet, {path.stat().st_size:,} bytes\n"
    assert main(["export", "horse24", str(tmp_path / "net.txt")]) == 2
    assert "must end in .onnx or .pt2" in capsys.readouterr().err
    assert main(["export", "nope", str(path)]) == 2
    assert "there is no weights file nope" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert main(["export", "horse24", str(tmp_path / "net.onnx")]) == 2
    assert "needs onnxscript: pip install 'colorseg[export]'" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_torchscript_traces_of_fused_modules():
    """Also with gradients, where an ``autograd.Function`` could not be saved."""
    plain = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU()
    ).eval()
    fused, x, content = colorseg.fuse(plain), torch.randn(2, 3, 8, 8), io.BytesIO()
    torch.jit.save(torch.jit.trace(fused, x, check_trace=False), content)  # it checks without
    content.seek(0)
    assert_close(torch.jit.load(content)(x), plain(x))


@pytest.mark.parametrize(("suffix", "run"), [(".onnx", run_onnx), (".pt2", run_program)])
def test_networks_of_three_input_channels(suffix, run, tmp_path):
    """They need sizes like all color networks, not like DeepLabV3's."""
    model, path = network(num_in_channels=3).eval(), tmp_path / f"coarse{suffix}"
    colorseg.export(model, path)
    image = torch.rand(2, 3, 36, 20)
    with torch.no_grad():
        assert_close(run(path, image), model(image))


def test_models_that_cannot_be_exported(tmp_path):
    optimized = colorseg.optimize_for_inference(network())
    with pytest.raises(ValueError, match="cannot export a model optimised for inference"):
        colorseg.export(optimized, tmp_path / "a.pt2")

    class Branching(torch.nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ValueError, match="torch cannot export this Branching for images of any"):
        colorseg.export(Branching(), tmp_path / "a.pt2")
    assert not [*tmp_path.iterdir()]
