"""Networks and training steps that are replayed as CUDA graphs."""

import copy
import logging
import pickle
import threading

import pytest
import torch
from conftest import assert_close
from test_inference_deeplab import exact, randomized
from torch import nn

import colorseg
from colorseg import models, optimize_for_inference
from colorseg.data import load
from colorseg.models import NETWORKS
from colorseg.nn import graphed
from colorseg.nn.folded import FoldedConv2d
from colorseg.nn.graphed import MAX_GRAPHS, GraphedNetwork, Recording
from colorseg.training import Config, fit

on_gpu = pytest.mark.cuda
ALL = pytest.mark.parametrize("name", NETWORKS)


def network(name="unet", channels=1):
    return NETWORKS[name](num_filters=8, num_colors=5, num_in_channels=channels).eval()


@on_gpu
@ALL
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_replays_give_the_bits_of_the_network(name, dtype):
    optimized = optimize_for_inference(network(name), dtype)
    plain = copy.deepcopy(optimized.network)
    results = []
    for size in ((3, 16, 12), (1, 32, 32), (3, 16, 12), (2, 9, 14)):
        x = torch.rand(size[0], 1, *size[1:]).to(dtype)
        with torch.no_grad():
            results.append((optimized(x), plain(x)))
    for got, want in results:  # later replays left them as they were
        assert got.dtype == dtype
        assert torch.equal(got, want)
    assert len(optimized._recordings) == 3


@on_gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_types_keep_batch_norms_in_float32(dtype):
    model = network()
    optimized = optimize_for_inference(model, dtype)
    norms = [m for m in optimized.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {t.dtype for m in norms for t in (m.weight, m.running_var)} == {torch.float32}
    assert torch.equal(norms[0].running_mean, model.module1[1].running_mean)
    x = torch.rand(2, 1, 16, 12).to(dtype)
    assert_close(optimized(x), copy.deepcopy(model).double()(x.double()))


@on_gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("deterministic", [True, False])  # cuDNN fuses where it need not be
def test_batch_norms_of_a_resnet_are_folded_in_half_types(deterministic, dtype, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", deterministic)
    model = randomized(models.deeplabv3("resnet50", 3, aux=True)).eval()
    x = torch.randn(2, 3, 65, 80)
    optimized = optimize_for_inference(model, dtype)
    assert any(isinstance(m, FoldedConv2d) for m in optimized.modules())
    got, want = optimized(x.to(dtype))["out"], exact(model, x)["out"]
    with torch.no_grad(), torch.autocast("cuda", dtype):
        theirs = colorseg.unfuse(copy.deepcopy(model))(x)["out"]
    assert got.dtype == dtype
    assert (got - want).norm() < 1.5 * (theirs - want).norm()


@on_gpu
def test_layouts_and_inference_mode():
    model = network(channels=3)
    optimized, x = optimize_for_inference(model), torch.rand(2, 3, 16, 12)
    with torch.inference_mode():
        first = optimized(x)
    last = optimized(x.to(memory_format=torch.channels_last))
    assert first.is_contiguous()
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(first, last)
    assert torch.equal(optimized(x), first)


@on_gpu
def test_it_is_independent_of_the_model_it_was_made_from():
    model, x = network(), torch.rand(2, 1, 16, 12)
    optimized, want = optimize_for_inference(model), model(x)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
    assert_close(optimized(x), want.double())


@on_gpu
def test_a_dict_of_results():
    model = models.deeplabv3("resnet18", 3).eval()
    x = torch.rand(2, 3, 33, 40)
    with torch.no_grad():
        want = model(x)["out"]
    optimized = optimize_for_inference(model)
    assert_close(optimized(x)["out"], want)
    assert_close(optimized(x)["out"], want)
    assert None not in optimized._recordings.values()


@on_gpu
def test_threads_share_a_network():
    optimized = optimize_for_inference(network())
    inputs = [torch.rand(1 + i % 3, 1, 16, 12) for i in range(12)]
    want = [optimized(x) for x in inputs]
    torch.cuda.synchronize()
    got = [None] * len(inputs)

    def work(first):
        with torch.cuda.stream(torch.cuda.Stream()):
            for i in range(first, len(inputs), 4):
                got[i] = optimized(inputs[i])
            torch.cuda.current_stream().synchronize()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(map(torch.equal, got, want))


class Waits(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) if x.sum().item() > 0 else x


@on_gpu
def test_what_waits_for_the_device_runs_without_a_graph(caplog):
    model, x = Waits(1, 2, 3), torch.rand(2, 1, 8, 8)
    optimized = optimize_for_inference(model)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(optimized(x), model(x))
        assert torch.equal(optimized(x), model(x))
    assert len(caplog.records) == 1
    assert "without a CUDA graph: recording failed" in caplog.text
    model = network()  # random numbers can be drawn after the failure, and graphs recorded
    assert torch.equal(optimize_for_inference(model)(x), model(x).detach())


@on_gpu
def test_autocast_is_a_reason(caplog):
    optimized, x = optimize_for_inference(network()), torch.rand(2, 1, 16, 12)
    with torch.autocast("cuda", torch.bfloat16), caplog.at_level(logging.WARNING):
        assert optimized(x).dtype == torch.bfloat16
    assert "without a CUDA graph: autocast is enabled" in caplog.text


@on_gpu
@pytest.mark.parametrize("schedule", ["constant", "poly"])
@pytest.mark.parametrize("amp", [False, True], ids=["float32", "bfloat16"])
def test_recorded_training_is_training(tmp_path, schedule, amp):
    """Epochs with a smaller last batch, and a run that is interrupted."""
    train, val = load("sample")
    train = train.subset(slice(0, 70))
    histories = []
    with torch.device("cpu"):
        for name, graphs, epochs in (("graph", True, 4), ("eager", False, 4)):
            torch.manual_seed(0)
            model = NETWORKS["unet"](num_filters=8)
            config = Config(
                epochs=epochs, batch_size=16, device="cuda", out=tmp_path / name, amp=amp,
                schedule=schedule, cuda_graphs=graphs,
            )  # fmt: skip
            histories.append(fit(model, train, val, config))
    for got, want in zip(*(history.epochs for history in histories), strict=True):
        assert got.train_loss == pytest.approx(want.train_loss, rel=0.02 if amp else 1e-3)
        assert got.val_loss == pytest.approx(want.val_loss, rel=0.05 if amp else 1e-2)


# What follows needs no GPU: a network is called where a graph would be replayed.


class FakeGraph:
    def __init__(self, recorded, given, result):
        self.recorded, self.given, self.result = recorded, given, result

    def replay(self):
        self.result.copy_(self.recorded(self.given))


@pytest.fixture
def recordings(monkeypatch):
    """A list that gets the shape of every recording."""
    shapes = []

    def record(recorded, given):
        if getattr(recorded, "refuses", False):
            raise RuntimeError("no\nfor reasons of its own")
        shapes.append(tuple(given.shape))
        result = recorded(given)
        return Recording(FakeGraph(recorded, given, result), given, result, {})

    monkeypatch.setattr(graphed, "record", record)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "the only one")
    monkeypatch.setattr(torch.cuda, "device", torch.device)
    why_not = GraphedNetwork._why_not
    on_cpu = "inputs on cpu are not on CUDA"
    monkeypatch.setattr(
        GraphedNetwork,
        "_why_not",
        lambda self, x: None if why_not(self, x) == on_cpu else why_not(self, x),
    )
    return shapes


def test_a_recording_for_each_shape_and_the_oldest_goes(recordings):
    model = network()
    optimized = GraphedNetwork(copy.deepcopy(model))
    for n in [*range(1, MAX_GRAPHS + 2), 1, MAX_GRAPHS + 1]:
        x = torch.rand(n, 1, 8, 8)
        assert torch.equal(optimized(x), model(x))
    assert [shape[0] for shape in recordings] == [*range(1, MAX_GRAPHS + 2), 1]
    assert len(optimized._recordings) == MAX_GRAPHS


def test_results_belong_to_the_caller(recordings):
    optimized, x = GraphedNetwork(network()), torch.rand(2, 1, 8, 8)
    first = optimized(x)
    kept = first.clone()
    optimized(1 - x)
    assert torch.equal(first, kept)
    assert recordings == [(2, 1, 8, 8)]


def test_a_failed_recording_is_told_once(recordings, caplog):
    model = network()
    model.refuses = True
    optimized, x = GraphedNetwork(model), torch.rand(2, 1, 8, 8)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(optimized(x), model(x))
        assert torch.equal(optimized(x), model(x))
    assert [record.getMessage() for record in caplog.records] == [
        "the network runs without a CUDA graph: recording failed (no)"
    ]


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))]
)
def test_copies_record_for_themselves(recordings, duplicate):
    optimized, x = GraphedNetwork(network()), torch.rand(2, 1, 8, 8)
    want = optimized(x)
    other = duplicate(optimized)
    assert not other._recordings
    assert torch.equal(other(x), want)
    assert len(recordings) == 2
    assert (other.palette, other.grey, other.num_colors) == (None, "mean", 5)


def test_moving_the_network_forgets_its_recordings(recordings):
    optimized, x = GraphedNetwork(network()), torch.rand(2, 1, 8, 8)
    optimized(x)
    assert optimized.double()(x.double()).dtype == torch.float64
    assert len(recordings) == 2


def test_it_has_no_gradients_and_no_training(recordings):
    optimized = GraphedNetwork(network())
    with pytest.raises(RuntimeError, match="has no gradients; use the model it was made from"):
        optimized(torch.rand(2, 1, 8, 8, requires_grad=True))
    with pytest.raises(RuntimeError, match="cannot be trained"):
        optimized.train()
    assert optimized.eval() is optimized
