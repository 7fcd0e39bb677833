"""What optimize_for_inference and its models refuse, each in a sentence."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from chain_cases import twins
from torch import nn

import colorseg
from colorseg import optimize_for_inference
from colorseg.models import NETWORKS, UNet
from colorseg.nn import ConvBNReLU

ALL = pytest.mark.parametrize("name", NETWORKS)


def sequential():
    return nn.Sequential(ConvBNReLU(3, 8, 3, resample="maxpool2"), nn.Conv2d(8, 5, 3))


@ALL
def test_no_gradients(name):
    optimized = optimize_for_inference(twins(name)[0])
    x = torch.rand(2, 1, 8, 8, requires_grad=True)
    with pytest.raises(RuntimeError, match="has no gradients; use the model it was made from"):
        optimized(x)
    with torch.no_grad():
        assert optimized(x).shape == (2, 5, 8, 8)
    assert not optimized(x.detach()).requires_grad
    assert list(optimized.parameters()) == []


@pytest.mark.parametrize("make", [UNet, sequential])
def test_no_training(make):
    optimized = optimize_for_inference(make())
    with pytest.raises(RuntimeError, match="cannot be trained; train the model it was made from"):
        optimized.train()
    assert optimized.eval() is optimized
    assert not any(module.training for module in optimized.modules())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_no_other_dtypes(dtype):
    if dtype != torch.bfloat16:
        with pytest.raises(ValueError, match=f"kernels for float32 and bfloat16 only, got {dtype}"):
            optimize_for_inference(UNet(), dtype)
    for model in (UNet().to(dtype), sequential().to(dtype)):
        with pytest.raises(ValueError, match=f"with {dtype} weights|nothing in this"):
            optimize_for_inference(model)
    name = {torch.float64: "Double", torch.float16: "Half", torch.bfloat16: "BFloat16"}[dtype]
    for model, channels in ((UNet(), 1), (sequential(), 3)):
        with pytest.raises(RuntimeError, match=f"was optimised for float32, got {name}"):
            optimize_for_inference(model)(torch.rand(1, channels, 8, 8).to(dtype))


@pytest.mark.parametrize("convert", [nn.Module.half, nn.Module.double, nn.Module.bfloat16])
def test_no_conversion_of_packed_weights(convert):
    optimized = optimize_for_inference(sequential())
    with pytest.raises(RuntimeError, match=r"optimised for torch.float32, which it keeps; .*dtype"):
        convert(optimized)
    assert optimized.float().to("cpu")(torch.rand(1, 3, 8, 8)).dtype == torch.float32


BFLOAT16 = """
import colorseg, torch
assert not colorseg.build_info()["cpu_bfloat16"]
try:
    colorseg.optimize_for_inference(colorseg.models.UNet(), torch.bfloat16)
except ValueError as error:
    print(error)
torch.ops.colorseg.pack_chain([torch.zeros(1)], [], [], True)
"""


def test_no_bfloat16_without_its_instructions(tmp_path):
    found = str(Path(colorseg.__file__).parents[1])  # not the source tree, which may be unbuilt
    environment = os.environ | {"COLORSEG_CPU_ISA": "scalar", "PYTHONPATH": found}
    command = [sys.executable, "-c", BFLOAT16]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == (
        "bfloat16 needs the AVX512_BF16 instructions, but scalar runs here without them; leave "
        "dtype out for float32, or run the model under torch.autocast\n"
    )
    assert "bfloat16 needs the AVX512_BF16 instructions, but scalar runs here" in done.stderr


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(1, 8, 8), ValueError, r"UNet takes images \(N, 1, H, W\), got \(1, 8, 8\)"),
        (torch.zeros(1, 3, 8, 8), ValueError, r"UNet takes images \(N, 1, H, W\), got \(1, 3, 8"),
        (torch.zeros(1, 1, 8, 8).byte(), TypeError, "floating-point .* got torch.uint8; divide"),
        (torch.zeros(1, 1, 0, 8), RuntimeError, "the image is too small for this network"),
    ],
)
def test_wrong_images_of_a_network(x, error, message):
    with pytest.raises(error, match=message):
        optimize_for_inference(UNet())(x)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(3, 8, 8), r"images must be \(N, C, H, W\), got \(3, 8, 8\)"),
        (torch.zeros(1, 4, 8, 8), "this network takes 3 channels, got 4"),
        (torch.zeros(1, 3, 1, 8), "the image is too small for this network"),
        (torch.zeros(1, 3, 4, 4), "a map of 2 x 2 is left for a kernel of 3 x 3"),
        (torch.zeros(0, 3, 4, 4), "a map of 2 x 2 is left for a kernel of 3 x 3"),
    ],
    ids=str,
)
def test_wrong_images_of_a_sequential(x, message):
    optimized = optimize_for_inference(sequential())
    with pytest.raises(RuntimeError, match=message):
        optimized(x)


class OwnForward(nn.Sequential):
    def forward(self, x):
        return -super().forward(x)


UNFIT = {
    "nothing in it": lambda: nn.Linear(3, 4),
    "an empty Sequential": nn.Sequential,
    "groups": lambda: nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)),
    "stride 3": lambda: nn.Sequential(nn.Conv2d(4, 4, 3, stride=3)),
    "reflected padding": lambda: nn.Sequential(nn.Conv2d(4, 4, 3, 1, 1, padding_mode="reflect")),
    "a ReLU alone": lambda: nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU()),
    "a forward of its own": lambda: OwnForward(nn.Conv2d(4, 4, 3)),
    "65 layers": lambda: nn.Sequential(*[nn.Conv2d(4, 4, 1) for _ in range(65)]),
    "no statistics": lambda: nn.Sequential(
        nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)
    ),
}


@pytest.mark.parametrize("case", UNFIT)
def test_models_without_anything_to_optimise(case):
    with pytest.raises(ValueError, match=r"nothing in this \w+ can be optimised"):
        optimize_for_inference(UNFIT[case]())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.module2[0].register_forward_hook(print), r"Conv2d\(32, 64.* has hooks"),
        (lambda m: m.module2.append(nn.Tanh()), "Tanh.* follows a block"),
        (lambda m: setattr(m, "module3", nn.Identity()), "Identity is not a Sequential"),
        (
            lambda m: setattr(m.module_last, "padding_mode", "reflect"),
            "is not a plain convolution",
        ),
    ],
    ids=["hook", "appended", "replaced", "padding mode"],
)
def test_networks_that_do_something_else(change, message):
    model = UNet()
    change(model)
    with pytest.raises(ValueError, match=f"{message}.*; run the model as it is"):
        optimize_for_inference(model)
