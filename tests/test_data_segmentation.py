"""Folders of images and masks: what is read, in both modes, and what is said about mistakes."""

import logging

import mask_files
import numpy as np
import pytest
import torch
from PIL import Image

from colorseg.data import IGNORE, SegmentationSet, load_segmentation, normalize
from colorseg.data.pairs import File, Pair, Reader

CLASSES = ("background", "flower")


def read(tmp_path, pixels, mask, size, **options):
    """One pair as an image and a mask tensor."""
    pair = Pair(
        *(
            File(f"{role}.png", mask_files.save(tmp_path / f"{role}.png", content))
            for role, content in (("image", pixels), ("mask", mask))
        )
    )
    found = Reader(size, **options).read([pair], CLASSES, "x")
    return found.images[0], found.masks[0]


class TestSet:
    def make(self, **changes):
        given = {
            "images": torch.zeros(2, 3, 4, 5, dtype=torch.uint8),
            "masks": torch.tensor([0, 1, IGNORE, 0], dtype=torch.uint8)[None, :, None]
            .expand(2, 4, 5)
            .contiguous(),
            "classes": CLASSES,
            "name": "x",
        }
        return SegmentationSet(**given | changes)

    def test_subset_and_hash(self):
        whole = self.make()
        assert len(whole) == 2
        assert whole.subset(1).images.shape == (1, 3, 4, 5)
        assert len(whole.subset([1, 0, 1])) == 3
        assert whole.sha256() == self.make().sha256()
        assert whole.sha256() != self.make(masks=whole.masks.clone().fill_(0)).sha256()

    @pytest.mark.parametrize(
        ("changes", "error", "message"),
        [
            ({"images": torch.zeros(2, 3, 4, 5)}, TypeError, "images must be .* got torch.float32"),
            ({"masks": np.zeros((2, 4, 5))}, TypeError, "masks must be a uint8 tensor, got ndarr"),
            ({"masks": torch.zeros(2, 5, 4).byte()}, ValueError, r"got \(2, 3, 4, 5\) and \(2, 5"),
            ({"classes": ("all",)}, ValueError, "can have 2 to 255 classes, got 1"),
            ({"classes": ("all",) * 256}, ValueError, "2 to 255 classes, got 256"),
            ({"masks": torch.full((2, 4, 5), 7).byte()}, ValueError, "x has class 7 .* only 2 cla"),
        ],
    )
    def test_mistakes(self, changes, error, message):
        with pytest.raises(error, match=message):
            self.make(**changes)

    def test_normalize(self):
        images = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
        want = images.double() / 255
        want -= torch.tensor([0.485, 0.456, 0.406]).double()[:, None, None]
        want /= torch.tensor([0.229, 0.224, 0.225]).double()[:, None, None]
        torch.testing.assert_close(normalize(images).double(), want, rtol=0, atol=1e-6)
        torch.testing.assert_close(normalize(images / 255), normalize(images))


class TestClean:
    def test_same_size_keeps_every_pixel(self, tmp_path):
        pixels, mask = mask_files.picture(0), mask_files.ids(0)
        mask[3, 4] = 99
        image, labels = read(tmp_path, pixels, mask, 12, ignore_index=99)
        assert np.array_equal(image.permute(1, 2, 0), pixels)
        assert labels[3, 4] == IGNORE
        mask[3, 4] = IGNORE
        assert np.array_equal(labels, mask)

    def test_aspect_is_kept_and_the_rest_does_not_count(self, tmp_path):
        mask = np.ones((12, 24), np.uint8)
        image, labels = read(tmp_path, mask_files.picture(0, 24, 12), mask, 16)
        assert (labels[4:12] == 1).all()
        assert (labels[:4] == IGNORE).all()
        assert (labels[12:] == IGNORE).all()
        assert normalize(image[None])[0, :, :4].abs().max() < 0.02  # the mean color

    def test_masks_take_the_nearest_pixel(self, tmp_path):
        mask = mask_files.ids(1, 2, 30, 30)
        _, labels = read(tmp_path, mask_files.picture(0, 30, 30), mask, 10)
        assert np.array_equal(labels, mask[1::3, 1::3])  # the middle of each 3 x 3

    def test_trimaps(self, tmp_path):
        colors = mask_files.trimap()
        _, labels = read(tmp_path, mask_files.picture(0), colors, 12, trimap=True)
        want = np.where((colors == mask_files.FLOWER).all(-1), 1, 0)
        want[(colors == mask_files.UNLABELED).all(-1)] = IGNORE
        assert np.array_equal(labels, want)
        assert set(labels.unique().tolist()) == {0, 1, IGNORE}

    @pytest.mark.parametrize("kind", ["L", "P", "I;16", "1"])
    def test_kinds_of_masks(self, tmp_path, kind):
        mask = mask_files.ids(0)
        path = tmp_path / "mask.png"
        if kind == "P":
            saved = Image.fromarray(mask).convert("P")
            saved.putdata(mask.ravel().tolist())
            saved.putpalette([9, 9, 9, 200, 0, 0])
        elif kind == "1":
            saved = Image.fromarray(mask.astype(bool))
        else:
            saved = Image.fromarray(mask.astype({"L": "u1", "I;16": "u2"}[kind]))
        saved.save(path)
        image = mask_files.save(tmp_path / "image.png", mask_files.picture(0))
        pair = Pair(File("image", image), File("mask", path))
        found = Reader(12).read([pair], CLASSES, "x")
        assert np.array_equal(found.masks[0], mask)


class TestCourse:
    def test_edges_and_all_that_is_unlabeled_become_background(self, tmp_path):
        colors = mask_files.trimap(24, 24)
        pixels = mask_files.picture(0, 24, 24)
        _, labels = read(tmp_path, pixels, colors, 12, trimap=True, mode="course")
        wanted = np.zeros((12, 12), np.uint8)
        flower = (colors == mask_files.FLOWER).all(-1)
        # at half the size every pixel is the mean of 2 x 2, flower only if all four are
        wanted[flower.reshape(12, 2, 12, 2).all((1, 3))] = 1
        assert np.array_equal(labels, wanted)
        assert labels.sum() > 0

    def test_the_aspect_is_not_kept_and_images_are_bilinear(self, tmp_path):
        pixels = mask_files.picture(0, 8, 4)
        image, labels = read(tmp_path, pixels, np.ones((4, 8), np.uint8), 4, mode="course")
        want = pixels.reshape(4, 4, 2, 3).astype(float).mean(2)
        assert np.abs(image.permute(1, 2, 0).numpy() - want).max() <= 0.5
        assert (labels == 1).all()

    def test_ids_like_the_flowers_color(self, tmp_path):
        mask = np.repeat(np.array([[0, 0, 0, 1, 1, 1, 1, 1]], np.uint8), 8, 0)
        _, labels = read(tmp_path, mask_files.picture(0, 8, 8), mask, 4, mode="course")
        assert labels[0].tolist() == [0, 0, 1, 1]  # the mixed column is background

    def test_is_for_two_classes(self):
        with pytest.raises(ValueError, match="course's mode is for 2 classes, but x has 3"):
            Reader(8, "course").read([], ("a", "b", "c"), "x")


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
        (folder / "classes.txt").write_text("ground\nflower\nleaf\n")
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
