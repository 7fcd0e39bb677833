"""Fused models under what PyTorch's users put around models: all as with the plain twin."""

import copy
import logging

import pytest
import torch
from conftest import assert_close
from plain_twins import plain_block
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from torch.utils.checkpoint import checkpoint

import colorseg
from colorseg.models import UNet


def twins():
    """A network of two blocks and a convolution, plain and fused, in float64."""
    torch.manual_seed(0)
    blocks = (*plain_block(2, 4, 3, resample="maxpool2"), *plain_block(4, 6, 3))
    plain = nn.Sequential(*blocks, nn.Conv2d(6, 3, 1)).double()
    return plain, colorseg.fuse(copy.deepcopy(plain))


def images(n=4):
    return torch.randn(n, 2, 8, 10, dtype=torch.float64)


def check_same(fused, plain):
    """Parameters, their gradients and buffers."""
    for p, q in zip(fused.parameters(), plain.parameters(), strict=True):
        assert_close(p, q)
        assert (p.grad is None) == (q.grad is None)
        if p.grad is not None:
            assert_close(p.grad, q.grad)
    for b, c in zip(fused.buffers(), plain.buffers(), strict=True):
        assert_close(b.double(), c.double())


def test_functional_call_with_other_parameters():
    plain, fused = twins()
    others = {name: p.detach() + 0.1 for name, p in plain.named_parameters()}
    others = {name: p.requires_grad_() for name, p in others.items()}
    x, results = images(), []
    for model in (plain, fused):
        y = torch.func.functional_call(model, others, (x,))
        results.append([y, *torch.autograd.grad(y.square().sum(), list(others.values()))])
    for got, want in zip(results[1], results[0], strict=True):
        assert_close(got, want)


def test_functional_call_of_a_whole_network():
    model = UNet(num_filters=4, num_colors=3).double().eval()
    others = {name: p.detach() * 2 for name, p in model.named_parameters()}
    x = torch.rand(2, 1, 8, 8, dtype=torch.float64)
    got = torch.func.functional_call(model, others, (x,))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2)
    assert_close(got, model(x))


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


@pytest.mark.parametrize(
    "register",
    [
        lambda conv: parametrize.register_parametrization(conv, "weight", Doubled()),
        lambda conv: parametrizations.weight_norm(conv),
        lambda conv: parametrizations.spectral_norm(conv),
    ],
    ids=["own", "weight_norm", "spectral_norm"],
)
def test_parametrized_convolutions_run_themselves(register):
    plain, fused = twins()
    for model in (plain, fused):
        torch.manual_seed(1)
        register(model[0])
    x = images()
    for model in (plain, fused):
        model(x).square().sum().backward()
    check_same(fused, plain)
    assert_close(fused.eval()(x), plain.eval()(x))
    parametrize.remove_parametrizations(fused[0], "weight")
    parametrize.remove_parametrizations(plain[0], "weight")
    assert_close(fused(x), plain(x))


def test_averaged_models_and_their_statistics():
    plain, fused = twins()
    results = []
    for model in (plain, fused):
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        torch.manual_seed(2)
        for _ in range(3):
            optimizer.zero_grad()
            model(images()).square().mean().backward()
            optimizer.step()
            average.update_parameters(model)
        update_bn([images() for _ in range(2)], average)
        results.append(average.eval())
    check_same(results[1], results[0])
    x = images()
    assert_close(results[1](x), results[0](x))


def test_accumulated_gradients():
    plain, fused = twins()
    for model in (plain, fused):
        torch.manual_seed(3)
        for _ in range(3):
            (model(images()).square().mean() / 3).backward()
    check_same(fused, plain)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_blocks(reentrant):
    plain, fused = twins()
    for model in (plain, fused):
        x = images(3).fill_(0.5) + torch.arange(3.0).view(3, 1, 1, 1)
        x.requires_grad_()
        y = checkpoint(model, x, use_reentrant=reentrant)
        y.square().sum().backward()
    check_same(fused, plain)  # statistics move twice, as they do in torch


def test_parameter_groups_clipping_and_frozen_parts():
    plain, fused = twins()
    for model in (plain, fused):
        for p in model[0].parameters():
            p.requires_grad_(False)
        groups = [{"params": model[4].parameters(), "lr": 0.5}, {"params": model[-1].parameters()}]
        optimizer = torch.optim.SGD(groups, lr=0.1)
        torch.manual_seed(4)
        model(images()).square().sum().backward()
        nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], 0.1)
        optimizer.step()
    check_same(fused, plain)


def test_autocast_on_the_cpu():
    plain, fused = (model.float() for model in twins())
    x = images().float()
    with torch.autocast("cpu", torch.bfloat16):
        got, want = fused(x), plain(x)
    assert got.dtype == want.dtype
    assert_close(got, want.double(), torch.bfloat16)


def test_no_graph_breaks():
    torch.compiler.reset()
    explained = torch._dynamo.explain(twins()[1])(images())
    assert explained.graph_break_count == 0
    assert explained.graph_count == 1


def test_dynamic_quantization_leaves_blocks_alone():
    _, fused = twins()
    fused, x = fused.float().eval(), images().float()
    want = fused(x)
    quantized = torch.ao.quantization.quantize_dynamic(fused, {nn.Linear}, torch.qint8)
    assert_close(quantized(x), want.double())


class Conv2dReLU(nn.Sequential):
    """As segmentation_models_pytorch writes its decoders' blocks."""

    def __init__(self, i, o):
        super().__init__(
            nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU(True)
        )


class DecoderBlock(nn.Module):
    def __init__(self, i, skip, o):
        super().__init__()
        self.conv1, self.conv2 = Conv2dReLU(i + skip, o), Conv2dReLU(o, o)

    def forward(self, x, skip):
        x = nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")
        return self.conv2(self.conv1(torch.cat([x, skip], 1)))


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU()
        )
        self.down = nn.Sequential(nn.Conv2d(4, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.SiLU())
        self.block, self.head = DecoderBlock(8, 4, 4), nn.Sequential(nn.Conv2d(4, 2, 3, padding=1))

    def forward(self, x):
        skip = self.stem(x)
        return self.head(self.block(self.down(skip), skip))


@pytest.mark.parametrize("training", [True, False])
def test_a_decoder_of_another_library(training, caplog):
    caplog.set_level(logging.INFO, "colorseg")
    plain = Decoder().double().train(training)
    fused = colorseg.fuse(copy.deepcopy(plain), verbose=True)
    assert caplog.messages[-1] == "blocks fused: 4"
    x = torch.randn(2, 3, 16, 12, dtype=torch.float64)
    for model in (plain, fused):
        model(x).square().sum().backward()
    check_same(fused, plain)


def test_the_number_of_fused_blocks_of_a_resnet(caplog):
    caplog.set_level(logging.INFO, "colorseg")
    backbone = colorseg.models.deeplabv3("resnet18", 2)
    colorseg.fuse(colorseg.unfuse(backbone), verbose=True)
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in backbone.modules())
    assert caplog.messages[-1] == f"blocks fused: {norms}"


def test_data_parallel_sharding_of_one_process(tmp_path):
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    plain, fused = twins()
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        sharded = fully_shard(fused, mesh=mesh)
        x = images()
        for model in (plain, sharded):
            model(x).square().sum().backward()
        for p, q in zip(sharded.parameters(), plain.parameters(), strict=True):
            assert_close(p.full_tensor(), q)
            assert_close(p.grad.full_tensor(), q.grad)
    finally:
        distributed.destroy_process_group()
