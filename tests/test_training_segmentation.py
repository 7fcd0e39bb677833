"""The training loop with images and masks."""

import csv
import json
import math

import pytest
import torch
from safetensors import safe_open
from small_segmenters import CPU, TRAIN, VAL, SmallSegmenter, run
from torch import nn
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_pre_hook

from colorseg import reference
from colorseg.data import IGNORE, SegmentationSet, normalize
from colorseg.metrics import MeanIoU
from colorseg.training import SegmentationConfig, evaluate, fit
from colorseg.training.history import SegmentationEpoch
from colorseg.training.seeding import seed_everything
from colorseg.training.segmentation import SegmentationTask, paint


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "deeplab"
    return out, *run(out, epochs=6, loss="sum")


class TestRun:
    def test_it_learns(self, finished):
        _, _, history = finished
        assert history.epochs[-1].train_loss < history.epochs[0].train_loss
        assert all(0 <= row.val_course <= row.val_miou <= 1 for row in history.epochs)

    def test_the_best_epoch_is_the_one_with_the_highest_miou(self, finished):
        _, model, history = finished
        assert history.best.val_miou == max(history.column("val_miou"))
        measured = evaluate(model, VAL, batch_size=4)
        assert measured["miou"] == history.best.val_miou
        assert measured["course"] == history.best.val_course
        assert measured["accuracy"] == history.best.val_accuracy

    def test_what_is_written(self, finished):
        out, model, history = finished
        assert sorted(path.name for path in out.iterdir()) == [
            "best.safetensors",
            "config.json",
            "curves.png",
            "curves.svg",
            "last.pt",
            "metrics.csv",
            "model.safetensors",
            "samples.png",
        ]
        with open(out / "metrics.csv", newline="") as file:
            heading, *rows = csv.reader(file)
        assert heading == list(SegmentationEpoch._fields)
        assert [[float(v) for v in row] for row in rows] == [list(row) for row in history.epochs]
        facts = json.loads((out / "config.json").read_text())
        assert facts["loss"] == "sum"
        assert facts["run"]["data"]["val"]["sha256"] == VAL.sha256()
        assert SegmentationConfig.load(out / "config.json").epochs == 6
        with safe_open(out / "model.safetensors", "pt") as weights:
            assert json.loads(weights.metadata()["classes"]) == ["background", "flower"]
            for name, value in model.state_dict().items():
                assert torch.equal(weights.get_tensor(name), value)

    def test_resumed_gives_the_same_bits(self, finished, tmp_path):
        _, _, whole = finished
        run(tmp_path, epochs=3, loss="sum")
        _, resumed = run(tmp_path, epochs=6, loss="sum", resume=True)
        assert [row[:6] for row in resumed.epochs] == [row[:6] for row in whole.epochs]

    @pytest.mark.parametrize("loss", ["ce", "iou", "sum"])
    def test_fused_and_reference_agree(self, tmp_path, loss):
        settings = {"loss": loss, "epochs": 1, "lr": 1e-3}
        _, fused = run(tmp_path / "fused", **settings)
        _, plain = run(tmp_path / "plain", reference=True, **settings)
        assert fused.best.train_loss == pytest.approx(plain.best.train_loss, abs=1e-5)
        assert fused.best.val_loss == pytest.approx(plain.best.val_loss, abs=1e-5)

    def test_half_precision_is_near(self, tmp_path):
        """The CPU's autocast in the place of CUDA's, which the config asks for."""
        _, want = run(tmp_path / "whole", reference=True, epochs=1)
        config = SegmentationConfig(
            out=tmp_path / "half", reference=True, epochs=1, batch_size=4, lr=0.01
        )
        object.__setattr__(config, "amp", True)
        kinds = set()
        seed_everything(0)
        model = SmallSegmenter()
        model.classifier[3].register_forward_hook(lambda *args: kinds.add(args[2].dtype) or None)
        history = fit(model, TRAIN, VAL, config)
        assert kinds == {torch.bfloat16, torch.float32}  # trained, and measured
        assert history.best.train_loss == pytest.approx(want.best.train_loss, abs=0.02)
        assert history.best.train_loss != want.best.train_loss
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}

    def test_a_network_that_gives_a_tensor(self, tmp_path):
        _, history = run(tmp_path, nn.Conv2d(3, 2, 3, padding=1), network="own")
        assert len(history) == 2

    def test_the_course_score_is_of_two_classes(self, tmp_path):
        three = [
            SegmentationSet(part.images, part.masks, ("a", "b", "c"), part.name)
            for part in (TRAIN, VAL)
        ]
        config = SegmentationConfig(out=tmp_path, epochs=1, batch_size=4)
        history = fit(SmallSegmenter(3), *three, config)
        assert math.isnan(history.best.val_course)


class TestSchedule:
    def rates(self, tmp_path, **settings):
        """Learning rates at every forward pass in training."""
        rates = []

        def watch(optimizer, *_):
            rates.append(optimizer.param_groups[0]["lr"])

        hook = register_optimizer_step_pre_hook(watch)
        run(tmp_path, lr=0.1, **settings)
        hook.remove()
        return rates

    def test_polynomial(self, tmp_path):
        rates = self.rates(tmp_path, epochs=2, schedule="poly")
        # 13 pictures in batches of 4: a last batch of one is left out
        assert rates == pytest.approx([0.1 * (1 - step / 6) ** 0.9 for step in range(6)])

    def test_constant(self, tmp_path):
        assert self.rates(tmp_path, epochs=1) == [0.1] * 3

    def test_a_polynomial_run_cannot_be_made_longer(self, tmp_path):
        run(tmp_path, epochs=1, schedule="poly")
        with pytest.raises(ValueError, match=r"trained with epochs 1 \(now 2\)"):
            run(tmp_path, epochs=2, schedule="poly", resume=True)


class TestTask:
    def logits(self, model, data):
        with torch.no_grad():
            return model(normalize(data.images))

    @pytest.mark.parametrize("aux", [False, True])
    @pytest.mark.parametrize("loss", ["ce", "iou", "sum"])
    def test_loss(self, aux, loss):
        data = TRAIN.subset(slice(4))
        data.masks[:, :5] = IGNORE
        model = SmallSegmenter(aux=aux)
        got = SegmentationTask(data, CPU, loss).loss(model, torch.arange(4))
        want = 0.0
        for name, logits in self.logits(model, data).items():
            share = 1 if name == "out" else 0.5
            if loss != "iou":
                labels = data.masks.long()
                want += share * F.cross_entropy(logits.double(), labels, ignore_index=IGNORE)
            if loss != "ce":
                want += share * reference.soft_iou_loss(
                    logits.double(), data.masks, ignore_index=IGNORE
                )
        assert got.item() == pytest.approx(want.item(), abs=1e-5)

    def test_measure_for_any_batch_size(self):
        model = SmallSegmenter().eval()
        predicted = self.logits(model, VAL)["out"].argmax(1)
        figures = {}
        for name, definition in {"miou": "macro", "course": "course"}.items():
            metric = MeanIoU(2, definition, ignore_index=IGNORE)
            metric.update(predicted, VAL.masks)
            figures[name] = metric.compute().item()
            figures["iou background"], figures["iou flower"] = metric.per_class().tolist()
        figures["accuracy"] = (predicted == VAL.masks).double().mean().item()
        losses = F.cross_entropy(
            self.logits(model, VAL)["out"].double(), VAL.masks.long(), reduction="none"
        ).mean((1, 2))
        # no pixel is left out, so that batches weighted by their pictures give the exact mean
        figures["loss"] = losses.mean().item()
        for size in (1, 4, 100):  # of 6 pictures
            result = evaluate(model.train(), VAL, batch_size=size)
            assert model.training
            assert result["pixels"] == 6 * 32 * 32
            for name, want in figures.items():
                assert result[name] == pytest.approx(want, abs=1e-3), name

    def test_colors_of_classes_are_those_of_the_course(self):
        colors = paint(torch.tensor([[[0, 1, 2, IGNORE]]], dtype=torch.uint8))
        want = [[n * f % 255 for f in (2**25 - 1, 2**15 - 1, 2**21 - 1)] for n in range(3)]
        assert colors[0, :, 0].T.tolist() == [*want, [200] * 3]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "dice"}, "loss must be one of ce, iou, sum, got 'dice'"),
        ({"schedule": "cosine"}, "schedule must be one of constant, poly, got 'cosine'"),
        ({"augment": 1}, "augment must be true or false, got 1"),
        ({"amp": True}, "amp must be false on devices other than cuda, got True"),
    ],
)
def test_config_refuses_wrong_values(settings, message):
    with pytest.raises(ValueError, match=message):
        SegmentationConfig(**settings)


def test_fit_refuses_what_it_cannot_use(tmp_path):
    config = SegmentationConfig(out=tmp_path / "run", epochs=1, batch_size=4)
    with pytest.raises(ValueError, match="set scenes/train has no pictures"):
        fit(SmallSegmenter(), TRAIN.subset([]), VAL, config)
    with pytest.raises(ValueError, match="at least 2 pictures, but scenes/train has 1 and batch_s"):
        fit(SmallSegmenter(), TRAIN.subset(0), VAL, config)
    with pytest.raises(ValueError, match="no parameter of the model is trained"):
        fit(SmallSegmenter().requires_grad_(False), TRAIN, VAL, config)
