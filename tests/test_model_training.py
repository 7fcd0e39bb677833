"""The networks train as in plain torch: fused, unfused, weights exchanged, in half precision."""

import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_close
from plain_twins import PLAIN, train_steps

import colorseg
from colorseg.models import NETWORKS, PoolUpsampleNet, UNet

pytestmark = pytest.mark.every_device

ALL = pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)


def images(*size, count=1, dtype=torch.float64):
    return [[torch.rand(*size, dtype=dtype)] for _ in range(count)]


def assert_same_steps(a, b, x):
    for got, want in zip(train_steps(a, x), train_steps(b, x), strict=True):
        assert_close(got[0], want[0])
        assert_close(got[1], want[1])
        for (name, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-9, msg=name)
    for name, tensor in b.state_dict().items():
        torch.testing.assert_close(a.state_dict()[name], tensor, rtol=1e-9, atol=1e-9, msg=name)
    a.eval(), b.eval()
    with torch.no_grad():
        assert_close(a(x[0][0]), b(x[0][0]))


@ALL
@pytest.mark.parametrize("size", [(16, 12), (9, 14), (5, 3)], ids=str)
def test_fused_and_unfused_train_alike(network, size):
    fused = network(num_filters=4, num_colors=5).double()
    unfused = colorseg.unfuse(copy.deepcopy(fused))
    assert_same_steps(fused, unfused, images(3, 1, *size, count=3))


@ALL
def test_weights_move_to_plain_torch_and_back(network, tmp_path):
    plain = PLAIN[network.__name__](5, 4, 6, 3).double()
    ours = network(5, 4, 6, 3).double()
    ours.load_state_dict(plain.state_dict())
    assert_same_steps(ours, plain, images(2, 3, 12, 8, count=3))
    again = PLAIN[network.__name__](5, 4, 6, 3).double().eval()
    again.load_state_dict(ours.state_dict())
    x = images(2, 3, 12, 8)[0][0]
    assert_close(again(x), ours(x))


@ALL
def test_loads_a_file_of_a_course(network, tmp_path):
    plain = PLAIN[network.__name__](3, 4, 6, 1)
    list(train_steps(plain, images(4, 1, 8, 8, dtype=torch.float32)))
    torch.save(plain.state_dict(), tmp_path / "unet.pth")
    x = images(2, 1, 12, 8, dtype=torch.float32)[0][0]
    ours = network(weights=tmp_path / "unet.pth").eval()
    assert_close(ours(x), plain.eval()(x))


@ALL
@pytest.mark.parametrize("training", [False, True])
def test_autocast(network, training, device):
    """Inference computes in bfloat16, training on the CPU in float32."""
    model = network(num_filters=4, num_colors=5).train(training)
    x = torch.rand(2, 1, 9, 8)
    exact = copy.deepcopy(model).double()(x.double())
    with torch.set_grad_enabled(training), torch.autocast(device, torch.bfloat16):
        y = model(x)
    assert y.dtype == (torch.float32 if training and device == "cpu" else torch.bfloat16)
    if training:
        y.square().sum().backward()
        exact.square().sum().backward()
        assert model.module1[0].weight.grad.dtype == torch.float32
        assert model.module1[1 + (network is PoolUpsampleNet)].running_mean.dtype == torch.float32
    assert_close(y, exact)


@ALL
def test_bfloat16_inference(network):
    model = network(num_filters=4, num_colors=5).eval()
    x = torch.rand(2, 1, 9, 8)
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(x.double())
        y = model.bfloat16()(x.bfloat16())
    assert y.dtype == torch.bfloat16
    assert_close(y, exact)


def shapes(n, generator):
    """Pictures (n, 1, 16, 16) of small bright and dark squares on a ramp, and labels (n, 16, 16).

    The color of a pixel follows from its brightness: 0 for the ground, 1 and 2 for the squares.
    """
    grey = torch.linspace(0.4, 0.6, 16).expand(n, 1, 16, 16).clone()
    label = torch.zeros(n, 16, 16, dtype=torch.long)
    for picture, labels in zip(grey, label, strict=True):
        for color, brightness in 3 * ((1, 0.9), (2, 0.1)):
            top, left = torch.randint(13, (2,), generator=generator, device="cpu").tolist()
            picture[:, top : top + 3, left : left + 3] = brightness
            labels[top : top + 3, left : left + 3] = color
    return grey, label


def learn(network, steps=50):
    """Losses of the first step and of the last five."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = network(num_filters=8, num_colors=3)
    optimizer = torch.optim.Adam(model.parameters(), 0.03)
    losses = []
    for _ in range(steps):
        grey, label = shapes(16, generator)
        loss = F.cross_entropy(model(grey), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses[0], sum(losses[-5:]) / 5


def test_networks_learn_and_skips_help():
    first, unet = learn(UNet)
    _, pool = learn(PoolUpsampleNet)  # its 4 x 4 cells are larger than the squares
    assert unet < 0.3 * first
    assert unet < 0.8 * pool < 0.5 * first
