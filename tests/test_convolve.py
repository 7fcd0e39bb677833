"""The library's own float32 convolution: every way through it, against float64."""

import pytest
import torch
import torch.nn.functional as F
from parity import check_parity, lay_out
from torch.profiler import ProfilerActivity, profile

from colorseg import ops, reference

TRANSPOSED = {"stride": 2, "padding": 1, "output_padding": 1, "transposed": True}
SAME = {"kernel": 3, "padding": 1}

# (N, (H, W)), (channels of x, of skip, of y), options.  A batch is cut into pieces of several small
# images, or into bands of lines of a large one; 3x3 kernels on even sizes with 8 or more channels
# take Winograd's way.
CASES = {
    "pieces of 2, the last of 1": ((13, (8, 8)), (5, 0, 3), SAME),
    "pieces of 13, the last of 9": ((100, (4, 4)), (3, 0, 5), SAME),
    "pieces, winograd": ((13, (8, 8)), (24, 0, 9), SAME),
    "pieces of many, winograd": ((100, (4, 4)), (8, 0, 9), SAME),
    "pieces, stride 2": ((13, (8, 8)), (5, 0, 8), SAME | {"stride": 2}),
    "pieces, stride 2, odd": ((21, (9, 7)), (5, 0, 8), SAME | {"stride": 2}),
    "pieces, transposed": ((13, (8, 8)), (8, 0, 5), TRANSPOSED),
    "bands": ((1, (140, 133)), (3, 0, 5), SAME),
    "bands of two images": ((2, (140, 133)), (1, 0, 3), SAME),
    "bands of five images": ((5, (60, 50)), (1, 0, 2), SAME),
    "bands, 7x7": ((1, (140, 133)), (1, 0, 3), {"kernel": 7, "padding": 3}),
    "bands, winograd": ((1, (140, 132)), (8, 0, 8), SAME),
    "bands, stride 2": ((2, (140, 133)), (1, 0, 5), SAME | {"stride": 2}),
    "bands, transposed": ((2, (70, 67)), (5, 0, 3), TRANSPOSED),
    "bands, dilated": ((1, (140, 133)), (1, 0, 3), {"padding": 6, "dilation": 6}),
    "one pixel": ((4, (1, 1)), (3, 0, 3), SAME),
    "one line": ((3, (1, 40)), (3, 0, 3), SAME),
    "one column": ((3, (40, 1)), (3, 0, 3), SAME | {"stride": 2}),
    "1x1": ((3, (9, 7)), (25, 0, 33), {"kernel": 1}),
    "1x1, stride 2": ((3, (9, 7)), (5, 0, 9), {"kernel": 1, "stride": 2}),
    "2x2, same": ((3, (9, 7)), (8, 0, 9), {"kernel": 2, "padding": "same"}),
    "3x3, odd": ((3, (9, 7)), (24, 0, 25), SAME),
    "4x4, same": ((3, (9, 8)), (5, 0, 8), {"kernel": 4, "padding": "same"}),
    "5x5": ((3, (10, 8)), (8, 0, 9), {"kernel": 5, "padding": 2}),
    "5x5, stride 2": ((3, (10, 9)), (8, 0, 9), {"kernel": 5, "padding": 2, "stride": 2}),
    "7x7, larger than the image": ((3, (4, 5)), (3, 0, 5), {"kernel": 7, "padding": 3}),
    "rectangular": ((3, (9, 12)), (5, 0, 3), {"kernel": (1, 5), "padding": (0, 2)}),
    "rectangular padding": ((3, (9, 12)), (8, 0, 8), {"padding": (2, 0)}),
    "rectangular, uneven same": ((3, (9, 12)), (5, 0, 3), {"kernel": (4, 3), "padding": "same"}),
    "more padding than kernel": ((2, (6, 8)), (8, 0, 8), {"padding": 4}),
    "dilated": ((3, (12, 10)), (8, 0, 9), {"padding": 2, "dilation": 2}),
    "dilated, stride 2": ((3, (12, 11)), (5, 0, 3), {"padding": 3, "dilation": 3, "stride": 2}),
    "rectangular dilation": ((2, (12, 11)), (5, 0, 3), {"padding": (1, 3), "dilation": (1, 3)}),
    "transposed, odd": ((3, (7, 5)), (9, 0, 8), TRANSPOSED),
    "transposed 2x2": ((3, (7, 5)), (9, 0, 8), {"kernel": 2, "stride": 2, "transposed": True}),
    "transposed 4x4": ((3, (7, 6)), (5, 0, 8), TRANSPOSED | {"kernel": 4, "output_padding": 0}),
    "transposed 5x5": ((3, (7, 6)), (5, 0, 8), TRANSPOSED | {"kernel": 5, "padding": 2}),
    "transposed, stride 1": ((3, (8, 6)), (8, 0, 8), {"padding": 1, "transposed": True}),
    "transposed, dilated": ((2, (6, 5)), (3, 0, 5), TRANSPOSED | {"dilation": 2}),
    "winograd, padding 0": ((3, (10, 12)), (8, 0, 33), {"padding": 0}),
    "winograd, padding 1": ((3, (10, 12)), (33, 0, 8), SAME),
    "winograd, padding 2": ((3, (10, 12)), (9, 0, 24), {"padding": 2}),
    "winograd, padding 0 and 2": ((3, (10, 12)), (9, 0, 8), {"padding": (0, 2)}),
    "winograd, the smallest": ((3, (2, 2)), (8, 0, 8), SAME),
    "64 and 65 channels": ((2, (6, 8)), (64, 0, 65), SAME),
    "65 and 64 channels, odd": ((2, (7, 5)), (65, 0, 64), SAME),
    "256 channels": ((1, (6, 4)), (256, 0, 24), SAME),
    "skip": ((13, (8, 7)), (3, 5, 8), SAME),
    "skip, winograd": ((13, (8, 8)), (24, 1, 24), SAME),
    "skip, stride 2": ((3, (9, 7)), (5, 3, 3), SAME | {"stride": 2}),
    "skip, transposed": ((13, (8, 8)), (8, 8, 5), TRANSPOSED),
    "skip, bands": ((1, (140, 133)), (1, 1, 3), SAME),
    "no bias": ((3, (8, 8)), (8, 0, 8), SAME | {"bias": False}),
}  # fmt: skip


def make(size, channels, kernel=3, bias=True, **options):
    """(x, weight, bias, skip) of a case, and the options of the convolution."""
    (n, image), (inputs, skip, outputs) = size, channels
    pair = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    joined = (inputs + skip, outputs) if options.get("transposed") else (outputs, inputs + skip)
    x = torch.randn(n, inputs, *image)
    return (
        x,
        torch.randn(*joined, *pair),
        torch.randn(outputs) if bias else None,
        torch.randn(n, skip, *image) if skip else None,
    ), options


def check(inputs, options):
    def with_skip(function):
        return lambda x, w, b, skip, **rest: function(x, w, b, skip=skip, **rest)

    return check_parity(with_skip(ops.conv2d), with_skip(reference.conv2d), inputs, **options)


def uses_aten(call):
    """Whether PyTorch's profiler sees one of its own convolutions in the call."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        call()
    return any("conv" in event.key and "aten" in event.key for event in profiler.key_averages())


@pytest.mark.parametrize("case", CASES)
def test_matches_float64(case):
    size, channels, options = CASES[case]
    inputs, options = make(size, channels, **options)
    check(inputs, options)


@pytest.mark.parametrize("case", ["pieces, winograd", "skip, stride 2", "transposed, odd", "5x5"])
def test_is_not_left_to_pytorch(case):
    size, channels, options = CASES[case]
    (x, weight, bias, skip), options = make(size, channels, **options)
    x.requires_grad_(), weight.requires_grad_()
    assert not uses_aten(lambda: ops.conv2d(x, weight, bias, skip=skip, **options).sum().backward())


@pytest.mark.parametrize(
    ("size", "channels", "options"),
    [
        ((2, (6, 5)), (257, 0, 3), SAME),
        ((2, (6, 5)), (3, 0, 257), SAME),
        ((1, (6, 70)), (2, 0, 3), {"kernel": (1, 65), "padding": (0, 32)}),
        ((2, (9, 8)), (3, 0, 5), SAME | {"stride": 3}),
        ((2, (9, 8)), (3, 0, 5), SAME | {"stride": (1, 2)}),
    ],
    ids=["257 in", "257 out", "65 columns", "stride 3", "stride 1 and 2"],
)
def test_left_to_pytorch(size, channels, options):
    inputs, options = make(size, channels, **options)
    assert uses_aten(lambda: ops.conv2d(*inputs[:3], **options))
    check(inputs, options)


@pytest.mark.parametrize("layout", ["sliced", "expanded"])
@pytest.mark.parametrize(
    "case", ["pieces, winograd", "3x3, odd", "skip, stride 2", "transposed, odd"]
)
def test_any_strides(case, layout):
    """Of x, of skip, of the weight (a transposed view), and of the gradient that comes in."""
    size, channels, options = CASES[case]
    (x, weight, bias, skip), options = make(size, channels, **options)
    weight = weight.transpose(2, 3)
    bias = torch.stack([bias, bias], 1)[:, 0]
    skip = skip if skip is None else lay_out(skip, layout)
    check((lay_out(x, layout), weight, bias, skip), options)
    x = lay_out(x, layout).requires_grad_()
    y = ops.conv2d(x, weight, bias, skip=skip, **options)
    cotangent = lay_out(torch.randn_like(y), layout)
    (strided,) = torch.autograd.grad(y, x, cotangent, retain_graph=True)
    (dense,) = torch.autograd.grad(y, x, cotangent.contiguous())
    assert torch.equal(strided, dense)


# (N, (H, W)), (channels of x, of y), kernel, (top, bottom, left, right), dilation
UPSAMPLED = {
    "pieces": ((13, (8, 8)), (5, 3), 3, (1, 1, 1, 1), 1),
    "many pieces": ((100, (4, 4)), (8, 9), 3, (1, 1, 1, 1), 1),
    "odd": ((3, (7, 5)), (24, 25), 3, (1, 1, 1, 1), 1),
    "bands": ((1, (70, 67)), (3, 5), 3, (1, 1, 1, 1), 1),
    "bands, 5x5": ((2, (70, 67)), (1, 3), 5, (2, 2, 2, 2), 1),
    "one pixel": ((4, (1, 1)), (3, 5), 3, (1, 1, 1, 1), 1),
    "1x1": ((3, (8, 5)), (5, 8), 1, (0, 0, 0, 0), 1),
    "2x2, same": ((3, (8, 5)), (5, 8), 2, (0, 1, 0, 1), 1),
    "4x4, same": ((3, (8, 5)), (5, 8), 4, (1, 2, 1, 2), 1),
    "7x7": ((3, (8, 5)), (3, 3), 7, (3, 3, 3, 3), 1),
    "padding 0": ((3, (8, 5)), (8, 8), 3, (0, 0, 0, 0), 1),
    "padding 2": ((3, (8, 5)), (8, 8), 3, (2, 2, 2, 2), 1),
    "dilated": ((3, (8, 5)), (5, 8), 3, (2, 2, 2, 2), 2),
    "dilated by 3": ((3, (8, 5)), (5, 8), 3, (3, 3, 3, 3), 3),
}


@pytest.mark.parametrize("upsample", [True, False], ids=["upsampled", "as it is"])
@pytest.mark.parametrize("relu", [True, False], ids=["relu", "no relu"])
@pytest.mark.parametrize("case", UPSAMPLED)
def test_prologue(case, relu, upsample):
    """What a block leaves to the next one: scale and shift, ReLU, and the upsampling."""
    (n, image), (inputs, outputs), kernel, padding, dilation = UPSAMPLED[case]
    x = torch.randn(n, inputs, *image).mul(8).round() / 8
    scale = torch.tensor([0.5, -1.0, 2.0])[torch.arange(inputs) % 3]
    shift = torch.randn(inputs).mul(16).round() / 16 + 1 / 32  # no value becomes 0, ReLU's kink
    weight, bias = torch.randn(outputs, inputs, kernel, kernel), torch.randn(outputs)
    tail = (relu, upsample, [1, 1], list(padding), [dilation] * 2, 1, False, [0, 0])

    def op(x, weight, bias, scale, shift):
        return torch.ops.colorseg.conv2d.default(x, weight, bias, None, scale, shift, *tail)

    def plain(x, weight, bias, scale, shift):
        x = x * scale[:, None, None] + shift[:, None, None]
        x = x.relu() if relu else x
        x = F.interpolate(x, scale_factor=2) if upsample else x
        top, bottom, left, right = padding
        return F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias, dilation=dilation)

    inputs = (x, weight, bias, scale, shift)
    check_parity(op, plain, inputs)
    assert not uses_aten(lambda: op(*inputs))
