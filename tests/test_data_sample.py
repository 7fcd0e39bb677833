"""The embedded sample is what its record and its documentation say."""

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib import resources

import numpy as np
import pytest

from colorseg import data
from colorseg.data import sample

TRAIN_SHA256 = "e1ca1bc2df76406dc87783e284e1aa621f2b0185b48b69d34e05d70a0fa20864"
VALIDATION_SHA256 = "8407ae93d0a9ceab1a4693455ef36b158ffaed3fa705c8495cb827041b719b9b"


@pytest.fixture(scope="module")
def record() -> dict:
    return json.loads((resources.files("colorseg.data") / "sample_tiles.json").read_text())


class Canvases(dict):
    """Scaled photographs put together again from their crops; -1 where none has a pixel."""

    def __missing__(self, key: object) -> np.ndarray:
        return self.setdefault(key, np.full((3, 640, 640), -1, np.int16))

    def places(self, record: dict) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        crops = np.concatenate([part.images.numpy() for part in data.load()])
        for (name, scale, top, left), crop in zip(record["tiles"], crops, strict=True):
            yield self[name, scale][:, top : top + 32, left : left + 32], crop


class TestSample:
    def test_parts(self):
        train, validation = data.load()
        assert (len(train), len(validation)) == (1200, 240)
        for part in (train, validation):
            assert part.images.shape[1:] == (3, 32, 32)
            assert part.images.stride() == (3072, 1024, 32, 1)
            assert part.images.flatten(2).float().std(2).amax(1).min() >= 11.9  # all show something
        assert (train.name, validation.name) == ("sample/train", "sample/validation")

    def test_pixels_are_the_published_ones(self):
        train, validation = data.load()
        assert train.sha256() == TRAIN_SHA256
        assert validation.sha256() == VALIDATION_SHA256

    def test_sheet_is_small_and_sources_are_named(self, record):
        folder = resources.files("colorseg.data")
        assert len((folder / "sample.png").read_bytes()) < 3_000_000
        sources = (folder / "sample_sources.md").read_text()
        assert all(f"`{name}`" in sources for name in {tile[0] for tile in record["tiles"]})

    def test_parts_share_no_pixel_of_a_photograph(self, record):
        seen = {"train": {}, "validation": {}}
        for i, (name, scale, top, left) in enumerate(record["tiles"]):
            part = seen["train" if i < record["train"] else "validation"]
            mask = part.setdefault(name, np.zeros((640, 640), bool))
            mask[top * scale : (top + 32) * scale, left * scale : (left + 32) * scale] = True
        assert len(record["tiles"]) == 1440
        for name, mask in seen["train"].items():
            validation = seen["validation"][name]
            assert not (mask & validation).any()
            assert 0.1 < validation.sum() / (mask | validation).sum() < 0.25

    def test_record_is_true_of_the_sheet(self, record):
        """Overlapping crops agree pixel by pixel, which wrong places would not."""
        overlap = 0
        for place, crop in Canvases().places(record):
            assert ((place == -1) | (place == crop)).all()
            overlap += (place != -1).sum()
            place[:] = crop
        assert overlap > 1440 * crop.size / 2

    def test_scales_are_true_of_the_sheet(self, record):
        """Where a photograph is known at scale 1, at scale 2 it is the average of that."""
        canvases = Canvases()
        for place, crop in canvases.places(record):
            place[:] = crop
        for name in {name for name, _ in canvases}:
            fine = canvases[name, 1].reshape(3, 320, 2, 320, 2)
            half = canvases[name, 2][:, :320, :320]
            known = (fine >= 0).all((2, 4)) & (half >= 0)
            assert known.sum() > 1000
            assert np.abs(fine.mean((2, 4)) - half)[known].max() <= 0.5

    def test_cut_undoes_join(self):
        tiles = np.random.RandomState(0).randint(0, 256, (80, 32, 32, 3)).astype(np.uint8)
        assert np.array_equal(sample.cut(sample.join(tiles)), tiles)
        assert np.array_equal(sample.join(tiles)[:32, 32:64], tiles[1])

    def test_missing_sheet(self, tmp_path, monkeypatch):
        monkeypatch.setattr(sample.resources, "files", lambda package: tmp_path)
        with pytest.raises(FileNotFoundError, match=r"sample.png is missing: install colorseg"):
            data.load("sample")

    def test_import_is_light(self):
        """Neither pooch nor the plotting and fitting libraries load before they are needed."""
        heavy = "{'pooch', 'sklearn', 'matplotlib', 'skimage', 'torchmetrics'}"
        code = (
            f"import sys; from colorseg import data; data.load(); print({heavy} & {{*sys.modules}})"
        )
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert run.stdout == "set()\n", run.stderr
