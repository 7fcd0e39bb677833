"""What a run's settings change in the pictures and the loss that the network is trained on."""

import dataclasses

import pytest
import torch
from torch import nn

from colorseg import ops
from colorseg.data import ImageSet, load
from colorseg.models import UNet
from colorseg.palette import Palette
from colorseg.training import Config, fit
from colorseg.training.color import ColorTask

TRAIN, VAL = load("sample")
TRAIN, VAL = TRAIN.subset(slice(0, 1200, 25)), VAL.subset(slice(0, 240, 12))  # 48 and 20
PALETTE = Palette.named("sample24")
CPU = torch.device("cpu")
INDEX = torch.arange(16)
RECIPES = {
    "smoothing": {"label_smoothing": 0.1},
    "soft": {"soft_neighbors": 4, "soft_sigma": 0.1},
    "rebalanced": {"rebalance": 0.5},
    "all": {"label_smoothing": 0.1, "soft_neighbors": 3, "rebalance": 1.0},
}


class Recorder(nn.Module):
    """Keeps the grey pictures that it gets."""

    def forward(self, grey):
        self.grey = grey
        return torch.zeros(len(grey), len(PALETTE), *grey.shape[2:])


class ByGrey(nn.Module):
    """Knows the color of every grey value."""

    def __init__(self, palette):
        super().__init__()
        self.greys = palette.colors.mean(1)

    def forward(self, grey):
        return -1e4 * (grey - self.greys[:, None, None]).square()


def grey_of(pictures, index=INDEX):
    return pictures.grey(index)


def test_flips_mirror_some_pictures():
    recorder, seen = Recorder(), []
    task = ColorTask(TRAIN, PALETTE, CPU, config=Config(flips=True))
    for _ in range(8):
        task.loss(recorder, INDEX)
        seen.append(recorder.grey)
    grey = grey_of(TRAIN)
    kept = torch.stack([(g == grey).flatten(1).all(1) for g in seen])
    mirrored = torch.stack([(g == grey.flip(-1)).flatten(1).all(1) for g in seen])
    assert (kept ^ mirrored).all()
    assert 0.3 < mirrored.double().mean() < 0.7
    assert mirrored.any(0).all()


@pytest.mark.parametrize("plain", [True, False])
def test_targets_are_mirrored_with_their_pictures(plain):
    greys = Palette(torch.linspace(0, 240 / 256, 16)[:, None].expand(16, 3))
    pictures = (torch.randint(16, (16, 1, 8, 8)) * 16).expand(16, 3, 8, 8).to(torch.uint8)
    task = ColorTask(ImageSet(pictures, "greys"), greys, CPU, plain, Config(flips=True))
    assert all(task.loss(ByGrey(greys), INDEX) < 1e-6 for _ in range(8))


def test_measures_do_not_change_with_the_recipe():
    model = UNet(num_filters=8)
    changed = Config(flips=True, **RECIPES["all"])
    plain = ColorTask(VAL, PALETTE, CPU).measure(model, 7)
    assert ColorTask(VAL, PALETTE, CPU, config=changed).measure(model, 7) == plain


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_loss_is_that_of_the_operator_and_of_the_reference(recipe):
    model = UNet(num_filters=8).eval()
    config = Config(**recipe)
    ours, plain = (ColorTask(TRAIN, PALETTE, CPU, p, config).loss(model, INDEX) for p in (0, 1))
    assert ours.item() == pytest.approx(plain.item(), rel=1e-5)
    options = {k: v for k, v in recipe.items() if k != "rebalance"}
    if "rebalance" in recipe:
        share = torch.bincount(PALETTE.quantize(TRAIN.images).flatten(), minlength=24).double()
        share /= share.sum()
        weight = 1 / (recipe["rebalance"] * share + (1 - recipe["rebalance"]) / 24)
        weight[share == 0] = 0
        options["weight"] = (weight / (share * weight).sum()).float()
    images = TRAIN.images[INDEX]
    want = ops.color_cross_entropy(model(grey_of(TRAIN)), images, PALETTE.colors, **options)
    assert ours.item() == pytest.approx(want.item(), rel=1e-5)


def test_a_resumed_run_mirrors_as_one_that_went_through(tmp_path):
    def run(name, epochs, **changes):
        config = Config(
            out=tmp_path / name, epochs=epochs, batch_size=20, num_filters=8, flips=True, **changes
        )
        torch.manual_seed(0)
        return fit(UNet(num_filters=8), TRAIN, VAL, config)

    whole = run("whole", 2)
    run("parts", 1)
    parts = run("parts", 2, resume=True)
    losses = ("train_loss", "val_loss")
    assert all(whole.column(name) == parts.column(name) for name in losses)


def test_a_resumed_run_keeps_its_recipe(tmp_path):
    config = Config(out=tmp_path, epochs=1, batch_size=20, num_filters=8)
    fit(UNet(num_filters=8), TRAIN, VAL, config)
    with pytest.raises(ValueError, match="label_smoothing"):
        fit(
            UNet(num_filters=8), TRAIN, VAL,
            dataclasses.replace(config, epochs=2, resume=True, label_smoothing=0.1),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"flips": 1}, "flips must be true or false"),
        ({"label_smoothing": 1.5}, r"label_smoothing must be a number in 0 .. 1, got 1.5"),
        ({"rebalance": -0.1}, "rebalance must be a number in 0 .. 1"),
        ({"rebalance": "half"}, "rebalance must be a number in 0 .. 1, got 'half'"),
        ({"soft_neighbors": 2.5}, "soft_neighbors must be a whole number"),
        ({"soft_sigma": 0}, "soft_sigma must be a number above 0"),
    ],
)
def test_mistakes(settings, message):
    with pytest.raises(ValueError, match=message):
        Config(**settings)
