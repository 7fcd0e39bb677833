"""What the library's own convolution makes of rounding, threads, NaN and infinities."""

import pytest
import torch
import torch.nn.functional as F
from torch.nn.functional import interpolate

from colorseg import ops, reference
from colorseg.models import NETWORKS

TRANSPOSED = {"stride": 2, "padding": 1, "output_padding": 1, "transposed": True}
# (N, (H, W)), (channels of x, of y), kernel, options
CONVOLUTIONS = {
    "direct": ((13, (9, 7)), (5, 8), 3, {"padding": 1}),
    "direct, 5x5": ((13, (8, 8)), (24, 8), 5, {"padding": 2}),
    "winograd": ((13, (8, 8)), (32, 24), 3, {"padding": 1}),
    "winograd, padding 2": ((13, (8, 8)), (8, 9), 3, {"padding": 2}),
    "stride 2": ((13, (8, 8)), (32, 24), 3, {"padding": 1, "stride": 2}),
    "transposed": ((13, (8, 8)), (32, 24), 3, TRANSPOSED),
    "bands": ((1, (70, 67)), (3, 5), 3, {"padding": 1}),
    "bands, winograd": ((2, (70, 66)), (8, 8), 3, {"padding": 1}),
    "many pieces": ((100, (16, 16)), (2, 3), 3, {"padding": 1}),
    "many channels": ((4, (8, 8)), (256, 64), 3, {"padding": 1}),
    "pixels, winograd": ((2, (28, 30)), (256, 128), 3, {"padding": 1}),
    "pixels, dilated": ((2, (29, 28)), (128, 256), 3, {"padding": 4, "dilation": 4}),
    "pixels, 1x1": ((2, (13, 11)), (640, 128), 1, {}),
}
ALL = pytest.mark.parametrize("case", CONVOLUTIONS)
DRAWS = {
    "random": torch.randn,
    "large mean": lambda *size: 1e3 + torch.randn(*size),
    "tiny variance": lambda *size: 1 + 1e-4 * torch.randn(*size),
}
FLOOR = 3e-7  # of the largest value: a few roundings
NAMES = ("y", "grad_x", "grad_weight", "grad_bias")


def make(case, draw=torch.randn):
    """(x, weight, bias), the options, and the gradient of the result."""
    (n, image), (inputs, outputs), kernel, options = CONVOLUTIONS[case]
    channels = (inputs, outputs) if options.get("transposed") else (outputs, inputs)
    x, bias = draw(n, inputs, *image), torch.randn(outputs)
    if case.startswith("pixels"):
        x = x.contiguous(memory_format=torch.channels_last)
    weight = torch.randn(*channels, kernel, kernel) / kernel
    return (x, weight, bias), options, draw(*reference.conv2d(x, weight, bias, **options).shape)


def results(function, tensors, options, cotangent):
    """The result and the gradients of (x, weight, bias)."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    y = function(*leaves, **options)
    return [y.detach(), *torch.autograd.grad(y, leaves, cotangent.to(y.dtype))]


@pytest.mark.parametrize("draw", DRAWS)
@ALL
def test_as_accurate_as_pytorch(case, draw):
    """Rounding errors of at most twice those of PyTorch's float32, forward and backward."""
    tensors, options, cotangent = make(case, DRAWS[draw])
    exact = results(reference.conv2d, [t.double() for t in tensors], options, cotangent)
    ours = results(ops.conv2d, tensors, options, cotangent)
    theirs = results(reference.conv2d, tensors, options, cotangent)
    for name, want, got, peer in zip(NAMES, exact, ours, theirs, strict=True):
        error, allowed = ((t - want).abs().max() / want.abs().max() for t in (got, peer))
        assert error <= 2 * allowed + FLOOR, f"{name}: {error:.1e}, PyTorch's {allowed:.1e}"


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("resample", [None, "maxpool2", "upsample2"])
@pytest.mark.parametrize("size", [(13, 8, 8), (1, 70, 66)], ids=["pieces", "bands"])
def test_variance_beside_a_large_mean(size, resample, kernel):
    """A mean of 1e4 deviations leaves the variance three correct digits."""
    channels = 8
    x = 1 + 1e-4 * torch.randn(size[0], channels, *size[1:])
    weight = torch.zeros(channels, channels, kernel, kernel)  # hands every channel on
    weight[range(channels), range(channels), kernel // 2, kernel // 2] = 1
    mean, var = torch.zeros(channels), torch.zeros(channels)
    ops.conv_bn_relu(
        x, weight, None, None, None, mean, var,
        padding=kernel // 2, resample=resample, training=True, momentum=1.0,
    )  # fmt: skip
    map_ = x.double()
    if resample == "maxpool2":
        map_ = F.max_pool2d(map_, 2)
    elif resample == "upsample2":
        map_ = interpolate(map_, scale_factor=2)
    want = map_.var((0, 2, 3))
    assert (want.sqrt() < 1.2e-4).all()
    torch.testing.assert_close(mean.double(), map_.mean((0, 2, 3)), rtol=1e-7, atol=0)
    torch.testing.assert_close(var.double(), want, rtol=1e-3, atol=0)


@pytest.fixture
def with_threads():
    """Runs a function with a number of threads."""
    before = torch.get_num_threads()

    def run(count, function):
        torch.set_num_threads(count)
        return function()

    yield run
    torch.set_num_threads(before)


ATENS = ("pixels, 1x1", "many channels")  # convolved by ATen, whose bits may depend on the threads


@pytest.mark.parametrize("case", [case for case in CONVOLUTIONS if case not in ATENS])
def test_same_bits_with_two_threads(case, with_threads):
    tensors, options, cotangent = make(case)
    one, two = (
        with_threads(n, lambda: results(ops.conv2d, tensors, options, cotangent)) for n in (1, 2)
    )
    assert all(map(torch.equal, one, two))


@pytest.mark.parametrize("size", [(100, 16, 16), (1, 68, 64)], ids=["small", "large"])
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_training_step_has_the_same_bits_with_two_threads(network, size, with_threads):
    n, *image = size
    x = torch.randn(n, 1, *image)

    def step():
        torch.manual_seed(1)
        model = network(num_filters=8, num_colors=5)
        y = model(x)
        y.square().mean().backward()
        return [y.detach(), *(p.grad for p in model.parameters()), *model.buffers()]

    assert all(map(torch.equal, with_threads(1, step), with_threads(2, step)))


SMALL = [case for case, (size, *_) in CONVOLUTIONS.items() if size[0] == 13]


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
@pytest.mark.parametrize("case", SMALL)
def test_images_do_not_see_each_other(case, value):
    """Nor do their gradients."""
    tensors, options, cotangent = make(case)
    others = torch.arange(13) != 5
    before = results(ops.conv2d, tensors, options, cotangent)
    tensors[0][5], cotangent[5] = value, value
    after = results(ops.conv2d, tensors, options, cotangent)
    for old, new in zip(before[:2], after[:2], strict=True):
        assert not new[5].isfinite().all()
        assert torch.equal(old[others], new[others])


@pytest.mark.parametrize("pixel", [(0, 0), (3, 4), (6, 6), (8, 7)], ids=str)
@pytest.mark.parametrize("case", ["direct", "direct, 5x5", "stride 2", "transposed"])
def test_an_infinite_pixel_stays_in_its_windows(case, pixel):
    tensors, options, _ = make(case)
    x, weight, _bias = tensors
    row, column = (min(p, size - 1) for p, size in zip(pixel, x.shape[2:], strict=True))
    before = ops.conv2d(*tensors, **options)
    x[6, 0, row, column] = float("inf")
    seen = torch.zeros_like(x, dtype=torch.float64)
    seen[6, 0, row, column] = 1
    touched = reference.conv2d(seen, torch.ones_like(weight).double(), **options) > 0
    after = ops.conv2d(*tensors, **options)
    assert torch.equal(after.isfinite(), ~touched)
    assert torch.equal(after[~touched], before[~touched])


@pytest.mark.parametrize("pixel", [(0, 0), (3, 4), (6, 6), (7, 7)], ids=str)
@pytest.mark.parametrize("case", ["winograd", "winograd, padding 2"])
def test_an_infinite_pixel_stays_in_its_winograd_tiles(case, pixel):
    """Winograd makes 2 x 2 results from 4 x 4 pixels, so all four may become NaN, and no others."""
    tensors, options, _ = make(case)
    x, _weight, _bias = tensors
    before = ops.conv2d(*tensors, **options)
    x[6, 0, pixel[0], pixel[1]] = float("inf")
    seen = torch.zeros(13, 1, 8, 8)
    seen[6, 0, pixel[0], pixel[1]] = 1
    padding = options["padding"]
    tiles = F.max_pool2d(F.pad(seen, (padding,) * 4), 4, 2)
    allowed = interpolate(tiles, scale_factor=2).bool().expand_as(before)
    must = F.conv2d(seen, torch.ones(1, 1, 3, 3), padding=padding).bool().expand_as(before)
    after = ops.conv2d(*tensors, **options)
    assert not after[must].isfinite().any()
    assert torch.equal(after[~allowed], before[~allowed])
