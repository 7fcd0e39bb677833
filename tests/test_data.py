"""Image sets, and CIFAR-10 batches loaded from a folder or an archive."""

import hashlib
import os
import pickle

import fake_cifar
import numpy as np
import pytest
import torch
from PIL import Image

from colorseg import data
from colorseg.data import ImageSet
from colorseg.data.images import from_pixels


def random_images(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.manual_seed(0))


class TestImageSet:
    def test_grey_is_the_rounded_mean(self):
        images = random_images(3, 3, 8, 16)
        want = (images.double().sum(1, keepdim=True) / 768).float()
        grey = ImageSet(images, "x").grey()
        assert torch.equal(grey, want)
        assert grey.dtype == torch.float32
        assert grey.stride() == (128, 128, 16, 1)

    def test_coarse_is_the_mean_of_four_by_four(self):
        images = torch.randint(256, (3, 3, 8, 12), dtype=torch.uint8)
        coarse = ImageSet(images, "x").coarse([2, 0])
        assert coarse.shape == (2, 3, 8, 12)
        for i, image in enumerate((2, 0)):
            for y, x in ((0, 0), (4, 8)):
                block = images[image, :, y : y + 4, x : x + 4].double() / 256
                want = block.mean((1, 2))[:, None, None].expand(3, 4, 4).float()
                assert torch.allclose(coarse[i, :, y : y + 4, x : x + 4], want, atol=1e-6)
        with pytest.raises(ValueError, match="multiples of 4, got 6 x 8"):
            ImageSet(images[..., :6, :8], "x").coarse()

    def test_grey_of_every_sum_is_exact_and_below_one(self):
        levels = torch.arange(256, dtype=torch.uint8)
        top = torch.full_like(levels, 255)
        # (0, 0, v), (0, v, 255), (v, 255, 255): all sums from 0 to 765
        rows = [(0 * top, 0 * top, levels), (0 * top, levels, top), (levels, top, top)]
        images = torch.stack([torch.stack(row) for row in rows])[:, :, None]
        exact = images.double().sum(1, keepdim=True) / 768
        grey = ImageSet(images, "x").grey()
        assert torch.equal(grey, exact.float())
        assert grey.max() < 1

    @pytest.mark.parametrize(
        ("index", "n"),
        [(2, 1), (-1, 1), (slice(1, 3), 2), ([3, 0, 3], 3), (torch.tensor([1, 2]), 2), ([], 0)],
    )
    def test_grey_of_some(self, index, n):
        images = ImageSet(random_images(4, 3, 5, 7), "x")
        grey = images.grey(index)
        assert torch.equal(grey, images.grey()[index].reshape(n, 1, 5, 7))
        assert grey.stride() == (35, 35, 7, 1)

    @pytest.mark.parametrize("shape", [(4, 3, 6, 6), (1, 3, 6, 6), (2, 3, 1, 1), (0, 3, 4, 4)])
    def test_strides_become_plain(self, shape):
        plain = random_images(*shape)
        channels_last = plain.contiguous(memory_format=torch.channels_last)
        _, c, h, w = shape
        images = ImageSet(channels_last, "x").images
        assert torch.equal(images, plain)
        assert images.stride() == (c * h * w, h * w, w, 1)

    def test_plain_images_are_not_copied(self):
        images = random_images(2, 3, 4, 4)
        assert ImageSet(images, "x").images.data_ptr() == images.data_ptr()

    def test_from_pixels_owns_its_memory(self):
        pixels = np.frombuffer(bytes(range(24)), np.uint8).reshape(2, 2, 2, 3)  # read-only
        images = from_pixels(pixels, "x").images
        assert images[0, :, 0, 0].tolist() == [0, 1, 2]
        assert images.stride() == (12, 4, 2, 1)
        images.fill_(9)
        assert pixels[0, 0, 0, 1] == 1

    def test_subset_and_hash(self):
        images = ImageSet(random_images(5, 3, 4, 4), "x")
        some = images.subset([4, 1])
        assert len(images) == 5
        assert len(some) == 2
        assert some.name == "x"
        assert torch.equal(some.images, images.images[[4, 1]])
        assert images.subset(3).images.shape == (1, 3, 4, 4)
        assert some.sha256() == hashlib.sha256(some.images.numpy().tobytes()).hexdigest()
        assert some.sha256() != images.sha256()
        assert images.subset(torch.tensor([True, False, False, True, False])).images.shape[0] == 2

    def test_is_frozen(self):
        with pytest.raises(AttributeError):
            ImageSet(random_images(1, 3, 2, 2), "x").name = "y"

    @pytest.mark.parametrize(
        ("images", "error", "words"),
        [
            (np.zeros((1, 3, 2, 2), np.uint8), TypeError, "got ndarray"),
            (torch.zeros(1, 3, 2, 2), TypeError, "got torch.float32"),
            (random_images(3, 2, 2), ValueError, r"got shape \(3, 2, 2\)"),
            (random_images(1, 2, 2, 3), ValueError, r"must be \(N, 3, H, W\)"),
        ],
    )
    def test_errors(self, images, error, words):
        with pytest.raises(error, match=words):
            ImageSet(images, "x")


class TestBatches:
    @pytest.mark.parametrize("protocol", [2, 3, 4])
    @pytest.mark.parametrize("inner", ["", "cifar-10-batches-py"])
    def test_folder(self, tmp_path, protocol, inner):
        fake_cifar.write_folder(tmp_path / inner, fake_cifar.all_batches(protocol))
        fake_cifar.check_horses(data.load(tmp_path))

    @pytest.mark.parametrize("name", ["cifar-10-python.tar.gz", "other.tgz"])
    def test_archive(self, tmp_path, name):
        path = fake_cifar.write_archive(tmp_path / name, fake_cifar.all_batches())
        fake_cifar.check_horses(data.load(str(path)))
        assert os.listdir(tmp_path) == [name]  # nothing was unpacked
        assert data.load(path)[0].name == f"{name}/train"

    def test_pickles_of_python_2(self, tmp_path):
        batches = {
            name: fake_cifar.python2_pickle(fake_cifar.pixels(i), fake_cifar.LABELS)
            for i, name in enumerate(fake_cifar.BATCHES)
        }
        old = pickle.loads(batches["test_batch"], encoding="bytes")  # they are what they claim
        assert np.array_equal(old[b"data"], fake_cifar.pixels(5))
        fake_cifar.check_horses(data.load(fake_cifar.write_folder(tmp_path, batches)))

    @pytest.mark.parametrize("classes", [["horse"], "horse", [7], ("horse", 7), {"horse"}])
    def test_ways_to_name_a_class(self, tmp_path, classes):
        fake_cifar.write_folder(tmp_path, fake_cifar.all_batches())
        fake_cifar.check_horses(data.load(tmp_path, classes=classes))

    def test_several_classes_keep_the_stored_order(self, tmp_path):
        fake_cifar.write_folder(tmp_path, fake_cifar.all_batches())
        _, test = data.load(tmp_path, classes=["cat", "airplane"])
        want = fake_cifar.pixels(5)[[1, 3]].reshape(-1, 3, 32, 32)
        assert np.array_equal(test.images.numpy(), want)

    def test_all_classes(self, tmp_path):
        fake_cifar.write_folder(tmp_path, fake_cifar.all_batches())
        train, test = data.load(tmp_path, classes=None)
        assert (len(train), len(test)) == (20, 4)
        assert np.array_equal(test.images.flatten(1).numpy(), fake_cifar.pixels(5))
        test.images[0] = 0  # writable, and nobody else's memory

    @pytest.mark.parametrize(
        ("classes", "error", "words"),
        [
            (["hors"], ValueError, "no class 'hors' in CIFAR-10, which has 0 airplane, 1 automob"),
            ([10], ValueError, "no class 10"),
            ([-1], ValueError, "no class -1"),
            ([True], TypeError, "names or ids, got True"),
            ([7.0], TypeError, "names or ids, got 7.0"),
            ([], ValueError, "classes is empty"),
        ],
    )
    def test_wrong_classes(self, classes, error, words):
        with pytest.raises(error, match=words):
            data.load("sample", classes=classes)

    def test_classes_of_what_has_no_labels(self, tmp_path):
        """Else a run on all of it would go on record as one on cats."""
        pixels = np.zeros((5, 32, 32, 3), np.uint8)
        np.savez(tmp_path / "plain.npz", train=pixels, test=pixels)
        for number, photo in enumerate(pixels):
            (tmp_path / "photos").mkdir(exist_ok=True)
            Image.fromarray(photo).save(tmp_path / "photos" / f"{number}.png")
        for source in ("sample", tmp_path / "plain.npz", tmp_path / "photos"):
            with pytest.raises(ValueError, match="has no labels to choose classes by: leave clas"):
                data.load(source, classes=["cat"])
            whole, default = data.load(source, classes=None), data.load(source)
            assert list(map(len, whole)) == list(map(len, default))

    def test_no_image_of_a_class(self, tmp_path):
        fake_cifar.write_folder(tmp_path, fake_cifar.all_batches())
        with pytest.raises(ValueError, match="no image of the classes asked for: dog, frog"):
            data.load(tmp_path, classes=["dog", "frog"])


class TestSources:
    def test_nothing_there(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no .*absent.npz; a source is 'sample', 'cif"):
            data.load(tmp_path / "absent.npz")

    def test_unknown_kind(self, tmp_path):
        (tmp_path / "x.zip").touch()
        with pytest.raises(ValueError, match=r"x.zip is not among the sources .* an .npz file"):
            data.load(tmp_path / "x.zip")

    def test_empty_folder(self, tmp_path):
        with pytest.raises(ValueError, match=r"lacks data_batch_1, data_batch_2.* python version"):
            data.load(tmp_path)
