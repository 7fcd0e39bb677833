"""Whole networks, one operator when nobody looks, under what users put around them or into them."""

import copy

import pytest
import torch
from chain_cases import clear_images, count_chain_calls, twins
from conftest import assert_close
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.utils import parametrizations
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint


@pytest.fixture
def calls(monkeypatch):
    return count_chain_calls(monkeypatch)


def network():
    """A UNet, its plain twin in float64, and images for both."""
    fused, plain = twins("unet")
    return fused, plain, clear_images(plain, 3, 1, 16, 12)


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def check_same(fused, plain):
    """Parameters, their gradients and buffers."""
    for p, q in zip(fused.parameters(), plain.parameters(), strict=True):
        assert_close(whole(p), q)
        assert_close(whole(p.grad), q.grad)
    for b, c in zip(fused.buffers(), plain.buffers(), strict=True):
        assert_close(b.float(), c)


def train(fused, plain, x, run=lambda model, x: model(x)):
    run(fused, x).square().mean().backward()
    run(plain, x.double()).square().mean().backward()
    check_same(fused, plain)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed(reentrant, calls):
    fused, plain, x = network()

    def run(model, x):
        return checkpoint(model, x.requires_grad_(), use_reentrant=reentrant)

    train(fused, plain, x, run)
    assert len(calls) == 2  # once more in backward: the statistics move twice, as in torch


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_by_blocks(reentrant):
    fused, plain, x = network()
    for model in (fused, plain):
        del model.module3, model.module4, model.module_last

    def run(model, x):
        for block in (model.module1, model.module2):
            x = checkpoint(block, x.requires_grad_(), use_reentrant=reentrant)
        return x

    train(fused, plain, x, run)


def test_accumulated(calls):
    fused, plain, x = network()
    for _ in range(3):
        train(fused, plain, x)
    assert len(calls) == 3


@pytest.mark.parametrize(
    "change",
    [parametrizations.weight_norm, parametrizations.spectral_norm],
    ids=["weight", "spectral"],
)
@pytest.mark.parametrize("name", ["module1.0", "module_last"])
def test_parametrized(change, name, calls):
    fused, plain, x = (t.double() for t in network())
    for model in (fused, plain):
        torch.manual_seed(1)
        change(model.get_submodule(name))
    train(fused, plain, x)
    assert_close(copy.deepcopy(fused).eval()(x), plain.eval()(x))
    assert calls == []


def test_averaged(calls):
    *models, x = network()
    results = []
    for model in models:
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
        model(x.to(next(model.parameters()))).square().mean().backward()
        torch.optim.SGD(model.parameters(), 0.1).step()
        average.update_parameters(model)
        results.append(average.eval()(x.to(next(model.parameters()))))
    assert_close(*results)
    assert len(calls) == 2


def test_compiled_whole_with_foreign_convolutions():
    torch.compiler.reset()
    fused, plain, x = (t.double() for t in network())
    for model in (fused, plain):
        model.module2[0].register_forward_hook(lambda module, args, y: 2 * y)
        parametrizations.weight_norm(model.module3[0])
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    assert_close(compiled(x), plain(x))


@pytest.fixture
def mesh(tmp_path):
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


SHARDED = {
    "network": lambda model: [],
    "blocks": lambda model: model.children(),
    "convolutions": lambda model: [
        m for m in model.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)
    ],
}


@pytest.mark.parametrize("parts", SHARDED.values(), ids=SHARDED)
def test_fully_sharded(parts, mesh):
    fused, plain, x = network()
    for part in parts(fused):
        fully_shard(part, mesh=mesh)
    fully_shard(fused, mesh=mesh)
    for _ in range(2):  # the second time after parameters were gathered and freed
        train(fused, plain, x)
    with torch.no_grad():
        assert_close(fused.eval()(x), plain.eval()(x.double()))
