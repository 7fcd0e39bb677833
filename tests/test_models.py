"""The three networks: their parameters, any image size, layouts, and what they refuse."""

import pytest
import torch
from chain_cases import padded
from conftest import assert_close
from plain_twins import PLAIN
from torch import nn

from colorseg.models import NETWORKS, ConvTransposeNet, PoolUpsampleNet, UNet

pytestmark = pytest.mark.every_device

ALL = pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
CONVS = {  # name: weight shapes of module1 ... module4, module_last
    "pool_upsample": [(32, 1), (64, 32), (32, 64), (24, 32), (24, 24)],
    "conv_transpose": [(32, 1), (64, 32), (64, 32), (32, 24), (24, 24)],
    "unet": [(32, 1), (64, 32), (64, 32), (64, 24), (24, 25)],
}


def expected_parameters(name):
    """Names and shapes in order: 4 blocks of 4 and the last layer's 2."""
    channels, norm = [32, 64, 32, 24, 24], 2 if name == "pool_upsample" else 1
    rows = []
    for number, (weight, out) in enumerate(zip(CONVS[name], channels, strict=True), 1):
        prefix = f"module{number}." if number < 5 else "module_last."
        rows += [(f"{prefix}0.weight", (*weight, 3, 3)), (f"{prefix}0.bias", (out,))]
        rows += [(f"{prefix}{norm}.weight", (out,)), (f"{prefix}{norm}.bias", (out,))]
    last = [(name.replace("last.0", "last"), shape) for name, shape in rows[-4:-2]]
    return rows[:-4] + last


@pytest.mark.parametrize(
    ("name", "total"), [("pool_upsample", 49_728), ("conv_transpose", 49_728), ("unet", 56_856)]
)
def test_parameter_table(name, total):
    rows = [(key, tuple(p.shape)) for key, p in NETWORKS[name]().named_parameters()]
    assert rows == expected_parameters(name)
    assert len(rows) == 18
    assert sum(torch.Size(shape).numel() for _, shape in rows) == total


def test_parameter_names_of_the_report():
    names = [name for name, _ in PoolUpsampleNet().named_parameters()]
    assert names[:4] == ["module1.0.weight", "module1.0.bias", "module1.2.weight", "module1.2.bias"]
    assert names[-2:] == ["module_last.weight", "module_last.bias"]
    assert [name for name, _ in ConvTransposeNet().named_parameters()][2] == "module1.1.weight"


@ALL
def test_same_initial_weights_as_plain_torch(network):
    torch.manual_seed(2)
    got = network(5, 4, 6, 3).state_dict()
    torch.manual_seed(2)
    want = PLAIN[network.__name__](5, 4, 6, 3).state_dict()
    assert list(got) == list(want)
    assert all(torch.equal(got[name], want[name]) for name in want)


@ALL
@pytest.mark.parametrize(
    "size", [(32, 32), (33, 33), (34, 34), (64, 64), (100, 75), (1, 1)], ids=str
)
@pytest.mark.parametrize("training", [True, False])
def test_any_size(network, size, training):
    model = network(num_filters=4, num_colors=5).double().train(training)
    plain = PLAIN[network.__name__](nf=4, nc=5).double().train(training)
    plain.load_state_dict(model.state_dict())
    x = torch.rand(2, 1, *size, dtype=torch.float64)
    assert_close(model(x), plain(padded(x))[..., : size[0], : size[1]])


@ALL
@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_kernel_and_input_channels(network, kernel, channels):
    model = network(kernel, 4, 5, channels).double()
    plain = PLAIN[network.__name__](kernel, 4, 5, channels).double()
    plain.load_state_dict(model.state_dict())
    x = torch.rand(2, channels, 12, 8, dtype=torch.float64)
    y = model(x)
    assert y.shape == (2, 5, 12, 8)
    assert_close(y, plain(x))


@ALL
@pytest.mark.parametrize("training", [True, False])
def test_an_empty_batch(network, training):
    y = network(num_filters=4).train(training)(torch.zeros(0, 1, 33, 32))
    assert y.shape == (0, 24, 33, 32)


@ALL
def test_channels_last_in_and_out(network):
    model = network(num_filters=4, num_in_channels=3)
    x = torch.rand(2, 3, 16, 12)
    want = model(x)
    assert want.is_contiguous()
    model = model.to(memory_format=torch.channels_last)
    got = model(x.contiguous(memory_format=torch.channels_last))
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert_close(got, want)


@ALL
def test_module_last_is_bare(network):
    last = network().module_last
    assert isinstance(last, nn.Conv2d)
    assert last.kernel_size == (3, 3)


@pytest.mark.cpu_only
@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (
            torch.zeros(1, 32, 32),
            ValueError,
            r"UNet takes images \(N, 1, H, W\), got \(1, 32, 32\)",
        ),
        (torch.zeros(1, 3, 32, 32), ValueError, r"UNet takes images \(N, 1, H, W\), got \(1, 3"),
        (
            torch.zeros(1, 1, 8, 8).byte(),
            TypeError,
            "floating-point .* got torch.uint8; divide bytes",
        ),
        (torch.zeros(1, 1, 0, 8), RuntimeError, "a kernel of 3 x 3 does not fit"),
        (torch.zeros(1, 1, 8, 8).double(), RuntimeError, "weight must have the dtype of x, Double"),
    ],
)
def test_wrong_images(x, error, message):
    with pytest.raises(error, match=message):
        UNet(num_filters=2)(x)


@pytest.mark.parametrize("name", ["kernel", "num_filters", "num_colors", "num_in_channels"])
@pytest.mark.parametrize("value", [0, -3, 2.5, "3"])
def test_wrong_arguments(name, value):
    with pytest.raises(ValueError, match=f"{name} must be a positive int, got {value!r}"):
        UNet(**{name: value})
