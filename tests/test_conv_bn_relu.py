"""conv_bn_relu against its float64 reference, and everything a registered operator promises."""

import pytest
import torch
import torch.nn.functional as F
from block_cases import CASES, OUT, SHAPES, call, make_inputs, running_statistics, settled_cotangent
from conftest import assert_close
from parity import DTYPES, LAYOUTS, check_parity, double, gradients, lay_out, leaf

from colorseg import ops, reference

pytestmark = pytest.mark.every_device


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("case", CASES)
def test_matches_reference(case, shape, layout, dtype, training):
    inputs, options = make_inputs(SHAPES[shape], dtype, layout, **CASES[case])
    stats, exact_stats = running_statistics(dtype), running_statistics(torch.float64)
    ours, exact = [leaf(t) for t in inputs], [double(t) for t in inputs]
    y = call(ops, ours, stats, training=training, **options)
    want = call(reference, exact, exact_stats, training=training, **options)
    assert_close(y, want)
    assert_close(stats[0], exact_stats[0])
    assert_close(stats[1], exact_stats[1])
    last = (
        inputs[0].is_contiguous(memory_format=torch.channels_last) and not inputs[0].is_contiguous()
    )
    assert y.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    cotangent = settled_cotangent(exact, training, **options)
    got, ref = gradients(y, ours, cotangent.to(dtype)), gradients(want, exact, cotangent)
    for g, r in zip(got, ref, strict=True):
        assert_close(g, r, dtype)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize("resample", [None, "maxpool2", "upsample2"])
def test_gradcheck(resample, residual, training):
    case = {"padding": 1, "skip": True, "resample": resample, "residual": residual}
    inputs, options = make_inputs((2, 3, 4), torch.float64, **case)
    stats = running_statistics(torch.float64)

    def block(*tensors):
        return call(ops, tensors, stats, training=training, momentum=0.0, **options)

    assert torch.autograd.gradcheck(block, [leaf(t) for t in inputs])


@pytest.mark.parametrize("resample", [None, "maxpool2", "upsample2"])
def test_without_running_statistics_or_affine(resample):
    (x, weight, bias, _skip, _, _), _ = make_inputs((3, 8, 6), torch.float32)
    exact = double(x), double(weight), double(bias)
    y = ops.conv_bn_relu(
        x, weight, bias, None, None, None, None, training=True, padding=1, resample=resample
    )
    assert_close(
        y,
        reference.conv_bn_relu(
            *exact, None, None, None, None, training=True, padding=1, resample=resample
        ),
    )


@pytest.mark.parametrize("resample", [None, "maxpool2", "upsample2"])
@pytest.mark.parametrize("joined", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize("weight_layout", LAYOUTS)
def test_inference_of_small_maps_with_many_channels(weight_layout, joined, resample):
    """Their convolution is torch's on the CPU."""
    x, weight = torch.randn(3, 32, 16, 16), lay_out(0.1 * torch.randn(64, 32, 3, 3), weight_layout)
    stats = torch.randn(64), torch.rand(64) + 0.5
    side = {None: 8, "maxpool2": 4, "upsample2": 16}[resample]
    added = torch.randn(3, 64, side, side) if joined else None
    options = {"stride": 2, "padding": 1, "resample": resample}
    y = ops.conv_bn_relu(x, weight, None, *stats, *stats, residual=added, **options)
    exact = [t.double() for t in (x, weight, *stats, *stats)]
    residual = None if added is None else added.double()
    want = reference.conv_bn_relu(*exact[:2], None, *exact[2:], residual=residual, **options)
    assert_close(y, want)
    assert y.is_contiguous()


def test_running_variance_is_unbiased_over_the_upsampled_map():
    x, weight = (
        torch.randn(1, 1, 1, 2, dtype=torch.float64),
        torch.ones(1, 1, 1, 1, dtype=torch.float64),
    )
    mean, var = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    ops.conv_bn_relu(
        x, weight, None, None, None, mean, var, training=True, momentum=1.0, resample="upsample2"
    )
    assert_close(
        var, F.interpolate(x, scale_factor=2).var().reshape(1)
    )  # n / (n - 1) with n = 8, not 2


def test_empty_batch_leaves_the_statistics():
    inputs, options = make_inputs((0, 8, 8), torch.float32, padding=1)
    stats = running_statistics(torch.float32)
    before = [t.clone() for t in stats]
    assert call(ops, inputs, stats, training=True, **options).shape == (0, OUT, 8, 8)
    assert torch.equal(stats[0], before[0])
    assert torch.equal(stats[1], before[1])


def test_large_mean_and_small_deviation():
    """A mean of 1e4 deviations keeps 3 digits of the variance and does not bend the output."""
    x = 1e4 + torch.randn(8, 3, 32, 32)
    weight = torch.eye(3).reshape(3, 3, 1, 1)
    stats = torch.zeros(3), torch.ones(3)
    ops.conv_bn_relu(x, weight, None, None, None, *stats, training=True, momentum=1.0)
    exact = x.double().transpose(0, 1).reshape(3, -1).var(1)
    assert ((stats[1] - exact) / exact).abs().max() < 1e-3


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("resample", [None, "maxpool2", "upsample2"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_nan_and_infinity_propagate(value, resample, training):
    x, weight = torch.randn(2, 1, 6, 6), torch.ones(2, 1, 1, 1)
    x[0, 0, 2, 3] = value
    stats = running_statistics(torch.float32, 2)
    y = ops.conv_bn_relu(x, weight, None, None, None, *stats, training=training, resample=resample)
    exact_stats = running_statistics(torch.float64, 2)
    want = reference.conv_bn_relu(
        x.double(),
        weight.double(),
        None,
        None,
        None,
        *exact_stats,
        training=training,
        resample=resample,
    )
    assert_close(y, want)
    assert_close(stats[0], exact_stats[0])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_what_passes_the_relu_behind_a_residual_is_the_gradient_of_both(layout):
    """NaN, zero and negative sums behind an identity: exactly torch's gradients."""
    x = torch.randn(2, 3, 4, 5).bfloat16().float()  # few digits: no way to convolve rounds them
    x = x.contiguous(memory_format=layout)
    residual = torch.randn(2, 3, 4, 5)
    residual[0, 0, 0, 0] = float("nan")
    residual[0, 1], residual[1, 2] = -x[0, 1], -9
    weight, one = torch.eye(3).reshape(3, 3, 1, 1), torch.ones(3)
    stats, grads = (torch.zeros(3), torch.ones(3)), []
    for module in (ops, reference):
        leaves = leaf(x), leaf(residual)
        y = module.conv_bn_relu(
            leaves[0], weight, None, one, None, *stats, eps=1e-30, residual=leaves[1]
        )
        assert y.isnan().sum() == 1
        grads.append(torch.autograd.grad(y, leaves, torch.arange(120.0).view_as(y)))
    for got, want in zip(*grads, strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("channels", [4, 40, 136, 520])
@pytest.mark.parametrize("residual", [True, False])
def test_sweeps_of_many_channels_in_channels_last(residual, channels, dtype):
    """Several chunks of positions behind a dilated convolution, at a mean of many deviations."""
    x = lay_out(torch.randn(3, 2, 9, 11, dtype=dtype), "channels_last")
    bn = torch.rand(channels, dtype=dtype) + 0.5, torch.randn(channels, dtype=dtype)
    inputs = [x, torch.randn(channels, 2, 3, 3, dtype=dtype) / 4, *bn]
    if residual:
        inputs.append(lay_out(torch.randn(3, channels, 9, 11, dtype=dtype), "channels_last"))
    bias = torch.full((channels,), 30.0, dtype=dtype)

    def block(module):
        def run(x, weight, bn_weight, bn_bias, residual=None):
            stats = running_statistics(x.dtype, channels)
            return module.conv_bn_relu(
                x, weight, bias.to(x), bn_weight, bn_bias, *stats, padding=2, dilation=2,
                training=True, residual=residual,
            )  # fmt: skip

        return run

    check_parity(block(ops), block(reference), inputs)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("wanted", [0, 1])
def test_a_residual_alone_or_the_block_alone_may_need_a_gradient(wanted, relu):
    inputs, options = make_inputs((2, 4, 6), torch.float64, padding=1, residual=True, relu=relu)
    results = []
    for module in (ops, reference):
        tensors = [t if t is None else t.detach() for t in inputs]
        chosen = tensors[(0, -1)[wanted]].requires_grad_()
        y = call(module, tensors, running_statistics(torch.float64), training=True, **options)
        results.append(torch.autograd.grad(y.square().sum(), chosen)[0])
    assert_close(*results)


def test_maxpool_ties_and_nan_are_torch():
    """The first maximum wins a tie, the last NaN wins over everything, as the gradient shows."""
    rows = [
        [1.0, 1.0, 2.0, 3.0],
        [1.0, 1.0, 3.0, 3.0],
        [float("nan"), 1.0, 5.0, float("nan")],
        [1.0, 2.0, float("nan"), 1.0],
    ]
    x = torch.tensor(rows, dtype=torch.float64)[None, None]
    weight = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    stats = torch.zeros(1).double(), torch.ones(1).double()
    for layout in (torch.contiguous_format, torch.channels_last):
        leaves = [
            x.expand(1, 2, 4, 4).contiguous(memory_format=layout).requires_grad_() for _ in range(2)
        ]
        weight2 = weight.expand(1, 2, 1, 1).contiguous()
        results = [
            m.conv_bn_relu(v, weight2, None, None, None, *stats, relu=False, resample="maxpool2")
            for m, v in zip((ops, reference), leaves, strict=True)
        ]
        got, want = (
            torch.autograd.grad(y, v, torch.ones_like(y))[0]
            for y, v in zip(results, leaves, strict=True)
        )
        assert torch.equal(got != 0, want != 0)
        assert_close(got, want)


@pytest.mark.cpu_only
def test_threads_give_the_same_bits():
    """Everything but ATen's convolution, which a 1x1 identity leaves exact."""
    x, weight = torch.randn(3, 4, 65, 70), torch.eye(4).reshape(4, 4, 1, 1)
    results, threads = [], torch.get_num_threads()
    for count in (1, 2):
        torch.set_num_threads(count)
        leaves, stats = (
            [leaf(x), leaf(torch.ones(4)), leaf(torch.zeros(4))],
            running_statistics(torch.float32, 4),
        )
        y = ops.conv_bn_relu(
            leaves[0], weight, None, *leaves[1:], *stats, training=True, resample="maxpool2"
        )
        results.append([y.detach(), *stats, *torch.autograd.grad(y.square().sum(), leaves)])
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_inference(dtype):
    case = {"skip": True, "padding": 1, "resample": "upsample2", "residual": True}
    inputs, options = make_inputs((2, 8, 10), dtype, **case)
    stats = running_statistics(torch.float32)
    want = call(reference, [double(t) for t in inputs], [t.double() for t in stats], **options)
    y = call(ops, inputs, stats, **options)
    assert y.dtype == dtype
    assert_close(y, want)


@pytest.mark.parametrize("grad", [True, False], ids=["train", "infer"])
@pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
def test_autocast(residual, grad, device):
    inputs, options = make_inputs((2, 8, 10), torch.float32, padding=1, residual=residual)
    stats, exact_stats = running_statistics(torch.float32), running_statistics(torch.float64)
    with torch.autocast(device, torch.bfloat16), torch.set_grad_enabled(grad):
        y = call(ops, [leaf(t) for t in inputs], stats, training=grad, **options)
    assert y.dtype == (torch.float32 if grad and device == "cpu" else torch.bfloat16)
    assert_close(
        y, call(reference, [double(t) for t in inputs], exact_stats, training=grad, **options)
    )


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_compiles_whole(training, backend):
    case = {"skip": True, "padding": 1, "resample": "maxpool2", "residual": True}
    inputs, options = make_inputs((2, 8, 10), torch.float32, **case)
    ours, results = [leaf(t) for t in inputs], []

    def step(stats, *tensors):
        return call(ops, tensors, stats, training=training, **options).sin()

    for function in (step, torch.compile(step, fullgraph=True, backend=backend)):
        stats = running_statistics(torch.float32)
        y = function(stats, *ours)
        results.append([y, *stats, *gradients(y, ours, torch.ones_like(y))])
    for eager, compiled in zip(*results, strict=True):
        assert_close(compiled, eager)
