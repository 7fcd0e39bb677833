"""conv2d against its float64 reference, and everything a registered operator promises."""

import pytest
import torch
from conftest import assert_close
from parity import DTYPES, LAYOUTS, check_parity, double, gradients, lay_out, leaf

from colorseg import ops, reference

pytestmark = pytest.mark.every_device

SHAPES = {
    "plain": (2, 8, 10),
    "odd": (3, 9, 7),
    "1x1": (4, 1, 1),
    "large": (1, 65, 70),
    "empty": (0, 8, 8),
}
CASES = {
    "3x3": {"padding": 1},
    "1x1": {"kernel": 1},
    "5x5": {"kernel": 5, "padding": 2},
    "stride 2": {"stride": 2, "padding": 1},
    "rectangular": {"kernel": (1, 3), "padding": (0, 1), "stride": (2, 1)},
    "dilated": {"padding": 2, "dilation": 2},
    "groups": {"padding": 1, "groups": 2},
    "same, even": {"kernel": 4, "padding": "same"},
    "same, uneven axes": {"kernel": (2, 5), "padding": "same"},
    "no bias": {"padding": 1, "bias": False},
    "transposed": {"stride": 2, "padding": 1, "transposed": True, "output_padding": 1},
    "transposed 4x4": {"kernel": 4, "stride": 2, "padding": 1, "transposed": True},
    "transposed groups": {"stride": 2, "padding": 1, "transposed": True, "groups": 2},
}
IN, SKIP, OUT = 4, 2, 6


def make_inputs(
    size,
    dtype,
    layout="contiguous",
    skip=False,
    kernel=3,
    bias=True,
    groups=1,
    transposed=False,
    **options,
):
    """(x, weight, bias, skip) and the remaining options of a case."""
    n, h, w = size
    channels = IN + (SKIP if skip else 0)
    k = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    weight = torch.randn(
        (channels, OUT // groups, *k) if transposed else (OUT, channels // groups, *k), dtype=dtype
    )
    x = lay_out(torch.randn(n, IN, h, w, dtype=dtype), layout)
    tensors = (
        x,
        weight,
        torch.randn(OUT, dtype=dtype) if bias else None,
        torch.randn(n, SKIP, h, w, dtype=dtype) if skip else None,
    )
    return tensors, {"groups": groups, "transposed": transposed, **options}


def with_skip(function):
    """The operator with skip as its last positional argument."""
    return lambda x, weight, bias, skip, **options: function(x, weight, bias, skip=skip, **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("case", CASES)
def test_matches_reference(case, shape, layout, dtype):
    for skip in (False, True):
        inputs, options = make_inputs(SHAPES[shape], dtype, layout, skip, **CASES[case])
        y = check_parity(with_skip(ops.conv2d), with_skip(reference.conv2d), inputs, **options)
        x = inputs[0]
        last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        assert y.is_contiguous(
            memory_format=torch.channels_last if last else torch.contiguous_format
        )


def test_layout_of_the_input_decides_even_with_a_channels_last_weight():
    (x, weight, bias, _), options = make_inputs((2, 8, 10), torch.float32, padding=1)
    weight = weight.contiguous(memory_format=torch.channels_last)
    assert ops.conv2d(x, weight, bias, **options).is_contiguous()


@pytest.mark.parametrize("wanted", ["x", "weight", "bias", "skip"])
@pytest.mark.parametrize("groups", [1, 2])
def test_gradient_of_one_input(groups, wanted):
    """What nobody asks for is not computed, and the rest is the same."""
    inputs, options = make_inputs((2, 8, 10), torch.float64, skip=True, padding=1, groups=groups)
    which = ["x", "weight", "bias", "skip"].index(wanted)
    results = []
    for module in (ops, reference):
        tensors = [t.detach().requires_grad_(i == which) for i, t in enumerate(inputs)]
        y = with_skip(module.conv2d)(*tensors, **options)
        results.append(torch.autograd.grad(y, tensors[which], torch.ones_like(y))[0])
    assert_close(*results)


@pytest.mark.parametrize("transposed", [False, True])
def test_gradcheck(transposed):
    inputs, options = make_inputs(
        (2, 4, 5), torch.float64, skip=True, padding=1, stride=2, transposed=transposed
    )
    leaves = [leaf(t) for t in inputs]
    assert torch.autograd.gradcheck(lambda *t: with_skip(ops.conv2d)(*t, **options), leaves)


@pytest.mark.parametrize(
    "prologue",
    [(False, False), (True, False), (True, True)],
    ids=["plain", "relu", "relu+upsample"],
)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_prologue(prologue, layout):
    relu, upsample = prologue
    x, weight, skip = (
        torch.randn(2, 4, 5, 6),
        torch.randn(3, 6, 3, 3),
        torch.randn(2, 2, *((10, 12) if upsample else (5, 6))),
    )
    inputs = lay_out(x, layout), weight, torch.randn(3), skip, torch.randn(4), torch.randn(4)

    def op(x, weight, bias, skip, scale, shift):
        tail = (relu, upsample, [1, 1], [1, 1, 1, 1], [1, 1], 1, False, [0, 0])
        return torch.ops.colorseg.conv2d.default(x, weight, bias, skip, scale, shift, *tail)

    def plain(x, weight, bias, skip, scale, shift):
        x = x * scale[:, None, None] + shift[:, None, None]
        x = x.relu() if relu else x
        x = torch.nn.functional.interpolate(x, scale_factor=2) if upsample else x
        return reference.conv2d(x, weight, bias, padding=1, skip=skip)

    check_parity(op, plain, inputs)


@pytest.mark.parametrize("skip", [False, True])
def test_opcheck(skip):
    inputs, _options = make_inputs((2, 5, 6), torch.float32, "channels_last", skip, padding=1)
    x, weight, bias, skipped = map(leaf, inputs)
    tail = ([1, 1], [1, 1, 1, 1], [1, 1], 1, False, [0, 0])
    torch.library.opcheck(
        torch.ops.colorseg.conv2d.default,
        (x, weight, bias, skipped, None, None, False, False, *tail),
    )
    plain = [None if t is None else t.detach() for t in (x, weight, skipped)]
    grad = torch.randn(2, OUT, 5, 6)
    needs = (True, skip, True, True)
    torch.library.opcheck(
        torch.ops.colorseg.conv2d_backward.default,
        (grad, *plain, None, None, False, False, *tail, *needs),
        test_utils=("test_schema", "test_faketensor"),
    )


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_whole(backend):
    inputs, options = make_inputs((2, 8, 10), torch.float32, skip=True, padding=1)
    ours = [leaf(t) for t in inputs]
    compiled = torch.compile(
        lambda *t: with_skip(ops.conv2d)(*t, **options).sin(), fullgraph=True, backend=backend
    )
    y = with_skip(ops.conv2d)(*ours, **options).sin()
    assert_close(compiled(*ours), y)
    for got, want in zip(
        gradients(compiled(*ours), ours, torch.ones_like(y)),
        gradients(y, ours, torch.ones_like(y)),
        strict=True,
    ):
        assert_close(got, want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types(dtype):
    inputs, options = make_inputs((2, 8, 10), dtype, skip=True, padding=1)
    x, weight, bias, skip = inputs
    want = reference.conv2d(*(double(t) for t in (x, weight, bias)), skip=double(skip), **options)
    y = ops.conv2d(x, weight, bias, skip=skip, **options)
    assert y.dtype == dtype
    assert_close(y, want)
    leaves = [leaf(t) for t in inputs]
    grads = gradients(with_skip(ops.conv2d)(*leaves, **options), leaves, torch.ones_like(y))
    assert [g.dtype for g in grads] == [dtype] * 4


def test_autocast(device):
    (x, weight, bias, _), options = make_inputs((2, 8, 10), torch.float32, padding=1)
    with torch.autocast(device, torch.bfloat16):
        assert ops.conv2d(x, weight, bias, **options).dtype == torch.bfloat16
        trained = ops.conv2d(x, leaf(weight), bias, **options)
    assert trained.dtype == (torch.float32 if device == "cpu" else torch.bfloat16)
    assert_close(trained, reference.conv2d(double(x), double(weight), double(bias), **options))


@pytest.mark.cpu_only
def test_threads_agree():
    (x, weight, bias, _), options = make_inputs((3, 33, 40), torch.float32, padding=1)
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2):
        torch.set_num_threads(count)
        results.append(ops.conv2d(x, weight, bias, **options))
    torch.set_num_threads(threads)
    assert_close(*results)
