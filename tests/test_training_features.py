"""The frozen part of a model computed once per picture."""

import logging

import pytest
import torch
from small_segmenters import CPU, TRAIN, SmallSegmenter, run
from torch import nn

import colorseg
from colorseg.training.features import FrozenFeatures
from colorseg.training.seeding import seed_everything


class TestFrozenFeatures:
    def frozen(self, head=0, **options):
        """A model of which the backbone and so many modules of the classifier are frozen."""
        seed_everything(0)
        model = SmallSegmenter(**options)
        trained = [*list(model.classifier)[head:], model.aux_classifier]
        return colorseg.freeze(model, except_=filter(None, trained))

    @pytest.mark.parametrize(
        ("head", "options", "layer"),
        [(0, {}, "the classifier"), (0, {"aux": True}, "the classifier"), (3, {}, "classifier.3")],
    )
    def test_kept_features_change_no_result(self, tmp_path, caplog, head, options, layer):
        caplog.set_level(logging.INFO, logger="colorseg")
        settings = {"augment": False, "epochs": 3}
        model, kept = run(tmp_path / "kept", self.frozen(head, **options), **settings)
        assert f"all in front of {layer} is frozen, so its results for 13 pictures" in caplog.text
        # 2 tries, 2 + 1 batches of 8 pictures for the features, 1 for the picture of samples
        assert model.backbone.calls <= 6
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("colorseg.training.features.LIMIT", 0)
            again, anew = run(tmp_path / "anew", self.frozen(head, **options), **settings)
        assert again.backbone.calls > 9
        assert "frozen features are not kept" in caplog.text
        for name, value in model.state_dict().items():
            torch.testing.assert_close(value, again.state_dict()[name], rtol=1e-4, atol=1e-5)
        assert kept.column("train_loss") == pytest.approx(anew.column("train_loss"), abs=1e-5)

    @pytest.mark.parametrize("reason", ["augmented", "drift", "trained", "own"])
    def test_not_where_something_changes(self, tmp_path, caplog, reason):
        caplog.set_level(logging.INFO, logger="colorseg")
        model = self.frozen()
        if reason == "drift":
            colorseg.freeze(model, except_="classifier", batch_norm="drift")
        elif reason == "trained":
            model.backbone[0].weight.requires_grad_(True)
        elif reason == "own":
            model = nn.Sequential(nn.Conv2d(3, 2, 1))
        run(tmp_path, model, augment=reason == "augmented", epochs=1)
        # validation pictures never change, but the model does unless it is frozen
        assert "scenes/train: all in front" not in caplog.text
        assert ("scenes/validation: all in front" in caplog.text) == (reason == "augmented")

    def test_active_dropout_is_never_skipped(self, tmp_path, caplog):
        caplog.set_level(logging.INFO, logger="colorseg")
        model = self.frozen(1, dropout=0.5)
        run(tmp_path, model, augment=False, epochs=1)
        assert "all in front of the classifier is frozen" in caplog.text

    @pytest.mark.parametrize(("spare", "kept"), [(0, True), (-1, False)])
    def test_features_of_all_pictures_count_for_the_limit(self, monkeypatch, caplog, spare, kept):
        caplog.set_level(logging.INFO, logger="colorseg")
        size = 2 * 4 * 8 * 16 * 16 * len(TRAIN)  # two maps of 8 channels, 16 x 16, float32
        monkeypatch.setattr("colorseg.training.features.LIMIT", size + spare)
        features = FrozenFeatures.of(self.frozen(), TRAIN, CPU)
        assert (features is not None) == kept
        assert ("frozen features are not kept" in caplog.text) != kept
