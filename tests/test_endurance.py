"""Many calls, many threads, forked and spawned workers."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import skip
from torch.utils.data import DataLoader, Dataset

import colorseg
from colorseg import ops
from colorseg.models import UNet
from colorseg.palette import Palette

CALLS = int(os.environ.get("COLORSEG_CALLS", "1500"))  # of each operator; more takes longer
PALETTE = Palette.horse24().colors


def leaf(*size):
    return torch.randn(size, requires_grad=True)


def _with_gradient(y, *leaves):
    return [y.detach(), *torch.autograd.grad(y.sum(), leaves)]


def conv2d():
    x, w = leaf(2, 4, 9, 8), leaf(6, 4, 3, 3)
    return _with_gradient(ops.conv2d(x, w, padding=1), x, w)


def conv_bn_relu():
    x, w, scale, shift = leaf(2, 4, 9, 8), leaf(6, 4, 3, 3), leaf(6), leaf(6)
    mean, var = torch.zeros(6), torch.ones(6)
    norm = {"running_mean": mean, "running_var": var, "training": True, "resample": "maxpool2"}
    return _with_gradient(ops.conv_bn_relu(x, w, None, scale, shift, **norm), x, w, scale, shift)


def cross_entropy():
    z = leaf(2, 24, 8, 8)
    return _with_gradient(ops.color_cross_entropy(z, torch.rand(2, 3, 8, 8), PALETTE), z)


def soft_iou():
    z = leaf(2, 3, 8, 8)
    return _with_gradient(ops.soft_iou_loss(z, torch.randint(3, (2, 8, 8))), z)


def nearest():
    return [ops.nearest_color(torch.rand(2, 3, 8, 8), PALETTE)]


def training(model=UNet(num_filters=4, num_colors=3)):  # noqa: B008
    return _with_gradient(model(torch.rand(2, 1, 8, 8)), *model.parameters())


WORK = [conv2d, conv_bn_relu, cross_entropy, soft_iou, nearest, training]


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


@pytest.mark.parametrize("work", WORK, ids=lambda work: work.__name__)
def test_memory_stays(work):
    if not Path("/proc/self/statm").exists():
        skip("proc")
    for _ in range(CALLS // 3):
        work()
    before = resident()
    for _ in range(CALLS):
        work()
    # a leaked tensor of the smallest of them, 2 kB, would be 3 MB at 1500 calls
    assert resident() - before < 2


class Labels(Dataset):
    """Calls an operator in the worker."""

    def __len__(self):
        return 8

    def __getitem__(self, i):
        pictures = torch.full((1, 3, 40, 40), i / 8)
        return ops.nearest_color(pictures, PALETTE)[0]


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers(start):
    want = torch.stack([Labels()[i] for i in range(8)])  # the parent has used its threads
    loader = DataLoader(Labels(), 4, num_workers=2, multiprocessing_context=start)
    assert torch.equal(torch.cat(list(loader)), want)


def test_threads_at_once():
    torch.manual_seed(0)
    x, w = torch.randn(4, 4, 24, 24), torch.randn(8, 4, 3, 3)
    logits, target = torch.randn(4, 24, 16, 16), torch.rand(4, 3, 16, 16)
    model = UNet(num_filters=8).eval()
    fast = colorseg.optimize_for_inference(model)

    def work(_):
        a, b, z = (t.clone().requires_grad_() for t in (x, w, logits))
        y = ops.conv2d(a, b, padding=1)
        loss = ops.color_cross_entropy(z, target, PALETTE)
        grads = torch.autograd.grad(y.square().sum() + loss, (a, b, z))
        masks = ops.soft_iou_loss(logits, target.argmax(1))
        with torch.no_grad():
            return [y.detach(), *grads, masks, model(x[:, :1]), fast(x[:, :1])]

    want = work(0)
    with ThreadPoolExecutor(8) as pool:
        for got in pool.map(work, range(64)):
            assert all(map(torch.equal, got, want))


def test_forked_after_use():
    want = conv_of_ones()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)  # as DataLoader's workers: OpenMP's threads do not survive a fork
        os.write(write, b"1" if torch.equal(conv_of_ones(), want) else b"0")
        os._exit(0)
    os.close(write)
    assert os.read(read, 1) == b"1"
    os.waitpid(child, 0)


def conv_of_ones():
    return ops.conv2d(torch.ones(4, 8, 32, 32), torch.ones(8, 8, 3, 3), padding=1)
