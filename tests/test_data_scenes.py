"""Generated scenes, and the random changes of images and masks."""

import numpy as np
import pytest
import torch

from colorseg.data import IGNORE, Augmentation, load_segmentation, normalize
from colorseg.data.scenes import load_scenes, scene


def scenes(**options):
    return load_scenes(**{"size": 32, "train": 6, "val": 3} | options)


class TestScenes:
    def test_the_seed_decides(self):
        train, val = scenes()
        again, _ = scenes()
        other, _ = scenes(seed=1)
        assert train.sha256() == again.sha256()
        assert train.sha256() != other.sha256()
        assert (train.name, val.name, train.classes) == (
            "scenes/train",
            "scenes/validation",
            ("background", "flower"),
        )

    def test_no_two_are_alike(self):
        train, val = scenes()
        pictures = {image.numpy().tobytes() for part in (train, val) for image in part.images}
        assert len(pictures) == 9

    def test_more_scenes_begin_with_the_same(self):
        assert torch.equal(scenes(train=2)[0].images, scenes()[0].images[:2])

    def test_they_are_worth_learning_from(self):
        """Both classes in nearly all, and no brightness or color that gives the flower away."""
        train, _ = scenes(train=40)
        share = (train.masks == 1).float().mean((1, 2))
        assert 0.08 < share.mean() < 0.5
        assert (share > 0).float().mean() > 0.9
        assert set(train.masks.unique().tolist()) == {0, 1}
        pixels = train.images.permute(0, 2, 3, 1).reshape(-1, 3)[::5].double()
        flower = train.masks.flatten()[::5].bool()
        design = torch.cat([pixels / 255, (pixels / 255) ** 2, torch.ones(len(pixels), 1)], 1)
        fit = torch.linalg.lstsq(design, flower.double()[:, None]).solution
        guess = (design @ fit)[:, 0] > 0.5
        iou = (guess & flower).sum() / (guess | flower).sum()
        assert iou < 0.7

    def test_masks_are_exact(self):
        """The same scene painted four times as finely covers the same pixels, by half or more."""
        for seed in range(4):
            _, mask = scene(32, np.random.default_rng(seed))
            _, fine = scene(128, np.random.default_rng(seed))
            cover = fine.reshape(32, 4, 32, 4).mean((1, 3))
            clear = np.abs(cover - 0.5) > 0.25
            assert (mask == (cover > 0.5))[clear].all()
            assert clear.mean() > 0.9

    def test_are_the_default_source(self):
        train, val = load_segmentation(image_size=8)
        assert (len(train), len(val)) == (120, 30)
        assert train.images.shape[1:] == (3, 8, 8)


class TestAugmentation:
    def pair(self, n=3, size=16):
        images = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8)
        return images, torch.randint(0, 3, (n, size, size), dtype=torch.uint8)

    def test_without_changes_only_normalizes(self):
        images, masks = self.pair()
        changed, moved = Augmentation((1, 1), 0, flip=False)(images, masks)
        torch.testing.assert_close(changed, normalize(images), rtol=0, atol=1e-4)
        assert torch.equal(moved, masks)

    def test_a_flip_mirrors_both(self):
        images, masks = self.pair(40)
        changed, moved = Augmentation((1, 1), 0)(images, masks)
        mirrored = (moved == masks.flip(-1)).all((1, 2))
        assert 5 < mirrored.sum() < 35
        assert (moved[~mirrored] == masks[~mirrored]).all()
        want = normalize(images[mirrored]).flip(-1)
        torch.testing.assert_close(changed[mirrored], want, rtol=0, atol=1e-4)

    def test_image_and_mask_stay_together(self):
        """A mask that can be read off the image still can afterwards, up to the edges."""
        masks = torch.zeros(20, 32, 32, dtype=torch.uint8)
        masks[:, 8:24, 4:20] = 1
        images = 255 * masks[:, None].expand(-1, 3, -1, -1).contiguous()
        changed, moved = Augmentation((0.5, 2), 0)(images, masks)
        bright = changed[:, 0] > normalize(torch.full((1, 3, 1, 1), 0.5))[0, 0, 0, 0]
        counted = moved != IGNORE
        assert (bright == (moved == 1))[counted].float().mean() > 0.97
        assert 0 < (~counted).float().mean() < 0.5

    def test_larger_images_are_cropped_inside(self):
        images, masks = self.pair(20)
        _, moved = Augmentation((1.2, 2), 0)(images, masks)
        assert (moved != IGNORE).all()

    def test_smaller_images_are_surrounded_by_the_mean(self):
        images, masks = self.pair(4, 64)
        changed, moved = Augmentation((0.5, 0.5), 0.5, flip=False)(images, masks)
        inside = (moved != IGNORE).float().mean((1, 2))
        assert inside.tolist() == pytest.approx([0.25] * 4, abs=0.02)
        outside = far_outside(moved == IGNORE)[:, None].expand_as(changed)
        assert changed[outside].abs().max() == 0

    def test_jitter_keeps_masks_and_changes_each_image_differently(self):
        images, masks = self.pair(1)
        images = images.expand(5, -1, -1, -1)
        changed, moved = Augmentation((1, 1), 0.4, flip=False)(images, masks.expand(5, -1, -1))
        assert torch.equal(moved, masks.expand(5, -1, -1))
        means = changed.mean((1, 2, 3))
        assert means.unique().numel() == 5

    def test_the_global_generator_decides(self):
        images, masks = self.pair()
        torch.manual_seed(3)
        first = Augmentation()(images, masks)
        torch.manual_seed(3)
        second = Augmentation()(images, masks)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"scale": (2, 1)}, r"scale must be two numbers above 0, in order, got \(2, 1\)"),
            ({"scale": (0, 1)}, "scale must be two numbers above 0"),
            ({"jitter": -0.1}, "jitter must be at least 0, got -0.1"),
        ],
    )
    def test_mistakes_get_a_sentence(self, options, message):
        with pytest.raises(ValueError, match=message):
            Augmentation(**options)


def far_outside(outside: torch.Tensor) -> torch.Tensor:
    """Pixels whose neighbors are all outside too."""
    inside = torch.nn.functional.max_pool2d((~outside).float(), 3, 1, 1)
    return inside == 0
