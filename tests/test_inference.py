"""optimize_for_inference: what the networks compute, on any thread and without copies."""

import copy
import io
import threading

import pytest
import torch
from chain_cases import run_plain, twins
from conftest import assert_close
from torch.profiler import ProfilerActivity, profile

from colorseg import optimize_for_inference
from colorseg.models import NETWORKS

ALL = pytest.mark.parametrize("name", NETWORKS)


def optimized_twins(name, *arguments):
    model, plain = twins(name, *arguments, training=False)
    return optimize_for_inference(model), plain


@ALL
@pytest.mark.parametrize("size", [(32, 32), (16, 12), (33, 30), (7, 9), (1, 1)], ids=str)
@pytest.mark.parametrize("n", [1, 3, 8])
def test_matches_float64(name, size, n):
    optimized, plain = optimized_twins(name)
    x = torch.rand(n, 1, *size)
    assert_close(optimized(x), run_plain(plain, x))


@ALL
@pytest.mark.parametrize("n", [0, 100])
def test_batches(name, n):
    optimized, plain = optimized_twins(name, 3, 32, 24, 1)
    x = torch.rand(n, 1, 16, 12)
    assert_close(optimized(x), run_plain(plain, x))


@ALL
@pytest.mark.parametrize("kernel", [1, 2, 4, 5, 7])
def test_any_kernel(name, kernel):
    optimized, plain = optimized_twins(name, kernel, 4, 6, 3)
    x = torch.rand(3, 3, 12, 8)
    assert_close(optimized(x), run_plain(plain, x))


@ALL
def test_large_image(name):
    """Bands of lines, and Winograd in the middle of them."""
    optimized, plain = optimized_twins(name, 3, 8, 8, 1)
    x = torch.rand(1, 1, 140, 133)
    assert_close(optimized(x), run_plain(plain, x))


@ALL
@pytest.mark.parametrize("layout", ["channels_last", "sliced"])
def test_layouts(name, layout):
    optimized, plain = optimized_twins(name, 3, 8, 5, 3)
    x = torch.rand(2, 3, 16, 12)
    if layout == "channels_last":
        x = x.to(memory_format=torch.channels_last)
    else:
        x = torch.rand(2, 3, 16, 25)[..., ::2][..., :12]
    y = optimized(x)
    assert_close(y, run_plain(plain, x))
    if layout == "channels_last":
        assert y.is_contiguous(memory_format=torch.channels_last)


@ALL
def test_threads_share_a_copy(name):
    """Each with its own batch size, so plans and workspaces of all sizes are in use at once."""
    optimized, plain = optimized_twins(name)
    batches = [torch.rand(n, 1, 16, 12) for n in (1, 3, 8, 20)]
    wrong = []

    def work(x):
        want = run_plain(plain, x)
        for _ in range(10):
            error = (optimized(x) - want).abs().max() / want.abs().max()
            wrong.extend([error.item()] if not error < 1e-5 else [])

    workers = [threading.Thread(target=work, args=(x,)) for x in batches]
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
    x, before = torch.rand(size), torch.get_num_threads()
    results = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        results.append(optimized(x))
    torch.set_num_threads(before)
    for result in results[1:]:
        assert torch.equal(result, results[0])


@ALL
def test_sizes_in_turn(name):
    """More than plans are kept, each size twice."""
    optimized, plain = optimized_twins(name)
    for size in 2 * [(n, 1, h, w) for n in (1, 2, 5) for h in (8, 12) for w in (8, 12, 20)]:
        x = torch.rand(size)
        assert_close(optimized(x), run_plain(plain, x))


def save_and_load(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, save_and_load])
@ALL
def test_copies(name, duplicate):
    optimized, _ = optimized_twins(name)
    x = torch.rand(2, 1, 9, 14)
    assert torch.equal(duplicate(optimized)(x), optimized(x))


@ALL
@pytest.mark.parametrize("n", [1, 20])
def test_allocates_its_result_and_nothing_else(name, n):
    optimized, _ = optimized_twins(name)
    x = torch.rand(n, 1, 16, 12)
    y = optimized(x)  # makes the plan and the workspace
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        results = [optimized(x) for _ in range(50)]
    events = profiler.profiler.kineto_results.events()
    changes = [e.nbytes() for e in events if e.name() == "[memory]"]
    assert changes == [y.numel() * 4] * len(results)


def test_weights_packed_for_another_instruction_set_are_refused():
    optimized, _ = optimized_twins("unet")
    optimized.chain.isa = "another"
    with pytest.raises(RuntimeError, match=r"optimised for another and \w+ runs here; save the"):
        save_and_load(optimized)
