"""The networks as one operator: results, gradients and running statistics of the plain twins."""

import copy

import pytest
import torch
from chain_cases import clear_images, count_chain_calls, run_plain, twins
from conftest import assert_close
from torch import nn

from colorseg.benchmark.memory import peak_memory
from colorseg.models import NETWORKS

pytestmark = pytest.mark.every_device

ALL = pytest.mark.parametrize("name", NETWORKS)
MODES = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


@pytest.fixture
def calls(monkeypatch):
    return count_chain_calls(monkeypatch)


def check_step(model, plain, x):
    """Logits, gradients of all parameters and of the image, and what batch norm keeps."""
    x, exact = x.clone().requires_grad_(), x.double().requires_grad_()
    y, want = model(x), run_plain(plain, exact)
    assert_close(y, want)
    cotangent = torch.randn_like(want)
    y.backward(cotangent.float())
    want.backward(cotangent)
    assert_close(x.grad, exact.grad)
    for (parameter_name, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert p.grad.dtype == torch.float32, parameter_name
        assert_close(p.grad, q.grad)
    check_buffers(model, plain)


def check_buffers(model, plain):
    for (name, got), want in zip(model.named_buffers(), plain.buffers(), strict=True):
        if got.is_floating_point():
            assert_close(got, want)
        else:
            assert got == want, name


@ALL
@MODES
@pytest.mark.parametrize("size", [(16, 12), (9, 14), (20, 7)], ids=str)
@pytest.mark.parametrize("n", [1, 3, 20])
def test_matches_float64(name, training, size, n, calls):
    model, plain = twins(name, training=training)
    check_step(model, plain, clear_images(plain, n, 1, *size))
    assert calls == [5]


@ALL
@pytest.mark.parametrize("kernel", [1, 2, 4, 5, 7])
def test_any_kernel(name, kernel, calls):
    model, plain = twins(name, kernel, 4, 6, 3)
    check_step(model, plain, clear_images(plain, 3, 3, 12, 8))
    assert calls == [5]


@ALL
@MODES
def test_default_size(name, training, calls):
    """32 filters: Winograd in PoolUpsampleNet and the last layer, on CIFAR's image size."""
    model, plain = twins(name, 3, 32, 24, 1, training=training)
    check_step(model, plain, clear_images(plain, 1, 1, 32, 32))
    assert calls == [5]


@ALL
def test_large_image(name, calls):
    """Bands of lines in every layer."""
    model, plain = twins(name, 3, 2, 2, 1)
    check_step(model, plain, clear_images(plain, 1, 1, 140, 133))
    assert calls == [5]


@ALL
@pytest.mark.parametrize(
    "change",
    [
        {"momentum": None},
        {"momentum": 0.5},
        {"eps": 0.1},
        {"running_mean": None, "running_var": None, "track_running_stats": False},
        {"weight": None},
        {"training": False},
    ],
    ids=str,
)
def test_batch_norms_of_all_kinds(name, change, calls):
    model, plain = twins(name)
    for network in (model, plain):
        for block in (network.module1, network.module3):
            norm = next(m for m in block if isinstance(m, nn.BatchNorm2d))
            for attribute, value in change.items():
                setattr(norm, attribute, value)
            if network is plain and norm.weight is None:  # torch has no gradient then on CUDA
                norm.__dict__["weight"] = torch.ones(norm.num_features, dtype=torch.float64)
    check_step(model, plain, clear_images(plain, 3, 1, 12, 8))
    assert calls == [5]


@ALL
def test_statistics_move_without_gradients(name, calls):
    model, plain = twins(name)
    x = clear_images(plain, 3, 1, 9, 14)
    with torch.no_grad():
        assert_close(model(x), run_plain(plain, x))
    check_buffers(model, plain)
    assert calls == [5]


@ALL
def test_frozen_parameters(name):
    model, plain = twins(name)
    x = clear_images(plain, 3, 1, 9, 14)
    frozen = [f"module2.{norm}.{end}" for norm in (0, 1, 2) for end in ("weight", "bias")]
    for network in (model, plain):
        for key, p in network.named_parameters():
            p.requires_grad_(key not in frozen)
    y, want = model(x), run_plain(plain, x)
    y.square().mean().backward(), want.square().mean().backward()
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None)
        if p.grad is not None:
            assert_close(p.grad, q.grad)


@ALL
@MODES
def test_gradient_of_the_image_alone(name, training):
    model, plain = twins(name, training=training)
    x = clear_images(plain, 3, 1, 9, 14)
    model.requires_grad_(False)
    leaf, exact = x.clone().requires_grad_(), x.double().requires_grad_()
    model(leaf).square().mean().backward()
    run_plain(plain, exact).square().mean().backward()
    assert_close(leaf.grad, exact.grad)
    assert all(p.grad is None for p in model.parameters())
    assert not model(x).requires_grad


@ALL
def test_second_backward(name):
    model, _ = twins(name)
    loss = model(torch.rand(3, 1, 12, 8)).square().mean()
    parameters = list(model.parameters())
    first = torch.autograd.grad(loss, parameters, retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(loss, parameters)))
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(loss, parameters)


@ALL
def test_no_second_derivative(name):
    model, _ = twins(name)
    x = torch.rand(3, 1, 12, 8, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"no second derivative.*colorseg\.unfuse\(model\)"):
        torch.autograd.grad(model(x).square().mean(), x, create_graph=True)


@ALL
def test_one_value_per_channel(name):
    """Refused as by PyTorch, and the batch leaves no trace."""
    model, _ = twins(name)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match="batch norm in training mode needs more than 1 value"):
        model(torch.rand(1, 1, 4, 4))
    assert all(torch.equal(before[key], t) for key, t in model.state_dict().items())


def step(model, x, labels):
    optimizer = torch.optim.Adam(model.parameters())

    def run():
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), labels).backward()
        optimizer.step()

    run()  # makes the optimizer's state
    return peak_memory(run)


@pytest.mark.cpu_only
@ALL
def test_needs_less_memory_than_eager(name):
    model, plain = twins(name, 3, 32, 24, 1)
    x, labels = torch.rand(100, 1, 32, 32), torch.randint(24, (100, 32, 32))
    assert step(model, x, labels) <= 0.7 * step(plain.float(), x, labels)
