"""Sizes of the networks: table and closed formulas of the assignment, connections counted."""

import copy

import pytest
import torch
from torch import nn

import colorseg
from colorseg.models import NETWORKS, ConvTransposeNet, PoolUpsampleNet, UNet, summary

# weights, all parameters, outputs of convolutions, + pool/upsample, + batch norm, nominal and exact
# connections: kernel 3, 32 filters, 24 colors, grey 32 x 32
TABLE = {
    "pool_upsample": (49_248, 49_728, 81_920, 126_976, 172_032, 13_271_040, 12_322_176),
    "conv_transpose": (49_248, 49_728, 69_632, 69_632, 114_688, 9_510_912, 9_023_520),
    "unet": (56_376, 56_856, 69_632, 69_632, 114_688, 11_501_568, 10_932_096),
}


def sizes(s):
    outputs = (s.outputs(), s.outputs(count_pool=True), s.outputs(count_pool=True, count_bn=True))
    connections = (s.total("connections"), s.total("exact_connections"))
    return (s.total("weights"), s.parameters, *outputs, *connections)


def formulas(name, k, nf, nc, nic, height, width):
    """The closed formulas, without the exact connections; P pixels are a multiple of 16."""
    p = height * width
    weights = k * k * (nic * nf + 4 * nf**2 + nf * nc + nc**2)
    outputs = [
        p * (10 * nf + 32 * nc) // 16,
        p * (10 * nf + 32 * nc) // 16,
        p * (20 * nf + 48 * nc) // 16,
    ]
    connections = nic * nf / 4 + nf**2 / 4 + nf * nc / 4 + nc**2
    if name == "unet":
        weights += k * k * (nf * nc + nic * nc)
        connections += nf * nc / 4 + nic * nc
    if name == "pool_upsample":
        outputs = [p * n // 16 for n in (25 * nf + 20 * nc, 35 * nf + 36 * nc, 45 * nf + 52 * nc)]
        connections = nic * nf + 5 / 8 * nf**2 + nf * nc / 4 + nc**2
    biases_and_norms = (4 * nf + 2 * nc) + (8 * nf + 2 * nc)
    return (weights, weights + biases_and_norms, *outputs, p * k * k * connections)


@pytest.mark.parametrize("name", NETWORKS)
def test_table_of_the_assignment(name):
    assert sizes(summary(NETWORKS[name](), (1, 32, 32))) == TABLE[name]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    "arguments", [(3, 32, 24, 1), (5, 6, 10, 3), (7, 16, 3, 1), (4, 2, 5, 2)], ids=str
)
@pytest.mark.parametrize("size", [(32, 32), (16, 24)], ids=str)
def test_closed_formulas(name, arguments, size):
    s = summary(NETWORKS[name](*arguments), (arguments[3], *size))
    assert sizes(s)[:-1] == formulas(name, *arguments, *size)


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_doubling_height_and_width(network):
    model = network(num_filters=4)
    weights, parameters, *rest = sizes(summary(model, (1, 16, 20)))[:-1]
    assert sizes(summary(model, (1, 32, 40)))[:-1] == (weights, parameters, *(4 * n for n in rest))


def counted_connections(conv, size):
    """Taps inside the map, by convolving ones with ones (every channel the same)."""
    ones = torch.ones(1, conv.in_channels, *size, dtype=torch.float64)
    conv = copy.deepcopy(conv).double()
    nn.init.ones_(conv.weight)
    nn.init.zeros_(conv.bias)
    with torch.no_grad():
        return int(conv(ones).sum())


CONVS = {
    "stride 2": nn.Conv2d(3, 4, 3, 2, 1),
    "same": nn.Conv2d(3, 4, 4, padding="same"),
    "valid": nn.Conv2d(3, 4, 3, padding="valid"),
    "rectangular": nn.Conv2d(3, 4, (5, 2), (1, 2), (3, 0), (2, 1)),
    "groups": nn.Conv2d(4, 6, 3, padding=2, groups=2),
    "transposed": nn.ConvTranspose2d(3, 4, 3, 2, 1, 1),
    "transposed, groups": nn.ConvTranspose2d(4, 6, 5, 3, 1, groups=2, dilation=2),
}


@pytest.mark.parametrize("conv", CONVS.values(), ids=CONVS)
def test_exact_connections_by_counting(conv):
    s = summary(conv, (conv.in_channels, 9, 12))
    assert s.total("exact_connections") == counted_connections(conv, (9, 12))
    assert s.total("connections") >= s.total("exact_connections")
    assert s.total("weights") == conv.weight.numel()


def test_layers_in_order_with_their_shapes():
    layers = summary(PoolUpsampleNet(), (1, 32, 32)).layers
    assert [x.name for x in layers[:5]] == [*(f"module1.{i}" for i in range(4)), "module2.0"]
    assert [x.shape for x in layers[:3]] == [(32, 32, 32), (32, 16, 16), (32, 16, 16)]
    assert (layers[0].weights, layers[0].biases, layers[2].bn_parameters) == (288, 32, 64)
    assert layers[-1].kind == "Conv2d"
    assert layers[-1].shape == (24, 32, 32)


def test_printed_totals():
    text = str(summary(UNet(), (1, 32, 32)))
    assert "parameters 56,856 = weights 56,376 + biases 176 + BN 304" in text
    assert "convolutions 69,632; with pool/upsample 69,632; with BN too 114,688" in text
    assert "11,501,568 nominal, 10,932,096 without taps on zero padding" in text
    assert "input 1 x 32 x 32" in text
    assert len(text.splitlines()) == 1 + 13 + 3
    assert text.splitlines()[7].split()[:2] == ["module3.0", "ConvTranspose2d"]


def test_the_model_is_not_changed():
    model = UNet(num_filters=4).double()
    state, classes = copy.deepcopy(model.state_dict()), [type(m) for m in model.modules()]
    summary(model, (1, 8, 8))
    assert model.training
    assert [type(m) for m in model.modules()] == classes
    assert not any(m._forward_hooks for m in model.modules())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name])


def test_fused_and_unfused_count_alike():
    model = ConvTransposeNet(num_filters=4)
    fused = summary(model, (1, 12, 8))
    assert summary(colorseg.unfuse(model), (1, 12, 8)) == fused


def test_other_layers_count():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 10), nn.PReLU())
    model.scale = nn.Parameter(torch.ones(7))
    found = summary(model, (3, 8, 8))
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert found.total("others") == 1450 + 1 + 7
    assert "= weights 108 + biases 4 + BN 0 + other layers 1,458" in str(found)
