"""Images from .npz files."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from colorseg import data


class TestNpz:
    def write(self, path: Path, **changes: object) -> Path:
        pixels = np.random.RandomState(0).randint(0, 256, (6, 8, 8, 3)).astype(np.uint8)
        arrays = {"train": pixels[:4], "test": pixels[4:]} | changes
        np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
        return path

    def test_without_labels_is_taken_whole(self, tmp_path):
        path = self.write(tmp_path / "x.npz")
        train, test = data.load(path)
        assert train.images.shape == (4, 3, 8, 8)
        assert test.images.stride() == (192, 64, 8, 1)
        want = torch.from_numpy(np.load(path)["train"]).permute(0, 3, 1, 2)
        assert torch.equal(train.images, want)
        assert train.name == "x.npz/train"

    def test_labels_choose(self, tmp_path):
        labels = {"train_label": np.array([7, 1, 7, 9]), "test_label": np.array([3, 7], np.uint8)}
        path = self.write(tmp_path / "x.npz", **labels)
        assert [len(part) for part in data.load(path)] == [2, 1]
        assert [len(part) for part in data.load(path, classes=None)] == [4, 2]
        assert torch.equal(data.load(path)[1].images, data.load(path, classes=None)[1].images[1:])
        with pytest.raises(ValueError, match=r"x.npz/validation has no image .* airplane"):
            data.load(self.write(path, **labels | {"train_label": np.zeros(4, int)}), classes=[0])

    def test_the_horses(self, shared_data):
        train, test = data.load(shared_data / "cifar10-horses.npz")
        assert train.images.shape == (5000, 3, 32, 32)
        assert test.images.shape == (1000, 3, 32, 32)

    def test_the_lossless_part(self, shared_data):
        path = shared_data / "cifar10-exact-part.npz"
        train, test = data.load(path)
        with np.load(path) as arrays:
            chosen = arrays["train"][arrays["train_label"] == 7]
        assert np.array_equal(train.images.numpy(), chosen.transpose(0, 3, 1, 2))
        assert len(test) == 102
        assert [len(part) for part in data.load(path, classes=None)] == [8068, 1017]

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"test": None}, 'no array "test", only train'),
            ({"train": np.zeros((4, 8, 8, 3))}, r'"train" must be uint8 .* got float64 \(4,'),
            ({"train": np.zeros((4, 3, 8, 8), np.uint8)}, r"must be uint8 \(N, H, W, 3\)"),
            ({"train": np.zeros((0, 8, 8, 3), np.uint8)}, "not empty"),
            ({"test": np.zeros((8, 8, 3), np.uint8)}, '"test" must be'),
            ({"test": np.zeros((2, 9, 8, 3), np.uint8)}, r"one size, got \(8, 8\) and \(9, 8\)"),
            ({"train": np.array([None, 1])}, '"train" is damaged or pickled'),
            ({"train_label": np.zeros(3, int)}, r'"train_label" must be 4 integers, got int64'),
            ({"train_label": np.zeros(4)}, "4 integers, got float64"),
            ({"test_label": np.array([0, 10])}, '"test_label" must be 0 to 9, got 0 to 10'),
            ({"test_label": np.array([-1, 1])}, "got -1 to 1"),
        ],
    )
    def test_wrong_contents(self, tmp_path, changes, words):
        with pytest.raises(ValueError, match=words):
            data.load(self.write(tmp_path / "x.npz", **changes))

    def test_damaged_files(self, tmp_path):
        path = self.write(tmp_path / "x.npz")
        whole = path.read_bytes()
        for content in (whole[: len(whole) // 2], b"", b"no zip file", pickle.dumps([1])):
            path.write_bytes(content)
            with pytest.raises(ValueError, match=r"x.npz is cut short or no .npz file"):
                data.load(path)
        flipped = bytearray(whole)
        flipped[300] ^= 1  # a pixel: the checksum of the zip file tells
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match='"train" is damaged'):
            data.load(path)

    def test_single_array(self, tmp_path):
        with open(tmp_path / "x.npz", "wb") as file:
            np.save(file, np.zeros(3))
        with pytest.raises(ValueError, match=r"a single array, not an .npz file"):
            data.load(tmp_path / "x.npz")
