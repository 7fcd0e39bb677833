"""Folders of images and masks: lists, classes, and what is said about mistakes."""

import logging

import mask_files
import numpy as np
import pytest
import torch

from colorseg.data import IGNORE, load_segmentation

CLASSES = ("background", "flower")


class TestFolder:
    def test_without_lists_every_fifth_is_for_validation(self, tmp_path, caplog):
        caplog.set_level(logging.INFO, logger="colorseg")
        train, val = load_segmentation(mask_files.write_folder(tmp_path / "own"), image_size=12)
        assert (len(train), len(val)) == (8, 2)
        assert np.array_equal(val.masks[0], mask_files.ids(4))
        assert np.array_equal(val.images[1].permute(1, 2, 0), mask_files.picture(9))
        assert (train.name, val.classes) == ("own/train", ("background", "class 1"))
        assert "every 5th picture is for validation" in caplog.text

    @pytest.mark.parametrize("kind", ["csv", "txt"])
    def test_lists(self, tmp_path, kind):
        folder = mask_files.write_folder(tmp_path)
        if kind == "csv":
            rows = ["name,split,more", "c,train,1", "a,train,", "b,val,", "d,test,", ""]
            (folder / "splits.csv").write_text("\n".join(rows))
        else:
            for part, names in {"train": "c\na\n", "val": "b.png\n\n", "test": "d"}.items():
                (folder / f"{part}.txt").write_text(names)
        train, val = load_segmentation(folder, image_size=12)
        assert np.array_equal(train.masks, [mask_files.ids(2), mask_files.ids(0)])
        assert np.array_equal(val.masks, [mask_files.ids(1)])
        _, test = load_segmentation(folder, image_size=12, parts=("train", "test"))
        assert np.array_equal(test.masks, [mask_files.ids(3)])

    def test_names_of_classes(self, tmp_path):
        folder = mask_files.write_folder(tmp_path, classes=3)
        (folder / "classes.txt").write_text("ground\nflower\nleaf\n\n")
        train, _ = load_segmentation(folder, image_size=12)
        assert train.classes == ("ground", "flower", "leaf")
        assert train.masks.max() == 2
        with pytest.raises(ValueError, match=r"num_classes is 4, but .* has 3: ground, flower, le"):
            load_segmentation(folder, image_size=12, num_classes=4)
        (folder / "classes.txt").unlink()
        assert load_segmentation(folder, image_size=12, num_classes=3)[0].classes[2] == "class 2"

    def test_images_without_a_mask_are_left_out(self, tmp_path, caplog):
        caplog.set_level(logging.INFO, logger="colorseg")
        folder = mask_files.write_folder(tmp_path / "own")
        (folder / "masks" / "b.png").unlink()
        (folder / "images" / "._a.png").write_bytes(b"left by another system")
        assert sum(map(len, load_segmentation(folder, image_size=12))) == 9
        assert "own: 9 of 10 images have a mask" in caplog.text

    def test_a_damaged_picture_is_named_or_left_out(self, tmp_path, caplog):
        folder = mask_files.write_folder(tmp_path)
        path = folder / "images" / "c.png"
        path.write_bytes(path.read_bytes()[:90])
        with pytest.raises(ValueError, match=r"images/c\.png is damaged or no picture: "):
            load_segmentation(folder, image_size=12)
        train, val = load_segmentation(folder, image_size=12, skip_damaged=True)
        assert (len(train), len(val)) == (7, 2)
        assert "left out: " in caplog.text
        assert "c.png is damaged" in caplog.text

    def test_a_list_cannot_reach_other_folders(self, tmp_path):
        folder = mask_files.write_folder(tmp_path / "own")
        mask_files.write_folder(tmp_path / "other")
        (folder / "train.txt").write_text("../../other/images/a\n")
        (folder / "val.txt").write_text("b\n")
        with pytest.raises(FileNotFoundError, match=r"lists '\.\./\.\./other/images/a', but has"):
            load_segmentation(folder, image_size=12)


@pytest.mark.parametrize("mode", ["clean", "course"])
@pytest.mark.parametrize(
    ("values", "ignore_index", "message"),
    [
        ((0, 255), IGNORE, "train have only 0 and 255, and 255 means .* save the foreground as 1"),
        ((0, 1), 1, "have only 0 and 1, and 1 means 'does not count' .* pass another ignore_index"),
        ((0, 0), IGNORE, None),
        ((1, 255), IGNORE, None),
        ((0, 255), 254, "a.png has class 255, but there are 2 classes"),
    ],
)
def test_masks_whose_foreground_would_not_count(tmp_path, mode, values, ignore_index, message):
    """Black and white masks, the commonest format, would otherwise have a mean IoU of 1."""
    folder = mask_files.write_folder(tmp_path / "own")
    for seed, path in enumerate(sorted((folder / "masks").iterdir())):
        mask_files.save(path, np.array(values, np.uint8)[mask_files.ids(seed)])
    options = {"image_size": 12, "mode": mode, "ignore_index": ignore_index}
    if message is None:
        assert len(load_segmentation(folder, **options)[0]) == 8
        return
    with pytest.raises(ValueError, match=message):
        load_segmentation(folder, **options)


def spoil(folder, name):
    """Make one mistake."""
    if name == "size":
        mask_files.save(folder / "masks" / "a.png", mask_files.ids(0, 2, 10, 12))
    elif name == "class":
        mask_files.save(folder / "masks" / "a.png", mask_files.ids(0) + 6)
    elif name == "colors":
        mask_files.save(folder / "masks" / "a.png", mask_files.picture(0))
    elif name == "absent":
        (folder / "train.txt").write_text("a\nzebra\n")
        (folder / "val.txt").write_text("b\n")
    elif name == "no mask":
        (folder / "masks" / "a.png").unlink()
        (folder / "train.txt").write_text("a\n")
        (folder / "val.txt").write_text("b\n")
    elif name == "leak":
        (folder / "train.txt").write_text("a\nb\nc\n")
        (folder / "val.txt").write_text("b\nd\n")
    elif name == "empty list":
        (folder / "splits.csv").write_text("name,split\na,train\n")
    elif name == "short row":
        (folder / "splits.csv").write_text("split,name\ntrain\nval,a\n")
    elif name == "columns":
        (folder / "splits.csv").write_text("image,part\na,train\n")
    elif name == "one list":
        (folder / "train.txt").write_text("a\n")
    elif name == "another list":
        (folder / "val.txt").write_text("a\n")
    elif name == "blank":
        (folder / "classes.txt").write_text("ground\n\nflower\n")
    elif name == "noise":
        (folder / "train.txt").write_bytes(b"\xff\xfe\xff")
    elif name == "twins":
        mask_files.save(folder / "images" / "a.bmp", mask_files.picture(0))
    elif name == "layout":
        (folder / "masks").rename(folder / "labels")


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("size", ValueError, r"the mask .*a\.png is 10 x 12, but its image .*a\.png is 12 x 12"),
        ("class", ValueError, r"a\.png has class [67], but there are 2 classes \(0 to 1\): name"),
        ("colors", ValueError, r"a\.png has colors \(Pillow's mode RGB\) where class ids belong"),
        ("absent", FileNotFoundError, "lists 'zebra', but has no image of that name, or no mask"),
        ("no mask", FileNotFoundError, "lists 'a', but has no image of that name, or no mask"),
        ("leak", ValueError, "b are both in train and in val, so that validation would be on"),
        ("empty list", ValueError, "own/val has no pictures with a mask; choose other data"),
        ("short row", FileNotFoundError, "lists '', but has no image of that name"),
        ("columns", ValueError, r'splits\.csv needs the columns "name" and "split"'),
        ("one list", ValueError, r"has the list train\.txt but no val\.txt: add it, or remove the"),
        ("another list", ValueError, r"has the list val\.txt but no train\.txt: add it, or remov"),
        ("blank", ValueError, r"line 2 of .*classes\.txt is blank, which would shift the ids of"),
        ("noise", ValueError, r"train\.txt is no text that can be read"),
        ("twins", ValueError, r"images has both a\.bmp and a\.png"),
        ("layout", ValueError, "is no folder of images and masks: it needs the folders images an"),
    ],
)
def test_mistakes_get_a_sentence(tmp_path, name, error, message):
    folder = mask_files.write_folder(tmp_path / "own")
    spoil(folder, name)
    with pytest.raises(error, match=message):
        load_segmentation(folder, image_size=12)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"source": "nowhere"}, FileNotFoundError, "there is no folder nowhere; a source is 'sce"),
        ({"mode": "dirty"}, ValueError, "mode must be one of clean, course, got 'dirty'"),
        ({"image_size": 0}, ValueError, "image size must be at least 1, got 0"),
    ],
)
def test_wrong_options(options, error, message):
    with pytest.raises(error, match=message):
        load_segmentation(**options)


def test_the_real_daffodils(shared_data):
    folder = shared_data / "flowers17-daffodil-seg"
    train, val = load_segmentation(folder, image_size=256)
    _, test = load_segmentation(folder, image_size=256, parts=("train", "test"))
    assert (len(train), len(val), len(test)) == (49, 11, 11)
    masks = torch.cat([part.masks for part in (train, val, test)])
    assert (masks == 1).float().mean().item() == pytest.approx(0.257, abs=0.0005)
    assert (masks == IGNORE).float().mean().item() == pytest.approx(0.13, abs=0.005)
    course, _ = load_segmentation(folder, image_size=256, mode="course")
    assert torch.equal(course.masks, (train.masks == 1).to(torch.uint8))
