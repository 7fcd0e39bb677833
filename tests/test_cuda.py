"""What CUDA alone can get wrong: streams, graphs, synchronisation, devices, huge maps, labels."""

import copy

import pytest
import torch
import torch.nn.functional as F
from chain_cases import run_plain, twins
from conftest import assert_close, skip
from cuda_work import aten_convolutions, convolutions, losses

import colorseg
from colorseg import ops
from colorseg.models import NETWORKS

pytestmark = pytest.mark.cuda

OWN = {"losses": losses, "convolutions": convolutions}
ALL = {**OWN, "aten_convolutions": aten_convolutions}


@pytest.fixture(autouse=True)
def as_users_have_it(monkeypatch):
    monkeypatch.setenv("COLORSEG_DEBUG", "0")


def warmed_up(call):
    """What ``call`` gives on a side stream, and that stream."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            results = call()
    torch.cuda.current_stream().wait_stream(stream)
    return results, stream


@pytest.mark.parametrize("make", OWN.values(), ids=OWN)
def test_the_same_bits_in_every_run_and_in_a_graph(make):
    for name, call in make().items():
        want, _ = warmed_up(call)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = call()
        for t in captured:
            t.fill_(7)
        graph.replay()
        for got in (call(), captured):
            assert all(map(torch.equal, got, want)), name


def test_a_graph_of_what_cudnn_convolves():
    for name, call in aten_convolutions().items():
        want, _ = warmed_up(call)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = call()
        graph.replay()
        for got, exact in zip(captured, want, strict=True):
            assert_close(got, exact), name


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_nothing_waits_for_the_device(make):
    for call in make().values():
        call()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", NETWORKS)
def test_work_is_queued_on_the_current_stream(name):
    """Behind what makes its input there, and not on the default stream."""
    model, x = NETWORKS[name](num_filters=4).eval(), torch.rand(3, 1, 16, 16)
    with torch.no_grad():
        want = model(x)
        given, stream = torch.zeros_like(x), torch.cuda.Stream()
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(100_000_000)
            given.copy_(x)
            y = model(given)
    assert not stream.query()
    stream.synchronize()
    assert torch.equal(y, want)


def test_the_second_device():
    if torch.cuda.device_count() < 2:
        skip("gpus")
    model, x = NETWORKS["unet"](num_filters=4).eval(), torch.rand(3, 1, 16, 16)
    want = model(x)
    assert_close(copy.deepcopy(model).to("cuda:1")(x.to("cuda:1")).to("cuda:0"), want)


X, WEIGHT = (1, 4, 8, 8), (6, 4, 3, 3)
MIXED = {
    "conv2d": lambda one, other: ops.conv2d(one(*X), other(*WEIGHT)),
    "conv_bn_relu": lambda one, other: ops.conv_bn_relu(
        one(*X), one(*WEIGHT), None, other(6), None, None, None, training=True
    ),
    "color_cross_entropy": lambda one, other: ops.color_cross_entropy(
        one(*X), other(1, 8, 8).long()
    ),
    "soft_iou_loss": lambda one, other: ops.soft_iou_loss(one(*X), other(1, 8, 8).long()),
    "nearest_color": lambda one, other: ops.nearest_color(one(1, 3, 8, 8), other(24, 3)),
    "network": lambda one, other: NETWORKS["unet"](num_filters=2).to(other(1).device)(
        one(1, 1, 8, 8)
    ),
}


@pytest.mark.parametrize("call", MIXED.values(), ids=MIXED)
@pytest.mark.parametrize("swapped", [False, True])
def test_mixed_devices_are_an_error(call, swapped):
    def on(place):
        return lambda *size: torch.zeros(*size, device=place)

    places = ("cpu", "cuda") if swapped else ("cuda", "cpu")
    with pytest.raises(RuntimeError, match="must be on the device of"):
        call(*map(on, places))
    torch.zeros(1).add_(1).item()  # the context is as it was


@pytest.mark.parametrize("label", [24, -1, 2**40])
def test_labels_out_of_range_do_not_count(label):
    logits, labels = torch.randn(2, 24, 9, 7, requires_grad=True), torch.randint(24, (2, 9, 7))
    wrong = torch.where(torch.rand(2, 9, 7) < 0.3, label, labels)
    loss, _, _, valid = ops.color_cross_entropy(logits, wrong, return_stats=True)
    want = F.cross_entropy(logits.double(), torch.where(wrong == label, -100, labels))
    assert valid == (wrong != label).sum()
    assert_close(loss, want)
    assert_close(*(torch.autograd.grad(t, logits)[0] for t in (loss, want)))


@pytest.mark.parametrize("label", [24, -1])
def test_labels_out_of_range_are_an_error_when_debugging(label, monkeypatch):
    monkeypatch.setenv("COLORSEG_DEBUG", "1")
    logits, labels = torch.randn(2, 24, 9, 7), torch.full((2, 9, 7), label)
    for loss in (ops.color_cross_entropy, ops.soft_iou_loss):
        with pytest.raises(RuntimeError, match="126 labels are outside"):
            loss(logits, labels)
    torch.zeros(1).add_(1).item()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_networks_train_under_autocast(name, dtype):
    """Parameters and gradients stay float32; the rest loses no more than in torch."""
    model, plain = twins(name)
    networks = model, colorseg.unfuse(copy.deepcopy(model))
    lost = []  # by results and by gradients; ours and torch's
    for _ in range(16):  # roundings flip ReLUs and maxima, of the ones or the others by chance
        x = torch.rand(8, 1, 16, 12)
        want = run_plain(plain, x)
        cotangent = torch.randn_like(want)
        exact = torch.autograd.grad(want, list(plain.parameters()), cotangent)
        for network in networks:
            with torch.autocast("cuda", dtype):
                y = network(x)
            assert y.dtype == dtype
            gradients = torch.autograd.grad(y, list(network.parameters()), cotangent.to(dtype))
            assert {g.dtype for g in gradients} == {torch.float32}
            off = [(g - e).norm() for g, e in zip(gradients, exact, strict=True)]
            lost.append(torch.stack([(y - want).norm(), torch.stack(off).norm()]))
    ours, theirs = torch.stack(lost).detach().log().unflatten(0, (16, 2)).unbind(1)
    assert ((ours - theirs).mean(0).exp() <= 1.2).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_half_types(name):
    model, plain = twins(name, training=False)
    x = torch.rand(3, 1, 16, 12)
    y = model.bfloat16()(x.bfloat16())
    assert y.dtype == torch.bfloat16
    assert_close(y, run_plain(plain, x.bfloat16()))


@pytest.mark.parametrize("allowed", [True, False])
def test_float32_is_as_precise_as_torch_is_told(allowed):
    model, plain = twins("unet", training=False)
    x = torch.rand(3, 1, 16, 12)
    torch.backends.cudnn.conv.fp32_precision = "tf32" if allowed else "ieee"
    try:
        y, want = model(x), run_plain(plain, x)
    finally:
        torch.backends.cudnn.conv.fp32_precision = "ieee"
    error = (y - want).abs().max() / want.abs().max()
    assert (1e-5 < error < 1e-2) if allowed else error < 1e-5


def test_more_than_2_31_values():
    if torch.cuda.mem_get_info()[0] < 30e9:
        skip("gpu_memory")
    x = torch.empty(1, 16500, 16384, 8, dtype=torch.float16).normal_().permute(0, 3, 1, 2)
    weight = torch.randn(8, 8, 3, 3).half() / 8
    y = ops.conv2d(x, weight, padding=1)
    assert_close(
        y[:, :, -20:], ops.conv2d(x[:, :, -40:].contiguous(), weight, padding=1)[:, :, -20:]
    )
    assert_close(y[:, :, :20], ops.conv2d(x[:, :, :40].contiguous(), weight, padding=1)[:, :, :20])
    del y
    labels = torch.randint(8, (1, 16500, 16384), dtype=torch.uint8)
    loss = ops.color_cross_entropy(x, labels)
    parts = [
        ops.color_cross_entropy(x[:, :, rows], labels[:, rows]).double()
        for rows in torch.arange(16500).split(1650)
    ]
    assert_close(loss, torch.stack(parts).mean())
