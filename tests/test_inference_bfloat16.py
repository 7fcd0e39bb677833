"""optimize_for_inference in bfloat16: as near to float64 as PyTorch's own, in any shape."""

import copy
import io
import threading

import pytest
import torch
from chain_cases import run_plain, twins
from conftest import assert_close
from sequential_cases import SEQUENTIALS, randomize
from torch import nn
from torch.profiler import ProfilerActivity, profile

from colorseg import optimize_for_inference
from colorseg.models import NETWORKS, UNet
from colorseg.nn.packed import PackedChain

ALL = pytest.mark.parametrize("name", NETWORKS)
pytestmark = pytest.mark.usefixtures("bfloat16_kernels")


def optimized_twins(name, *arguments):
    model, plain = twins(name, *arguments, training=False)
    return optimize_for_inference(model, torch.bfloat16), plain


def images(*shape):
    """Numbers that bfloat16 holds exactly, so that only what is computed can differ."""
    return torch.rand(shape).bfloat16()


def error(y, want):
    return ((y.double() - want).norm() / want.norm()).item()


@ALL
@pytest.mark.parametrize("size", [(32, 32), (16, 12), (33, 30), (7, 9), (1, 1)], ids=str)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_matches_float64(name, size, n):
    optimized, plain = optimized_twins(name)
    x = images(n, 1, *size)
    y = optimized(x)
    assert y.dtype == torch.bfloat16
    assert_close(y, run_plain(plain, x))


@ALL
def test_no_worse_than_autocast(name):
    optimized, plain = optimized_twins(name, 3, 32, 24, 1)
    x = images(20, 1, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        theirs = copy.deepcopy(plain).float()(x.float())
    want = plain(x.double())
    assert error(optimized(x), want) <= error(theirs, want)


@ALL
@pytest.mark.parametrize("n", [0, 100])
def test_batches(name, n):
    optimized, plain = optimized_twins(name, 3, 32, 24, 1)
    x = images(n, 1, 16, 12)
    assert_close(optimized(x), run_plain(plain, x))


@ALL
@pytest.mark.parametrize("arguments", [(5, 7, 3, 3), (4, 4, 6, 3), (1, 1, 1, 1), (7, 6, 5, 2)])
def test_any_kernel_and_channels(name, arguments):
    optimized, plain = optimized_twins(name, *arguments)
    x = images(3, arguments[3], 12, 8)
    assert_close(optimized(x), run_plain(plain, x))


@ALL
def test_large_image(name):
    optimized, plain = optimized_twins(name, 3, 8, 7, 1)
    x = images(1, 1, 140, 133)
    assert_close(optimized(x), run_plain(plain, x))


@ALL
def test_layouts(name):
    optimized, plain = optimized_twins(name, 3, 8, 5, 3)
    x = images(2, 3, 16, 12).to(memory_format=torch.channels_last)
    y = optimized(x)
    assert_close(y, run_plain(plain, x))
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", [(16, 12), (9, 14), (40, 37)], ids=str)
@pytest.mark.parametrize("case", SEQUENTIALS)
def test_sequentials(case, size):
    model = SEQUENTIALS[case]()
    model = randomize(model) if case != "without gammas" else model.eval()
    optimized = optimize_for_inference(model, torch.bfloat16)
    assert any(isinstance(module, PackedChain) for module in optimized.modules())
    for n in (1, 3, 20):
        x = torch.randn(n, 3, *size).bfloat16()
        with torch.no_grad():
            assert_close(optimized(x), copy.deepcopy(model).double()(x.double()))


def test_what_is_no_chain_is_converted():
    model = randomize(nn.Sequential(UNet(num_in_channels=3), nn.Conv2d(24, 4, 3, groups=2)))
    x = images(3, 3, 12, 8)
    y = optimize_for_inference(model, torch.bfloat16)(x)
    assert y.dtype == torch.bfloat16
    assert next(model.parameters()).dtype == torch.float32
    assert_close(y, model.double()(x.double()))


@ALL
def test_nan_stays_in_its_image(name):
    optimized, _ = optimized_twins(name)
    x = images(20, 1, 16, 12)
    want = optimized(x)
    x[7] = float("nan")
    y = optimized(x)
    assert y[7].isnan().any()
    others = [i for i in range(20) if i != 7]
    assert torch.equal(y[others], want[others])


@ALL
def test_threads_share_a_copy(name):
    optimized, _ = optimized_twins(name)
    batches = [images(n, 1, 16, 12) for n in (1, 3, 8, 20)]
    wanted, wrong = [optimized(x) for x in batches], []

    def work(x, want):
        wrong.extend(x for _ in range(10) if not torch.equal(optimized(x), want))

    workers = [threading.Thread(target=work, args=pair) for pair in zip(batches, wanted)]  # noqa: B905
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []


@ALL
@pytest.mark.parametrize("size", [(1, 1, 16, 12), (3, 1, 16, 12), (20, 1, 16, 12), (1, 1, 88, 132)])
def test_same_bits_with_any_threads(name, size):
    """Fewer pieces than threads, as many, and more; more threads than cores."""
    optimized, _ = optimized_twins(name)
    x, before = images(*size), torch.get_num_threads()
    results = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        results.append(optimized(x))
    torch.set_num_threads(before)
    for result in results[1:]:
        assert torch.equal(result, results[0])


@ALL
@pytest.mark.parametrize("n", [1, 20])
def test_allocates_its_result_and_nothing_else(name, n):
    optimized, _ = optimized_twins(name)
    x = images(n, 1, 16, 12)
    y = optimized(x)  # makes the plan and the workspace
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        results = [optimized(x) for _ in range(50)]
    events = profiler.profiler.kineto_results.events()
    changes = [e.nbytes() for e in events if e.name() == "[memory]"]
    assert changes == [y.numel() * 2] * len(results)


def save_and_load(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@ALL
@pytest.mark.parametrize("duplicate", [copy.deepcopy, save_and_load, nn.Module.bfloat16])
def test_copies(name, duplicate):
    optimized, _ = optimized_twins(name)
    x = images(2, 1, 9, 14)
    want = optimized(x)
    assert torch.equal(duplicate(optimized)(x), want)


def test_other_images_and_machines_are_refused(monkeypatch):
    optimized, _ = optimized_twins("unet")
    with pytest.raises(RuntimeError, match="was optimised for bfloat16, got Float"):
        optimized(torch.rand(1, 1, 8, 8))
    optimized.chain.isa = "another"
    with pytest.raises(RuntimeError, match=r"for another and \w+_bf16 runs here; save the"):
        save_and_load(optimized)
