import logging
import os
import pickle

import pytest
import torch
from safetensors.torch import load_file

from colorseg.data import load
from colorseg.models import UNet
from colorseg.training import Config, fit
from colorseg.training.seeding import seed_everything

TRAIN, VAL = load("sample")
TRAIN, VAL = TRAIN.subset(slice(0, 1200, 40)), VAL.subset(slice(0, 240, 24))  # 30 and 10
BATCHES = 3  # of 12, 12 and 6 pictures


def run(out, epochs=4, *, train=TRAIN, on_batch=None, **settings):
    """Train a small UNet; ``on_batch(number)`` may break in."""
    config = Config(
        out=out, epochs=epochs, **{"batch_size": 12, "num_filters": 4, "lr": 0.01} | settings
    )
    seed_everything(config.seed)
    model = UNet(config.kernel, config.num_filters)
    seen = []

    def hook(module, inputs, logits):
        if module.training:
            seen.append(len(inputs[0]))
            on_batch(len(seen))

    if on_batch:
        model.register_forward_hook(hook)
    return fit(model, train, VAL, config)


def losses(history):
    return [row[:4] for row in history.epochs]  # the rest are times


def assert_same_bits(a, b):
    """Compare what two runs left: last weights, optimizer, best weights."""

    def read(path):
        last = torch.load(path / "last.pt", weights_only=True)
        return last["model"], last["optimizer"], load_file(path / "model.safetensors")

    torch.testing.assert_close(read(a), read(b), rtol=0, atol=0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Four epochs without interruption."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    return out, run(out)


@pytest.fixture
def half(tmp_path):
    """The folder of a run that was asked for two epochs."""
    run(tmp_path / "run", 2)
    return tmp_path / "run"


def interrupt_at(batch):
    def on_batch(number):
        if number == batch:
            raise KeyboardInterrupt

    return on_batch


def test_more_epochs_later_give_the_same_bits(whole, half):
    history = run(half, resume=True)
    assert losses(history) == losses(whole[1])
    assert_same_bits(half, whole[0])


def test_interrupted_and_resumed_gives_the_same_bits(whole, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="colorseg")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, on_batch=interrupt_at(2 * BATCHES + 2))
    assert "2 of 4 epochs" in caplog.text
    assert not (tmp_path / "model.safetensors").exists()
    history = run(tmp_path, resume=True)
    assert "continuing after epoch 2" in caplog.text
    assert losses(history) == losses(whole[1])
    assert_same_bits(tmp_path, whole[0])
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 5


def test_cut_off_between_best_weights_and_checkpoint(whole, half, monkeypatch):
    from colorseg.training import checkpoint

    def crash(*_):
        raise OSError("the machine lost power")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_checkpoint", crash)
        with pytest.raises(OSError, match="lost power"):
            run(half, resume=True)
    assert losses(run(half, resume=True)) == losses(whole[1])
    assert_same_bits(half, whole[0])


def test_resume_starts_where_nothing_is(whole, tmp_path):
    assert losses(run(tmp_path / "new", resume=True)) == losses(whole[1])
    assert_same_bits(tmp_path / "new", whole[0])


def test_resume_of_a_finished_run_changes_nothing(whole, caplog):
    caplog.set_level(logging.INFO, logger="colorseg")
    out, history = whole
    before = (out / "last.pt").read_bytes()
    assert run(out, resume=True).epochs == history.epochs
    assert (out / "last.pt").read_bytes() == before
    assert "all 4 epochs are done" in caplog.text


def test_without_resume_a_run_is_never_overwritten(whole):
    with pytest.raises(FileExistsError, match="continue it with --resume, or choose another --out"):
        run(whole[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": 0.02}, r"lr 0.01 \(now 0.02\)"),
        ({"batch_size": 10}, r"batch_size 12 \(now 10\)"),
        ({"seed": 1}, r"seed 0 \(now 1\)"),
        ({"schedule": "poly"}, r"schedule constant \(now poly\)"),
        ({"clip": 1.0}, r"clip 0\.0 \(now 1\.0\)"),
        ({"dilation": 2}, r"dilation 1 \(now 2\)"),
        ({"task": "super-resolution"}, r"task colorize \(now super-resolution\)"),
        ({"palette": "sample24"}, r"palette auto \(now sample24\)"),
        ({"flips": True}, r"flips False \(now True\)"),
        ({"label_smoothing": 0.1}, r"label_smoothing 0\.0 \(now 0\.1\)"),
        ({"soft_neighbors": 3}, r"soft_neighbors 0 \(now 3\)"),
        ({"soft_sigma": 0.1}, r"soft_sigma 0\.05 \(now 0\.1\)"),
        ({"rebalance": 0.5}, r"rebalance 0\.0 \(now 0\.5\)"),
        ({"optimizer": "adamw"}, r"optimizer adam \(now adamw\)"),
        ({"num_filters": 8}, r"num_filters 4 \(now 8\)"),
        ({"kernel": 5}, r"kernel 3 \(now 5\)"),
        ({"network": "own"}, r"network unet \(now own\)"),
        ({"reference": True}, r"reference False \(now True\)"),
        ({"reshuffle": False}, r"reshuffle True \(now False\)"),
        ({"train": TRAIN.subset(slice(1, None))}, r"data .* \(now "),
    ],
)
def test_resume_refuses_other_settings(whole, settings, message):
    out, _ = whole
    before = {path: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(ValueError, match=f"it was trained with {message}.*; repeat its settings"):
        run(out, resume=True, **settings)
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_resume_refuses_fewer_epochs(whole):
    with pytest.raises(ValueError, match="holds 4 epochs, more than the 3 asked for"):
        run(whole[0], 3, resume=True)


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def damage(name, good):
    """Make a good last.pt a bad one."""
    state = torch.load(good, weights_only=True)
    content = good.read_bytes()
    if name == "hostile archive":
        torch.save(state | {"history": Hostile()}, good)
    elif name == "other content":
        torch.save({"weights": state["model"]}, good)
    elif name == "missing tensor":
        state["model"].popitem()
        torch.save(state, good)
    else:
        bad = {"empty": b"", "truncated": content[: len(content) // 2], "noise": os.urandom(999)}
        good.write_bytes(bad.get(name, pickle.dumps(Hostile(), protocol=2)))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("empty", "it is damaged"),
        ("truncated", "it is damaged"),
        ("noise", "it is damaged"),
        ("hostile pickle", "it is damaged"),
        ("hostile archive", "it is damaged"),
        ("other content", "it is no checkpoint of colorseg"),
        ("missing tensor", "it does not fit this network"),
    ],
)
def test_a_bad_checkpoint_gets_a_sentence(half, monkeypatch, name, reason):
    monkeypatch.chdir(half)
    path = half / "last.pt"
    damage(name, path)
    with pytest.raises(ValueError, match=f"cannot resume from .*last.pt: {reason}; delete it"):
        run(half, resume=True)
    assert not (half / "ran").exists()


def test_resume_misses_the_best_weights(half):
    (half / "best.safetensors").unlink()
    with pytest.raises(ValueError, match=r"best\.safetensors is missing"):
        run(half, resume=True)
