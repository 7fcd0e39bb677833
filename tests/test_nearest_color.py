"""nearest_color against its float64 reference, and everything a registered operator promises."""

import pytest
import torch
from conftest import assert_close
from parity import lay_out

from colorseg import ops, reference
from colorseg.palette import Palette

pytestmark = pytest.mark.every_device

HORSE24 = Palette.horse24().colors
SHAPES = {
    "plain": (2, 8, 10),
    "odd": (3, 9, 7),
    "1x1": (4, 1, 1),
    "large": (2, 65, 70),
    "empty": (0, 8, 8),
}


@pytest.fixture
def horse24(device):
    return HORSE24.to(device)


def make_rgb(size, dtype, layout="contiguous"):
    n, h, w = size
    if dtype == torch.uint8:
        return lay_out(torch.randint(0, 256, (n, 3, h, w), dtype=dtype), layout)
    return lay_out(torch.rand(n, 3, h, w).to(dtype), layout)


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.float32, torch.float64, torch.bfloat16], ids=str
)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced", "expanded"])
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_reference(shape, layout, dtype, horse24):
    rgb = make_rgb(SHAPES[shape], dtype, layout)
    exact = rgb if dtype == torch.uint8 else rgb.double()
    got, want = ops.nearest_color(rgb, horse24), reference.nearest_color(exact, horse24.double())
    assert got.dtype == torch.int64
    assert torch.equal(got, want)


def test_the_same_bits_as_the_float32_expression(horse24):
    """On a grid of all 8-bit colors, so that instruction sets and torch label data alike."""
    steps = torch.arange(0, 256, 5, dtype=torch.uint8)
    rgb = torch.cartesian_prod(steps, steps, steps).T.reshape(1, 3, len(steps), -1)
    assert torch.equal(ops.nearest_color(rgb, horse24), reference.nearest_color(rgb, horse24))


def test_ties_go_to_the_lowest_index():
    palette = torch.tensor([[0.75, 0.5, 0.5], [0.25, 0.5, 0.5], [0.25, 0.5, 0.5]])
    assert ops.nearest_color(torch.full((1, 3, 5, 7), 0.5), palette).eq(0).all()
    assert ops.nearest_color(torch.full((1, 3, 5, 7), 0.5), palette[1:]).eq(0).all()


def test_large_palettes_and_dtypes():
    palette, rgb = torch.rand(300, 3), torch.rand(1, 3, 20, 20)
    want = reference.nearest_color(rgb.double(), palette.double())
    assert torch.equal(ops.nearest_color(rgb, palette), want)
    assert torch.equal(ops.nearest_color(rgb, palette, dtype=torch.int32), want.int())
    labels = ops.nearest_color(rgb, palette[:256], dtype=torch.uint8)
    assert torch.equal(labels, reference.nearest_color(rgb, palette[:256], dtype=torch.uint8))
    for dtype in (torch.uint8, torch.int8):
        with pytest.raises(ValueError, match="int8 cannot number 300 colors"):
            ops.nearest_color(rgb, palette, dtype=dtype)
    with pytest.raises(TypeError, match="dtype must be an integer dtype"):
        ops.nearest_color(rgb, palette, dtype=torch.float32)


@pytest.mark.cpu_only
def test_threads_give_the_same_bits(horse24):
    rgb, threads = torch.rand(3, 3, 65, 70), torch.get_num_threads()
    results = []
    for count in (1, 2):
        torch.set_num_threads(count)
        results.append(ops.nearest_color(rgb, horse24))
    torch.set_num_threads(threads)
    assert torch.equal(*results)


def test_opcheck(horse24):
    torch.library.opcheck(
        torch.ops.colorseg.nearest_color.default, (make_rgb((2, 5, 6), torch.uint8), horse24)
    )


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_whole(backend, horse24):
    compiled = torch.compile(
        lambda t: ops.nearest_color(t, horse24) + 1, fullgraph=True, backend=backend
    )
    rgb = make_rgb((2, 8, 10), torch.uint8)
    assert_close(compiled(rgb), ops.nearest_color(rgb, horse24) + 1, torch.float64)


RGB = torch.zeros(1, 3, 4, 4)
ERRORS = [
    (torch.zeros(3, 4, 4), HORSE24, RuntimeError, "RGB images must be (N, 3, H, W), got (3, 4, 4)"),
    (
        torch.zeros(1, 1, 4, 4),
        HORSE24,
        RuntimeError,
        "RGB images must be (N, 3, H, W), got (1, 1, 4, 4)",
    ),
    (RGB.int(), HORSE24, TypeError, "rgb must be uint8 or floating point"),
    (
        RGB,
        HORSE24[:, :2],
        RuntimeError,
        "palette must be (K, 3) with at least one color, got (24, 2)",
    ),
    (RGB, HORSE24[:0], RuntimeError, "palette must be (K, 3) with at least one color, got (0, 3)"),
    (RGB, HORSE24[0], RuntimeError, "palette must be (K, 3) with at least one color, got (3)"),
    (RGB, (HORSE24 * 255).to(torch.uint8), TypeError, "divide 8-bit colors by 255"),
]


@pytest.mark.cpu_only
@pytest.mark.parametrize(("rgb", "palette", "error", "message"), ERRORS, ids=[e[3] for e in ERRORS])
def test_errors(rgb, palette, error, message):
    with pytest.raises(error) as raised:
        ops.nearest_color(rgb, palette)
    assert message in str(raised.value)
