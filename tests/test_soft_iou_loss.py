"""soft_iou_loss against its float64 reference, and everything a registered operator promises."""

import itertools
import os

import pytest
import torch
from conftest import assert_close
from parity import DTYPES, LAYOUTS, check_parity, gradients, lay_out, leaf

from colorseg import ops, reference

pytestmark = pytest.mark.every_device

SHAPES = {"plain": (2, 2, 8, 10), "odd": (3, 5, 9, 7), "1x1": (4, 3, 1, 1), "large": (2, 2, 65, 70)}
CASES = {
    "default": {},
    "image": {"per": "image"},
    "all": {"classes": "all"},
    "list": {"classes": [1, 0]},
    "twice": {"classes": [1, 1, 0]},
    "smooth": {"smooth": (0.0, 1.0)},
    "ignore": {"ignore_index": 1, "classes": "all"},
    "ignore 255": {"ignore_index": 255},
    "weight": {"classes": [0, 1], "weight": torch.tensor([0.5, 3.0])},
}
PAIRS = list(itertools.product(("batch", "image"), ("mean", "sum", "none")))


def make_inputs(size, dtype, layout="contiguous", target="int64", ignore=None):
    """(logits, target), with some pixels at the ignored label."""
    n, c, h, w = size
    labels = torch.randint(0, c, (n, h, w))
    if ignore is not None:
        labels[torch.rand(n, h, w) < 0.3] = ignore
    labels = labels > 0 if target == "bool" else labels.to(getattr(torch, target))
    return lay_out(torch.randn(size, dtype=dtype), layout), labels


def weighted(options, like):
    """Options with the weight in the dtype, and on the device, of a tensor."""
    return {k: v.to(like) if isinstance(v, torch.Tensor) else v for k, v in options.items()}


def compare(logits, labels, **options):
    """Parity of the loss and its gradient."""
    check_parity(
        lambda z: ops.soft_iou_loss(z, labels, **weighted(options, z)),
        lambda z: reference.soft_iou_loss(z, labels, **weighted(options, z)),
        [logits],
    )


def test_smooth_may_be_a_list():
    compare(*make_inputs(SHAPES["odd"], torch.float32), smooth=[0.0, 1.0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("case", CASES)
def test_matches_reference(case, shape, layout, dtype):
    options = CASES[case]
    compare(
        *make_inputs(SHAPES[shape], dtype, layout, ignore=options.get("ignore_index")), **options
    )


@pytest.mark.parametrize(("per", "reduction"), PAIRS)
def test_reductions(per, reduction):
    logits, labels = make_inputs((3, 4, 9, 7), torch.float32)
    options = {
        "per": per,
        "reduction": reduction,
        "classes": [1, 3],
        "weight": torch.tensor([1.0, 2.0]),
    }
    compare(logits, labels, **options)
    shape = {"none": (3, 2) if per == "image" else (2,)}.get(reduction, ())
    assert ops.soft_iou_loss(logits, labels, **options).shape == shape


@pytest.mark.parametrize("target", ["uint8", "bool"])
def test_target_dtypes(target):
    compare(*make_inputs((2, 2, 8, 10), torch.float32, target=target))


def test_uint8_target_and_negative_ignore_index():
    """156 is -100 modulo 256: it is out of range, not ignored."""
    labels = torch.full((1, 2, 2), 156, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="4 labels are outside"):
        ops.soft_iou_loss(torch.zeros(1, 2, 2, 2), labels, ignore_index=-100)


@pytest.mark.parametrize(("per", "reduction"), PAIRS)
@pytest.mark.parametrize("channels", [2, 3])
def test_gradcheck(channels, per, reduction):
    logits, labels = make_inputs((2, channels, 3, 5), torch.float64)
    assert torch.autograd.gradcheck(
        lambda z: ops.soft_iou_loss(z, labels, per=per, reduction=reduction, classes="all"),
        leaf(logits),
    )


def test_known_values():
    """Perfect, disjoint, and nothing there at all: value and finite gradient."""
    logits = torch.zeros(1, 2, 4, 4)
    logits[:, 1, :2], logits[:, 0, 2:] = 50.0, 50.0
    mask = torch.zeros(1, 4, 4, dtype=torch.long)
    mask[:, :2] = 1
    absent = torch.stack([torch.full((1, 4, 4), 50.0), torch.zeros(1, 4, 4)], 1)
    for z, target, value in ((logits, mask, 0.0), (logits, 1 - mask, 1.0), (absent, 0 * mask, 0.0)):
        z = leaf(z)
        loss = ops.soft_iou_loss(z, target)
        assert loss.item() == pytest.approx(value, abs=1e-6)
        assert torch.autograd.grad(loss, z)[0].isfinite().all()


def test_everything_ignored():
    logits = leaf(torch.randn(2, 3, 4, 4))
    loss = ops.soft_iou_loss(logits, torch.full((2, 4, 4), 255), ignore_index=255)
    assert loss.item() == 0  # (0 + s) / (0 + s)
    assert torch.autograd.grad(loss, logits)[0].eq(0).all()


def test_large_half_image_does_not_overflow():
    """The sums exceed float16's largest number by far."""
    logits = torch.randn(1, 2, 600, 600).half()
    labels = torch.randint(0, 2, (1, 600, 600))
    weight = torch.ones(1).half()
    loss = ops.soft_iou_loss(logits, labels, weight=weight)
    assert loss.dtype == torch.float32
    assert_close(loss, reference.soft_iou_loss(logits.double(), labels))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("channels", [2, 3])
def test_nan_and_infinity_propagate(channels, value):
    logits, labels = make_inputs((2, channels, 8, 10), torch.float32)
    logits[0, 1, 2, 3] = value
    compare(logits, labels, per="image", reduction="none", classes="all")


@pytest.mark.cpu_only
@pytest.mark.parametrize("channels", [2, 3])
def test_threads_give_the_same_bits(channels):
    logits, labels = make_inputs((3, channels, 65, 70), torch.float32)
    results, threads = [], torch.get_num_threads()
    for count in (1, 2):
        torch.set_num_threads(count)
        z = leaf(logits)
        loss = ops.soft_iou_loss(z, labels)
        results.append([loss.detach(), *gradients(loss, [z], torch.ones(()))])
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [2, 3])
def test_a_second_backward_pass_gives_the_same_bits(channels, layout):
    """Of two classes the first one consumes what the forward pass kept."""
    logits, labels = make_inputs((2, channels, 9, 15), torch.float32, layout)
    labels[0, 0] = 255
    z = leaf(logits)
    loss = ops.soft_iou_loss(z, labels, ignore_index=255, per="image", reduction="none")
    upstream = torch.rand_like(loss)
    (first,) = torch.autograd.grad(loss, z, upstream, retain_graph=True)
    want = first.clone()
    assert torch.equal(torch.autograd.grad(loss, z, upstream, retain_graph=True)[0], want)
    assert torch.equal(torch.autograd.grad(loss, z, 2 * upstream)[0], 2 * want)
    assert torch.equal(first, want)  # the caller's own
    if layout == "channels_last":
        assert first.is_contiguous(memory_format=torch.channels_last)


# of two classes the CUDA kernels, run on the CPU, keep another layout than the fake kernel says
@pytest.mark.parametrize("channels", [3] if os.environ.get("COLORSEG_SIMT") else [2, 3])
@pytest.mark.parametrize("per_image", [True, False])
def test_opcheck(per_image, channels):
    logits, labels = make_inputs((2, channels, 6, 4), torch.float32, "channels_last")
    classes = list(range(1, channels))
    options = classes, per_image, 1e-6, 1e-6, None, torch.rand(len(classes)), "none"
    torch.library.opcheck(
        torch.ops.colorseg.soft_iou_loss.default, (leaf(logits), labels, *options, per_image)
    )
    loss, sums, _ = torch.ops.colorseg.soft_iou_loss.default(logits, labels, *options, False)
    torch.library.opcheck(
        torch.ops.colorseg.soft_iou_loss_backward.default,
        (loss, logits, labels, sums, *options),
        test_utils=("test_schema", "test_faketensor"),
    )


@pytest.mark.parametrize("channels", [3] if os.environ.get("COLORSEG_SIMT") else [2, 3])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_whole(backend, channels):
    logits, labels = make_inputs((2, channels, 8, 10), torch.float32)
    compiled = torch.compile(
        lambda z: ops.soft_iou_loss(z.sin(), labels), fullgraph=True, backend=backend
    )
    z = leaf(logits)
    eager = ops.soft_iou_loss(z.sin(), labels)
    assert_close(compiled(z), eager)
    assert_close(
        gradients(compiled(z), [z], torch.ones(()))[0], gradients(eager, [z], torch.ones(()))[0]
    )


@pytest.mark.parametrize("channels", [2, 3])
def test_second_derivative_is_refused(channels):
    logits, labels = make_inputs((2, channels, 8, 10), torch.float32)
    z = leaf(logits)
    (grad,) = torch.autograd.grad(ops.soft_iou_loss(z, labels), z, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.square().sum().backward()
