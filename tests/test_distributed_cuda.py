"""Ranks on GPUs: NCCL, and fused blocks around torch's own ``SyncBatchNorm``."""

import pytest
import torch
from conftest import assert_close
from spawned import FLAGS, rows, run_python, share, spawn, torchrun
from torch import nn

import colorseg

pytestmark = pytest.mark.cuda


def network():
    torch.manual_seed(0)
    with torch.device("cpu"):  # the same in all processes
        block = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()
        return nn.Sequential(*block, nn.Conv2d(8, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())


def images():
    torch.manual_seed(1)
    return torch.rand(6, 3, 9, 10, dtype=torch.float64, device="cpu")


def results_of(model, x):
    """Its output, the gradients of all it has, and the running statistics, on the CPU."""
    x = x.clone().requires_grad_()
    y = model(x)
    leaves = [x, *model.parameters()]
    scale = torch.linspace(-1, 1, y[:1].numel(), dtype=y.dtype, device=y.device).view_as(y[:1])
    gradients = torch.autograd.grad(y, leaves, scale.expand_as(y))
    return [t.detach().cpu().double() for t in (y, *gradients, *model.buffers())]


def plain_and_fused(rank, ranks, shares):
    x = share(images(), shares, rank).cuda()
    models = network(), colorseg.fuse(network())
    convert = nn.SyncBatchNorm.convert_sync_batchnorm
    return [results_of(convert(model).cuda().double(), x) for model in models]


@pytest.mark.parametrize(
    ("backend", "shares"), [("nccl", (6,)), ("gloo", (3, 3)), ("gloo", (1, 5))], ids=str
)
def test_fused_blocks_around_torchs_sync_batch_norm(backend, shares, tmp_path):
    """Two ranks share the GPU, which NCCL refuses and gloo does not."""
    ranks = spawn(plain_and_fused, len(shares), tmp_path, shares, backend=backend)
    for plain, fused in ranks:
        for got, want in zip(fused, plain, strict=True):
            assert_close(got, want)
    one = results_of(network().cuda().double(), images().cuda())
    assert_close(torch.cat([fused[0] for _, fused in ranks]), one[0])
    for _, fused in ranks:
        assert_close(fused[-2], one[-2])  # the running variance of the last batch norm


def test_training_over_nccl_is_training(tmp_path):
    flags = [*FLAGS, "--epochs", "1", "--device", "cuda", "--sync-bn", "--out"]
    count = min(2, torch.cuda.device_count())
    runs = {
        "nccl": torchrun(*flags, str(tmp_path / "nccl"), count=count, timeout=200),
        "alone": run_python("-m", "colorseg", *flags, str(tmp_path / "alone"), timeout=200),
    }
    for done in runs.values():
        assert done.returncode == 0, done.stderr
    (nccl,), (alone,) = (rows(tmp_path / name) for name in runs)
    assert float(nccl["train_loss"]) == pytest.approx(float(alone["train_loss"]), rel=1e-3)
