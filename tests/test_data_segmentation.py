"""Images with masks: what is read of a pair, in both modes."""

import mask_files
import numpy as np
import pytest
import torch
from PIL import Image

from colorseg.data import IGNORE, SegmentationSet, normalize
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
