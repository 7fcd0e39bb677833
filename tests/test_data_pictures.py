"""Folders of photographs as data to learn colors from."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image

from colorseg import data
from colorseg.training import Config, fit
from colorseg.training.color import new_network


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


def test_squares_of_tall_photographs(tmp_path):
    """Rows of different colors: squares are anywhere along them to train, centered to validate."""
    rows = np.linspace(0, 255, 100).astype(np.uint8)[:, None, None]
    for part in ("train", "val"):
        (tmp_path / part).mkdir()
        Image.fromarray(np.tile(rows, (1, 10, 3))).save(tmp_path / part / "a.png")
    train, val = data.load(tmp_path, image_size=10)
    assert val.images[0, 0, :, 0].tolist() == rows[45:55, 0, 0].tolist()
    starts = torch.cat([train.squares(torch.tensor([0])) for _ in range(50)])[:, 0, 0, 0]
    assert starts.min() < 30  # all along the photograph
    assert starts.max() > 255 * 0.8


def test_hash_is_of_the_photographs_too():
    squares = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    photos = [torch.zeros(3, 2, 4, dtype=torch.uint8) for _ in range(2)]
    photos[1][0, 0, 3] = 1  # outside of the square
    photos.append(photos[0].reshape(3, 4, 2))
    hashes = {data.PhotoSet(squares, "x", (photo,)).sha256() for photo in photos}
    assert len(hashes) == 3


def test_crops_to_train_are_at_random_places(tmp_path):
    for i in range(8):
        photo(tmp_path / "train" / f"{i}.png", 100, 10)
    photo(tmp_path / "val" / "c.png", 100, 10)
    train, _ = data.load(tmp_path, image_size=10)
    starts = train.images[:, 0, 0, 0].tolist()
    assert len(set(starts)) == 8
    assert max(starts) - min(starts) > 100


def test_every_use_sees_another_square(tmp_path):
    for i in range(3):
        photo(tmp_path / "train" / f"{i}.png", 100, 10)
    photo(tmp_path / "val" / "c.png", 100, 10)
    train, val = data.load(tmp_path, image_size=10)
    index = torch.tensor([2, 0, 2, 2])
    first, second = train.squares(index), train.squares(index)
    assert first.shape == (4, 3, 10, 10)
    assert len(set(first[:, 0, 0, 0].tolist())) == 4
    assert not torch.equal(first, second)
    starts = torch.cat([train.squares(index) for _ in range(50)])[:, 0, 0, 0]
    assert starts.min() < 20  # all along the photograph
    assert starts.max() > 255 * 0.82
    assert type(val) is data.ImageSet


def test_squares_of_larger_photographs(tmp_path):
    """The short side, not the square's, decides how much of a photograph is seen."""
    for part in ("train", "val"):
        photo(tmp_path / part / "a.png", 120, 80)
    train, val = data.load(tmp_path, image_size=10, short_side=40)
    assert train.photos[0].shape == (3, 40, 60)
    assert train.images.shape == val.images.shape == (1, 3, 10, 10)
    for pictures in (train.squares(torch.tensor([0])), val.images):
        assert np.ptp(pictures[0, 0, 0].int().numpy()) == pytest.approx(255 * 9 / 60, abs=8)
    assert val.images[0, 0].float().mean() == pytest.approx(127, abs=4)
    whole, _ = data.load(tmp_path, image_size=10)
    assert whole.sha256() != train.sha256()
    assert train.sha256() == data.load(tmp_path, image_size=10, short_side=40)[0].sha256()


def test_subsets_keep_their_photographs(tmp_path):
    for i in range(4):
        photo(tmp_path / "train" / f"{i}.png", 20 + 10 * i, 10)
    photo(tmp_path / "val" / "c.png", 100, 10)
    train, _ = data.load(tmp_path, image_size=10)
    for chosen in ([3, 1], torch.tensor([3, 1])):
        part = train.subset(chosen)
        assert [p.shape[2] for p in part.photos] == [50, 30]
        assert torch.equal(part.images, train.images[[3, 1]])
    assert len(train.subset(2).photos) == 1


@pytest.mark.parametrize("reference", [False, True])
def test_training_draws_squares_in_every_epoch_and_resumes_exactly(
    reference, tmp_path, monkeypatch
):
    for i in range(10):
        photo(tmp_path / "photos" / f"{i}.png", 40 + i, 20)
    train, val = data.load(tmp_path / "photos", image_size=8, short_side=12)
    seen, squares = [], data.PhotoSet.squares

    def watched(self, index):
        seen.append(squares(self, index))
        return seen[-1]

    def run(name, epochs, **options):
        config = Config(
            out=str(tmp_path / name), epochs=epochs, num_filters=2, image_size=8, lr=0.01,
            reference=reference, **options,
        )  # fmt: skip
        return fit(new_network(config), train, val, config)

    monkeypatch.setattr(data.PhotoSet, "squares", watched)
    whole = run("whole", 2)
    assert not torch.equal(*seen)
    run("parts", 1)
    assert run("parts", 2, resume=True).column("val_loss") == whole.column("val_loss")
    assert torch.equal(seen[1], seen[3])


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
    with pytest.raises(ValueError, match="the short side must be 0, or at least the image size 32"):
        data.load(tmp_path, short_side=16)
