"""``MeanIoU`` against numpy, written out image by image and class by class."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing

from colorseg.metrics import MeanIoU

CLASSES = torch.zeros(1, 4, 4).long()
ABSENT = {"ignore": math.nan, "zero": 0.0, "one": 1.0}


def ious(predicted, target, classes, absent):
    """IoU of every class from sets of pixels."""
    values = []
    for c in classes:
        a, b = predicted == c, target == c
        union = (a | b).sum()
        values.append((a & b).sum() / union if union else ABSENT[absent])
    return np.array(values)


def expected(definition, predicted, target, num_classes, absent, ignore_index=None):
    predicted, target = predicted.numpy(), target.numpy()
    pairs = [(p[t != ignore_index], t[t != ignore_index]) for p, t in zip(predicted, target)]  # noqa: B905
    classes = range(num_classes)
    if definition == "image":
        return np.mean([np.nanmean(ious(p, t, classes, absent)) for p, t in pairs if t.size])
    whole = [np.concatenate(part) for part in zip(*pairs, strict=True)]
    if definition == "foreground":
        classes = classes[1:]
    return np.nanmean(ious(*whole, classes, absent))


def batches(num_classes=4, images=6, ignore_index=None):
    """Labels in which class 2 occurs in some images only and the last class nowhere."""
    target = torch.randint(0, num_classes - 1, (images, 9, 7))
    target[::2][target[::2] == 2] = 0
    predicted = torch.where(torch.rand(target.shape) < 0.6, target, torch.zeros_like(target))
    if ignore_index is not None:
        target[torch.rand(target.shape) < 0.3] = ignore_index
    return predicted, target


@pytest.mark.parametrize("absent", list(ABSENT))
@pytest.mark.parametrize("definition", ["macro", "foreground", "image"])
@pytest.mark.parametrize("ignore_index", [None, 255, 1])
def test_matches_numpy(definition, absent, ignore_index):
    predicted, target = batches(ignore_index=ignore_index)
    metric = MeanIoU(4, definition, absent, ignore_index)
    for part in (slice(0, 4), slice(4, 6)):
        metric.update(predicted[part], target[part])
    want = expected(definition, predicted, target, 4, absent, ignore_index)
    assert metric.compute().item() == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize(
    ("iou", "score"),
    [(0.3, 0), (0.5, 0), (0.52, 0.1), (0.72, 0.5), (0.949, 0.9), (0.96, 1), (1, 1)],
)
def test_the_score_of_the_course(iou, score):
    """The share of the thresholds 0.5, 0.55, ..., 0.95 that are exceeded: 0.72 scores 0.5."""
    target = torch.zeros(1, 20, 100, dtype=torch.long)
    target[0, :10] = 1
    predicted = torch.zeros_like(target)
    predicted.view(-1)[: round(1000 * iou)] = 1
    metric = MeanIoU(2, "course")
    metric.update(predicted, target)
    assert metric.compute().item() == pytest.approx(score, abs=1e-12)


def test_the_score_of_the_course_is_the_mean_over_images():
    predicted, target = (torch.randint(0, 2, (9, 8, 8)) for _ in range(2))
    predicted[2:5], target[2:5] = target[2:5].clone(), target[2:5]
    predicted[0], target[0] = 0, 0  # two empty masks score 1
    predicted[2, 0] = 1
    scores = []
    for p, t in zip(predicted.bool().numpy(), target.bool().numpy(), strict=True):
        iou = ((p & t).sum() + 1e-6) / ((p | t).sum() + 1e-6)
        scores.append(np.ceil(np.clip(20 * (iou - 0.5), 0, 10)) / 10)
    metric = MeanIoU(2, "course")
    metric.update(predicted[:5], target[:5])
    metric.update(predicted[5:], target[5:])
    assert 0 < np.mean(scores) < 1
    assert metric.compute().item() == pytest.approx(np.mean(scores), abs=1e-12)


def test_one_batch_and_its_different_answers():
    target = torch.tensor([[[0, 0, 1, 1]], [[0, 0, 0, 0]]])
    predicted = torch.tensor([[[0, 1, 1, 1]], [[0, 0, 0, 0]]])
    answers = {
        ("macro", "ignore"): (5 / 6 + 2 / 3) / 2,
        ("foreground", "ignore"): 2 / 3,
        ("image", "ignore"): ((1 / 2 + 2 / 3) / 2 + 1) / 2,  # the second image has no class 1
        ("image", "zero"): ((1 / 2 + 2 / 3) / 2 + 1 / 2) / 2,
        ("course", "ignore"): (0.4 + 1) / 2,
    }
    for (definition, absent), want in answers.items():
        metric = MeanIoU(2, definition, absent)
        metric.update(predicted, target)
        assert metric.compute().item() == pytest.approx(want, abs=1e-12), definition


def test_logits_and_small_integers_are_welcome():
    predicted, target = batches()
    want = MeanIoU(4)
    want.update(predicted, target)
    logits = torch.nn.functional.one_hot(predicted, 4).movedim(-1, 1).half()
    for given in (logits, predicted.byte()):
        metric = MeanIoU(4)
        metric.update(given, target.to(torch.uint8))
        assert metric.compute() == want.compute()


def test_per_class_and_table():
    predicted, target = batches(ignore_index=255)
    metric = MeanIoU(4, "image", "zero", ignore_index=255)
    metric.update(predicted, target)
    counted = target != 255
    want = ious(predicted[counted].numpy(), target[counted].numpy(), range(4), "zero")
    assert metric.per_class().tolist() == pytest.approx(want, abs=1e-12)
    heading, *rows = metric.table(["ground", "flower", "leaf", "sky"]).splitlines()
    assert heading.split() == ["class", "IoU", "pixels"]
    assert [float(row.split()[1]) for row in rows] == pytest.approx(want, abs=5e-5)
    share = 100 * (target[counted] == 1).double().mean().item()
    assert rows[1].split()[::2] == ["flower", f"{share:.1f}"]
    assert rows[3].startswith("sky     0.0000   0.0 %")


@pytest.mark.parametrize("definition", ["macro", "foreground", "image", "course"])
def test_nothing_counted_is_nan_and_reset_forgets(definition):
    metric = MeanIoU(2, definition, ignore_index=255)
    metric.update(torch.zeros(2, 3, 3).long(), torch.full((2, 3, 3), 255))
    assert math.isnan(metric.compute())
    metric.update(torch.ones(1, 3, 3).long(), torch.ones(1, 3, 3).long())
    assert metric.compute() == 1
    metric.reset()
    metric.update(torch.ones(1, 3, 3).long(), torch.zeros(1, 3, 3).long())
    assert metric.compute() == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MeanIoU(1), "num_classes must be at least 2, got 1"),
        (lambda: MeanIoU(2, "micro"), "one of macro, foreground, image, course, got 'micro'"),
        (lambda: MeanIoU(2, absent="nan"), "absent must be one of ignore, zero, one, got 'nan'"),
        (lambda: MeanIoU(3, "course"), "of 2 classes, got num_classes=3"),
        (
            lambda: MeanIoU(2).update(torch.zeros(1, 2, 2).int(), torch.full((1, 2, 2), 255)),
            "target has classes 255 to 255, but num_classes is 2; pass ignore_index",
        ),
        (lambda: MeanIoU(2).update(CLASSES, torch.zeros(1, 4, 5).long()), r"and \(1, 4, 5\)"),
        (
            lambda: MeanIoU(3).update(torch.zeros(1, 2, 4, 4), CLASSES),
            r"logits must be \(N, C, H, W\) with C = num_classes = 3, got \(1, 2, 4, 4\)",
        ),
        (
            lambda: MeanIoU(2).update(torch.full((1, 2, 2), 7), torch.zeros(1, 2, 2).long()),
            "predicted has classes 7 to 7, but num_classes is 2; pass ignore_index",
        ),
    ],
)
def test_mistakes_get_a_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_probabilities_are_not_cut_off_to_class_0():
    with pytest.raises(
        TypeError, match=r"logits \(N, C, H, W\), got \(1, 4, 4\) torch.float32; th"
    ):
        MeanIoU(2).update(torch.rand(1, 4, 4), CLASSES)
    with pytest.raises(TypeError, match=r"target must be integer classes \(N, H, W\), got \(1, 4"):
        MeanIoU(2).update(CLASSES, torch.rand(1, 4, 4))


def _rank(rank, address, shares, queue):
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=len(shares))
    results = []
    for definition in ("macro", "image", "course"):
        metric = MeanIoU(2, definition)
        metric.update(*shares[rank])
        results.append((metric.compute().item(), metric.confusion.tolist(), metric.table()))
    if rank == 1:
        queue.put(results)
    dist.destroy_process_group()


def test_ranks_add_up_to_one_process(tmp_path):
    """Ranks with different numbers of images, which a mean of means would get wrong."""
    predicted, target = batches(3, images=5)
    shares = [(predicted[:1], target[:1]), (predicted[1:], target[1:])]
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    address = f"file://{tmp_path / 'meeting'}"
    arguments = (address, shares, queue)
    multiprocessing.spawn(_rank, arguments, nprocs=2, join=True)
    for definition, got in zip(("macro", "image", "course"), queue.get(), strict=True):
        whole = MeanIoU(2, definition)
        whole.update(predicted, target)
        mean, own, table = got
        assert mean == pytest.approx(whole.compute().item(), abs=1e-12)
        assert table == whole.table()  # of all ranks
        assert own != whole.confusion.tolist()  # a rank keeps its own afterwards


def test_metrics_do_not_wait_for_torchmetrics():
    code = "import sys, colorseg.metrics; print('torchmetrics' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout == "False\n", run.stderr
