"""Two and four processes with gloo compute what one does on all of their pictures."""

import copy
import dataclasses

import pytest
import torch
import torch.distributed as dist
from conftest import assert_close
from small_segmenters import TRAIN, VAL, SmallSegmenter
from spawned import share, spawn
from torch import nn

import colorseg
from colorseg import ops
from colorseg.data import IGNORE
from colorseg.models import UNet
from colorseg.training import SegmentationConfig, fit
from colorseg.training.seeding import seed_everything

STEPS = 3


def masks():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 3, 5, 7, dtype=torch.float64, generator=generator)
    return logits, torch.randint(3, (6, 5, 7), generator=generator)


LOSSES = {
    "foreground": {},
    "weighted": {"classes": [0, 2], "weight": torch.tensor([1.0, 3.0]).double(), "smooth": 1.0},
    "each": {"classes": "all", "reduction": "none", "ignore_index": 1},
}


def soft_iou_of_share(rank, ranks, shares):
    logits, target = (share(t, shares, rank) for t in masks())
    results = {}
    for name, options in LOSSES.items():
        z = logits.clone().requires_grad_()
        loss = ops.soft_iou_loss(z, target, process_group=dist.group.WORLD, **options)
        loss.sum().backward()
        results[name] = loss.detach(), z.grad
    return results


@pytest.mark.parametrize("shares", [(3, 3), (1, 5)], ids=str)
def test_soft_iou_of_all_ranks(shares, tmp_path):
    results = spawn(soft_iou_of_share, 2, tmp_path, shares)
    logits, target = masks()
    for name, options in LOSSES.items():
        z = logits.clone().requires_grad_()
        loss = ops.soft_iou_loss(z, target, **options)
        loss.sum().backward()
        assert_close(results[0][name][0], loss)
        assert_close(results[1][name][0], loss)
        assert_close(torch.cat([r[name][1] for r in results]), 2 * z.grad)


def refusals(rank, ranks):
    """What differentiating a gradient says: of the loss of all ranks, and of synchronised norms."""
    logits, target = masks()
    z, x = logits.requires_grad_(), torch.randn(2, 3, 4, 4, requires_grad=True)
    y = ops.soft_iou_loss(z, target, process_group=dist.group.WORLD)
    norm = colorseg.fuse(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)))
    model = nn.SyncBatchNorm.convert_sync_batchnorm(norm)
    return refusal(y, z), refusal(model(x).square().sum(), x)


def refusal(y, x):
    try:  # pytest.raises would keep the frames, and with them the group
        torch.autograd.grad(y, x, create_graph=True)
    except RuntimeError as error:
        return str(error)


def test_second_derivatives_over_ranks_are_refused(tmp_path):
    for message in spawn(refusals, 1, tmp_path)[0]:
        assert "has no second derivative" in message


def blocks():
    """A network of fused blocks: a run, and one with a residual of siblings; in float64."""
    torch.manual_seed(0)
    model = UNet(num_filters=4, num_colors=3).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def images(n=8):
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(n, 1, 8, 12, dtype=torch.float64, generator=generator)
    return images, torch.randint(3, (n, 8, 12), generator=generator)


def train(model, x, labels, loss):
    """Losses of some steps, and the state at the end."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        value = loss(model(x), labels)
        value.backward()
        if dist.is_initialized():  # as DistributedDataParallel, which refuses SyncBatchNorm on CPUs
            for p in model.parameters():
                dist.all_reduce(p.grad)
                p.grad /= dist.get_world_size()
        optimizer.step()
        losses.append(value.detach())
    return torch.stack(losses), model.state_dict()


CRITERIA = {
    "color_cross_entropy": ops.color_cross_entropy,
    "soft IoU per image": lambda z, y: ops.soft_iou_loss(z, y, per="image"),
}


def train_share(rank, ranks, criterion):
    x, labels = (t.chunk(ranks)[rank] for t in images())
    model = nn.SyncBatchNorm.convert_sync_batchnorm(blocks())
    return train(model, x, labels, CRITERIA[criterion])


@pytest.mark.parametrize(
    ("ranks", "criterion"),
    [(2, "color_cross_entropy"), (2, "soft IoU per image"), (4, "color_cross_entropy")],
)
def test_training_step_by_step(ranks, criterion, tmp_path):
    results = spawn(train_share, ranks, tmp_path, criterion)
    losses, state = train(blocks(), *images(), CRITERIA[criterion])
    assert_close(torch.stack([r[0] for r in results]).mean(0), losses)
    for _, got in results:
        for name, want in state.items():
            assert_close(got[name].double(), want.double())


def segment(rank, ranks, folder, settings):
    """The first epoch's losses and the weights after it."""
    torch.set_num_threads(1)
    masks = TRAIN.masks.clone()
    masks[:5, :20] = IGNORE  # so that pictures count differently
    train = dataclasses.replace(TRAIN, masks=masks)
    # 13 pictures: the last batch has too few and is left out
    config = SegmentationConfig(
        out=f"{folder}/run", epochs=1, batch_size=6, lr=0.01, augment=False, **settings
    )
    seed_everything(0)
    model = SmallSegmenter(aux=True)
    for part in (model.backbone, model.classifier):
        part[1] = nn.GroupNorm(2, 8)  # nothing over the batch
    history = fit(model, train, VAL, config)
    return torch.tensor([history.best.train_loss, history.best.val_loss]), model.state_dict()


@pytest.mark.parametrize("settings", [{"loss": "sum"}, {"loss": "sum", "reference": True}], ids=str)
def test_segmentation_by_two_is_that_by_one(settings, tmp_path):
    (tmp_path / "one").mkdir()
    results = spawn(segment, 2, tmp_path, tmp_path, settings)
    losses, state = segment(0, 1, tmp_path / "one", settings)
    for got_losses, got in results:
        torch.testing.assert_close(got_losses, losses, rtol=1e-4, atol=0)
        for name, want in state.items():
            torch.testing.assert_close(got[name], want, rtol=1e-2, atol=1e-4)


def normalize_share(rank, ranks, shares):
    x, _ = images()
    model = nn.SyncBatchNorm.convert_sync_batchnorm(blocks())
    x = share(x, shares, rank).clone().requires_grad_()
    y = model(x)
    (y**2).sum().backward()
    grads = [p.grad for p in model.parameters()]
    return y.detach(), x.grad, grads, [b.clone() for b in model.buffers()]


@pytest.mark.parametrize("shares", [(2, 6), (0, 8)], ids=str)
def test_unequal_and_empty_batches(shares, tmp_path):
    results = spawn(normalize_share, 2, tmp_path, shares)
    model, (x, _) = blocks(), images()
    x.requires_grad_()
    y = model(x)
    (y**2).sum().backward()
    assert_close(torch.cat([r[0] for r in results]), y)
    assert_close(torch.cat([r[1] for r in results]), x.grad)
    for *got, p in zip(*(r[2] for r in results), model.parameters(), strict=True):
        assert_close(got[0] + got[1], p.grad)
    for result in results:
        for got, want in zip(result[3], model.buffers(), strict=True):
            assert_close(got.double(), want.double())


def test_it_needs_values(tmp_path):
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        block = colorseg.nn.ConvBNReLU(1, 2, 3)
        model = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(block))
        with pytest.raises(ValueError, match="more than one value per channel in all ranks"):
            model(torch.rand(1, 1, 1, 1))
    finally:
        dist.destroy_process_group()
