"""color_cross_entropy against its float64 reference, and what a registered operator promises."""

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_close
from parity import DTYPES, LAYOUTS, check_parity, gradients, lay_out, leaf

from colorseg import ops, reference

pytestmark = pytest.mark.every_device

SHAPES = {
    "plain": (2, 5, 8, 10),
    "odd": (3, 24, 9, 7),
    "1x1": (4, 2, 1, 1),
    "large": (2, 24, 65, 70),
    "one class": (2, 1, 4, 4),
}
CASES = {
    "mean": {},
    "sum": {"reduction": "sum"},
    "none": {"reduction": "none"},
    "ignore": {"ignore_index": 0},
    "weight": {"weight": True},
    "smoothing": {"label_smoothing": 0.1},
    "all": {"label_smoothing": 0.3, "weight": True, "ignore_index": 1, "reduction": "mean"},
    "all, none": {"label_smoothing": 0.3, "weight": True, "ignore_index": 1, "reduction": "none"},
}
SOFT = {  # RGB targets alone
    "soft": {"soft_neighbors": 3},
    "soft, weight": {"soft_neighbors": 3, "weight": True},
    "soft, all": {"soft_neighbors": 2, "label_smoothing": 0.3, "weight": True, "ignore_index": 1},
    "soft, none": {"soft_neighbors": 4, "weight": True, "reduction": "none"},
    "soft, every color": {"soft_neighbors": 99, "reduction": "sum"},
}


def make_inputs(size, dtype, layout="contiguous", target="int64"):
    """(logits, target, palette); an RGB target stays clear of ties, so every dtype labels alike."""
    n, c, h, w = size
    logits = lay_out(2 * torch.randn(size, dtype=dtype), layout)
    labels = torch.randint(0, c, (n, h, w))
    palette = torch.rand(c, 3)
    if target == "rgb":
        return logits, (palette[labels] + 1e-3).permute(0, 3, 1, 2), palette
    if target == "rgb8":
        return logits, torch.randint(0, 256, (n, 3, h, w), dtype=torch.uint8), palette
    return logits, labels.to(getattr(torch, target)), None


def options_of(case, channels, dtype):
    """The options of a case, with a weight of the right size."""
    options = dict((CASES | SOFT)[case])
    if "soft_neighbors" in options:
        options |= {"soft_neighbors": min(options["soft_neighbors"], channels), "soft_sigma": 0.3}
    if options.pop("weight", False):
        options["weight"] = torch.linspace(0.2, 2, channels, dtype=dtype)
    return options


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("target", ["int64", "uint8", "rgb", "rgb8"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("case", CASES)
def test_matches_reference(case, shape, target, layout, dtype):
    check_case(case, shape, target, layout, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("target", ["rgb", "rgb8"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("case", SOFT)
def test_soft_targets_match_reference(case, shape, target, layout, dtype):
    check_case(case, shape, target, layout, dtype)


def check_case(case, shape, target, layout, dtype):
    """Loss and gradient of one case."""
    inputs = make_inputs(SHAPES[shape], dtype, layout, target)
    options = options_of(case, SHAPES[shape][1], dtype)

    def exact(logits, target, palette, **options):
        if "weight" in options:
            options["weight"] = options["weight"].to(logits)
        return reference.color_cross_entropy(logits, target, palette, **options)

    logits, labels, palette = inputs
    check_parity(
        lambda z, **o: ops.color_cross_entropy(z, labels, palette, **o),
        lambda z, **o: exact(z, labels, palette, **o),
        [logits],
        **options,
    )


@pytest.mark.parametrize("case", [*CASES, *SOFT])
def test_gradcheck(case):
    logits, target, palette = make_inputs((2, 4, 3, 5), torch.float64, target="rgb")
    options = options_of(case, 4, torch.float64)
    assert torch.autograd.gradcheck(
        lambda z: ops.color_cross_entropy(z, target, palette, **options), leaf(logits)
    )


def test_soft_targets_by_hand():
    """A pixel between black and light gray; red is farther than both."""
    palette = torch.tensor([[1.0, 0, 0], [0, 0, 0], [0.7, 0.7, 0.7]])
    target = torch.full((1, 3, 1, 1), 0.4)
    logits = torch.randn(1, 3, 1, 1)
    options = {"soft_neighbors": 2, "soft_sigma": 0.5}
    loss = ops.color_cross_entropy(logits, target, palette, **options)
    near = torch.exp(-torch.tensor([3 * 0.4**2, 3 * 0.3**2], dtype=torch.float64) / (2 * 0.5**2))
    log_p = logits.double().log_softmax(1)[0, 1:, 0, 0]
    assert_close(loss, -(near / near.sum() * log_p).sum())


def test_neighbors_at_the_same_distance_count_from_the_lowest_index():
    palette = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])
    target = torch.full((1, 3, 1, 1), 0.25)
    logits = torch.tensor([1.0, 2.0, 5.0])[None, :, None, None]
    loss = ops.color_cross_entropy(logits, target, palette, soft_neighbors=2)
    assert_close(loss, -logits.double().log_softmax(1)[0, :2].mean())


def test_one_soft_neighbor_is_the_label():
    logits, rgb, palette = make_inputs((2, 5, 8, 10), torch.float32, target="rgb8")
    hard = ops.color_cross_entropy(logits, rgb, palette)
    assert_close(ops.color_cross_entropy(logits, rgb, palette, soft_neighbors=1), hard)


@pytest.mark.parametrize("target", ["int64", "uint8", "rgb8"])
def test_stats(target):
    logits, labels, palette = make_inputs((3, 6, 9, 7), torch.float32, target=target)
    logits[0, 2, :3] = logits[0, 4, :3] = 9.0  # ties: the first wins
    logits[1, 3, 2] = float("nan")  # counts as the largest
    got = ops.color_cross_entropy(logits, labels, palette, ignore_index=2, return_stats=True)
    want = reference.color_cross_entropy(
        logits.double(), labels, palette, ignore_index=2, return_stats=True
    )
    assert all(torch.equal(a, b) for a, b in zip(got[1:], want[1:], strict=True))
    assert [t.dtype for t in got[1:]] == [torch.int64] * 3
    assert not any(t.requires_grad for t in got[1:])


def test_stats_do_not_change_the_gradient():
    logits, labels, _ = make_inputs((3, 6, 9, 7), torch.float32)
    grads = []
    for stats in (False, True):
        z = leaf(logits)
        loss = ops.color_cross_entropy(z, labels, return_stats=stats)
        grads.append(torch.autograd.grad(loss[0] if stats else loss, z)[0])
    assert torch.equal(*grads)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_all_ignored(reduction):
    logits = leaf(torch.randn(2, 3, 4, 4))
    loss = ops.color_cross_entropy(logits, torch.full((2, 4, 4), -100), reduction=reduction)
    assert loss.eq(0).all()
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    assert grad.eq(0).all()


def test_empty_batch():
    logits = leaf(torch.randn(0, 3, 4, 4))
    loss = ops.color_cross_entropy(logits, torch.zeros(0, 4, 4, dtype=torch.long))
    assert loss.item() == 0
    assert torch.autograd.grad(loss, logits)[0].shape == (0, 3, 4, 4)


def test_uint8_labels_are_not_minus_100():
    """156 is -100 modulo 256: it is a label, not ignored."""
    logits = torch.randn(1, 200, 2, 2)
    target = torch.full((1, 2, 2), 156)
    assert_close(
        ops.color_cross_entropy(logits, target.byte()), F.cross_entropy(logits.double(), target)
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_propagate(value):
    logits, labels, _ = make_inputs((2, 5, 8, 10), torch.float32)
    logits[0, 1, 2, 3] = value
    labels[0, 2, 3] = 2
    check_parity(
        lambda z: ops.color_cross_entropy(z, labels, reduction="none"),
        lambda z: reference.color_cross_entropy(z, labels, reduction="none"),
        [logits],
    )


def test_extreme_logits():
    """Large and far apart logits neither overflow nor lose the loss."""
    logits = torch.tensor([[3e4, -3e4, 0.0], [-200.0, -201.0, -400.0], [88.0, 89.0, -88.0]])[
        :, :, None, None
    ]
    for label in range(3):
        target = torch.full((3, 1, 1), label)
        check_parity(
            lambda z, t=target: ops.color_cross_entropy(z, t, reduction="none"),
            lambda z, t=target: F.cross_entropy(z, t, reduction="none"),
            [logits],
        )


def test_half_logits_give_a_float32_loss():
    for dtype in (torch.bfloat16, torch.float16):
        logits, labels, _ = make_inputs((2, 5, 8, 10), dtype)
        z = leaf(logits)
        loss = ops.color_cross_entropy(z, labels, weight=torch.ones(5, dtype=dtype))
        assert loss.dtype == torch.float32
        assert_close(loss, F.cross_entropy(logits.double(), labels))
        assert torch.autograd.grad(loss, z)[0].dtype == dtype


@pytest.mark.cpu_only
def test_threads_give_the_same_bits():
    logits, labels, _ = make_inputs((3, 24, 65, 70), torch.float32)
    results, threads = [], torch.get_num_threads()
    for count in (1, 2):
        torch.set_num_threads(count)
        z = leaf(logits)
        loss = ops.color_cross_entropy(z, labels)
        results.append([loss.detach(), *gradients(loss, [z], torch.ones(()))])
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("target", ["int64", "rgb8"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_opcheck(target, reduction):
    logits, labels, palette = make_inputs((2, 5, 6, 4), torch.float32, "channels_last", target)
    arguments = (
        leaf(logits),
        labels,
        palette,
        torch.rand(5),
        -100,
        0.1,
        0,
        0.05,
        reduction,
        True,
        False,
    )
    torch.library.opcheck(torch.ops.colorseg.color_cross_entropy.default, arguments)
    loss, lse, normalizer, *_ = torch.ops.colorseg.color_cross_entropy.default(
        logits, *arguments[1:]
    )
    backward = (
        loss,
        logits,
        labels,
        palette,
        arguments[3],
        lse,
        normalizer,
        -100,
        0.1,
        0,
        0.05,
        reduction,
    )
    torch.library.opcheck(
        torch.ops.colorseg.color_cross_entropy_backward.default,
        backward,
        test_utils=("test_schema", "test_faketensor"),
    )


def test_opcheck_with_gradient():
    logits, labels, _ = make_inputs((2, 5, 6, 4), torch.float32, "channels_last")
    arguments = logits, labels, None, None, -100, 0.0, 0, 0.05, "mean", False, True
    torch.library.opcheck(torch.ops.colorseg.color_cross_entropy.default, arguments)
    *_, gradient = torch.ops.colorseg.color_cross_entropy.default(*arguments)
    scale = torch.ops.colorseg.color_cross_entropy_scale_.default
    torch.library.opcheck(scale, (gradient, torch.tensor(2.0)))
    torch.library.opcheck(scale, (gradient, torch.tensor(1.0)))


@pytest.mark.parametrize("case", ["mean", "sum", "ignore", "all"])
def test_gradient_of_the_forward_pass(case):
    """It is the backward operator's, for any upstream gradient and however often it is asked."""
    logits, labels, _ = make_inputs((2, 6, 9, 70), torch.float32)
    z, options = leaf(logits), options_of(case, 6, torch.float32)
    loss = ops.color_cross_entropy(z, labels, **options)
    for upstream in (torch.tensor(1.0), torch.tensor(-0.37)):
        first, second = (torch.autograd.grad(loss, z, upstream, retain_graph=True) for _ in "ab")
        assert torch.equal(*first, *second)
        first[0].zero_()  # the caller's own
        with torch.enable_grad():
            recomputed = torch.autograd.grad(loss, z, upstream.requires_grad_(), create_graph=True)
        assert_close(second[0], recomputed[0].double())


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_whole(backend):
    logits, rgb, palette = make_inputs((2, 5, 8, 10), torch.float32, target="rgb8")
    compiled = torch.compile(
        lambda z: ops.color_cross_entropy(z.sin(), rgb, palette), fullgraph=True, backend=backend
    )
    z = leaf(logits)
    eager = ops.color_cross_entropy(z.sin(), rgb, palette)
    assert_close(compiled(z), eager)
    assert_close(
        gradients(compiled(z), [z], torch.ones(()))[0], gradients(eager, [z], torch.ones(()))[0]
    )


def test_second_derivative_is_refused():
    logits, labels, _ = make_inputs((2, 5, 8, 10), torch.float32)
    z = leaf(logits)
    (grad,) = torch.autograd.grad(ops.color_cross_entropy(z, labels), z, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.square().sum().backward()
