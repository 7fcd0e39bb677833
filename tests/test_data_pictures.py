"""Folders of photographs as data to learn colors from."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image

from colorseg import data


def photo(path, width, height, seed=0):
    """Columns of different colors, so that a crop shows where it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = np.linspace(0, 255, width).astype(np.uint8)
    pixels = np.broadcast_to(columns[None, :, None], (height, width, 3))
    Image.fromarray(np.ascontiguousarray(pixels)).save(path)


def test_folders_train_and_val(tmp_path):
    photo(tmp_path / "train" / "a.png", 60, 20)
    photo(tmp_path / "train" / "deep" / "b.png", 20, 60)
    photo(tmp_path / "val" / "c.png", 30, 10)
    train, val = data.load(tmp_path, image_size=10)
    assert train.images.shape == (2, 3, 10, 10)
    middle = val.images[0, 0, 0].float()
    assert middle.mean() == pytest.approx(127, abs=4)  # the middle third
    assert middle[0] > 70
    again, _ = data.load(tmp_path, image_size=10)
    assert torch.equal(train.images, again.images)


def test_crops_to_train_are_at_random_places(tmp_path):
    for i in range(8):
        photo(tmp_path / "train" / f"{i}.png", 100, 10)
    photo(tmp_path / "val" / "c.png", 100, 10)
    train, _ = data.load(tmp_path, image_size=10)
    starts = train.images[:, 0, 0, 0].tolist()
    assert len(set(starts)) == 8
    assert max(starts) - min(starts) > 100


def test_every_fifth_validates(tmp_path, caplog):
    for i in range(11):
        photo(tmp_path / f"{i:02}.png", 16 + i, 16)
    with caplog.at_level(logging.INFO):
        train, val = data.load(tmp_path)
    assert (len(train), len(val)) == (9, 2)
    assert "every fifth picture validates" in caplog.text


def test_turned_pictures(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    for part in ("train", "val"):
        photo(tmp_path / part / "a.png", 10, 10)
        with Image.open(tmp_path / part / "a.png") as image:
            image.save(tmp_path / part / "a.png", exif=exif)
    _, val = data.load(tmp_path, image_size=10)
    assert val.images[0, 0, 0, 0] > val.images[0, 0, 0, -1]


def test_damaged_pictures(tmp_path, caplog):
    for i in range(6):
        photo(tmp_path / f"{i}.png", 20, 20)
    (tmp_path / "2.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"2\.png is damaged or no picture"):
        data.load(tmp_path)
    train, val = data.load(tmp_path, skip_damaged=True)
    assert (len(train), len(val)) == (4, 1)
    assert "left out: " in caplog.text


def test_mistakes(tmp_path):
    photo(tmp_path / "a.png", 20, 20)
    with pytest.raises(ValueError, match=r"has no pictures to validate on; give it five"):
        data.load(tmp_path)
    with pytest.raises(ValueError, match="the image size must be at least 1, got 0"):
        data.load(tmp_path, image_size=0)
