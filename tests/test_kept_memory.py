"""Memory of large tensors that is kept for the next one of its size."""

import os
import threading

import pytest
import torch

import colorseg
from colorseg import _C, ops
from colorseg.models import UNet
from colorseg.palette import Palette

FORMATS = [torch.contiguous_format, torch.channels_last]
SIDE = 96  # large enough that every map is kept


@pytest.fixture(autouse=True)
def restored():
    limit = colorseg.limit_kept_memory(0)  # so that nothing of another test is left
    colorseg.limit_kept_memory(limit)
    yield
    colorseg.limit_kept_memory(limit)


def leaf(*size, layout=torch.contiguous_format):
    torch.manual_seed(sum(size))
    return torch.randn(size).to(memory_format=layout).requires_grad_()


def _with_gradient(y, *leaves):
    return [y.detach(), *torch.autograd.grad(y.square().sum(), leaves)]


def conv2d(layout):
    x, w = leaf(2, 8, SIDE, SIDE, layout=layout), leaf(8, 8, 3, 3)
    return _with_gradient(ops.conv2d(x, w, padding=1), x, w)


def conv_bn_relu(layout):
    x, w, scale = leaf(2, 8, SIDE, SIDE, layout=layout), leaf(8, 8, 3, 3), leaf(8)
    y = ops.conv_bn_relu(x, w, None, scale, scale, None, None, training=True, resample="maxpool2")
    return _with_gradient(y, x, w, scale)


def losses(layout):
    z = leaf(4, 24, SIDE, SIDE, layout=layout)
    rgb = torch.rand(4, 3, SIDE, SIDE)
    labels = torch.randint(24, (4, SIDE, SIDE), generator=torch.Generator().manual_seed(1))
    return [
        *_with_gradient(ops.color_cross_entropy(z, rgb, Palette.horse24().colors), z),
        *_with_gradient(ops.soft_iou_loss(z, labels), z),
    ]


def network(layout):
    torch.manual_seed(0)
    model = UNet(num_filters=8, num_colors=8).to(memory_format=layout)
    x = torch.rand(2, 1, SIDE, SIDE)
    trained = _with_gradient(model(x), *model.parameters())
    with torch.no_grad():
        return [*trained, colorseg.optimize_for_inference(model.eval())(x)]


@pytest.mark.parametrize("layout", FORMATS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("work", [conv2d, conv_bn_relu, losses, network])
def test_the_same_bits_and_layouts_as_in_torchs_memory(work, layout):
    colorseg.limit_kept_memory(0)
    expected = work(layout)
    assert _C.kept_memory() == 0
    colorseg.limit_kept_memory(1 << 28)
    for _ in range(2):  # in new memory, then in kept memory
        results = work(layout)
        for result, wanted in zip(results, expected, strict=True):
            assert torch.equal(result, wanted)
            assert result.stride() == wanted.stride()
        del result, results
        atens = work is conv2d and layout == torch.channels_last
        assert atens or _C.kept_memory() > 0


def test_memory_is_used_again_and_never_twice_at_once():
    x, w = torch.randn(2, 8, SIDE, SIDE), torch.randn(8, 8, 3, 3)
    first = ops.conv2d(x, w, padding=1)
    second = ops.conv2d(-x, w, padding=1)
    assert first.data_ptr() != second.data_ptr()
    assert torch.equal(first, -second)
    where, part = first.data_ptr(), first[1]
    del first
    assert _C.kept_memory() == 0, "a view of it lives"
    del part
    size = 2 * 8 * SIDE * SIDE * 4
    assert size <= _C.kept_memory() <= 1.125 * size
    assert ops.conv2d(x, w, padding=1).data_ptr() == where
    assert ops.conv2d(x[..., :-1], w, padding=1).data_ptr() == where, "of a similar size"
    assert where % 64 == 0


def test_the_limit():
    size = 2 * 8 * SIDE * SIDE * 4
    x, w = torch.randn(2, 8, SIDE, SIDE), torch.randn(8, 8, 3, 3)
    assert colorseg.limit_kept_memory(3 * size) == 256 * 2**20
    results = [ops.conv2d(x, w, padding=1) for _ in range(5)]
    results.clear()
    assert size <= _C.kept_memory() <= 3 * size
    assert colorseg.limit_kept_memory(0) == 3 * size
    assert _C.kept_memory() == 0
    with pytest.raises(ValueError, match="size must be at least 0 bytes, got -1"):
        colorseg.limit_kept_memory(-1)


def test_small_tensors_are_torchs():
    ops.conv2d(torch.randn(2, 8, 16, 16), torch.randn(8, 8, 3, 3), padding=1)
    assert _C.kept_memory() == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_fork_while_others_take_and_give():
    x, w = torch.randn(1, 8, SIDE, SIDE), torch.randn(8, 8, 3, 3)
    done = threading.Event()

    def work():
        torch.set_num_threads(1)
        while not done.is_set():
            ops.conv2d(x, w, padding=1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            child = os.fork()
            if child == 0:
                _C.limit_kept_memory(1 << 20)  # takes the lock
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        done.set()
        for thread in threads:
            thread.join()
