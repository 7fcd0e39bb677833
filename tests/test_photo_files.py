"""``read_photo`` and ``save_picture``: files, images and arrays of any kind, and damaged ones."""

import io

import numpy as np
import pytest
from photo_cases import noise
from PIL import Image, ImageCms

from colorseg.photos import read_photo, save_picture


def encoded(image, kind="PNG", **options):
    content = io.BytesIO()
    image.save(content, kind, **options)
    return Image.open(io.BytesIO(content.getvalue()))


class TestReading:
    def test_modes(self, tmp_path):
        rgb = Image.fromarray(noise())
        for mode in ("RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "YCbCr"):
            photo = read_photo(rgb.convert(mode))
            assert photo.rgb.shape == (90, 130, 3)
            assert photo.rgb.dtype == np.uint8
            assert photo.alpha is None
        assert np.array_equal(read_photo(rgb).rgb, noise())

    def test_transparency_is_kept_where_there_is_some(self):
        alpha = np.full((90, 130), 255, np.uint8)
        for value in (255, 254):
            alpha[3, 4] = value
            pixels = np.dstack([noise(), alpha])
            image = Image.fromarray(pixels)
            for photo in map(read_photo, (pixels, pixels / 255.0, image, image.convert("LA"))):
                if value == 255:
                    assert photo.alpha is None
                    assert photo.image(photo.rgb).mode == "RGB"
                else:
                    assert np.array_equal(photo.alpha, alpha)

    def test_sixteen_bits(self, tmp_path):
        deep = (noise(channels=1).astype(np.uint16) * 257)[..., None]
        assert np.array_equal(read_photo(deep).rgb[..., 0], noise(channels=1))
        Image.fromarray(deep[..., 0]).save(tmp_path / "deep.png")
        assert np.array_equal(read_photo(tmp_path / "deep.png").rgb[..., 1], noise(channels=1))

    def test_sixteen_bits_are_rounded(self):
        deep = np.array([[0, 128, 129, 256, 257, 65406, 65407, 65535]], np.uint16)
        want = [0, 0, 1, 1, 1, 254, 255, 255]
        assert read_photo(deep).rgb[0, :, 0].tolist() == want

    def test_floats(self):
        assert np.array_equal(read_photo(noise() / 255.0).rgb, noise())
        with pytest.raises(ValueError, match=r"values in \[0, 1\]"):
            read_photo(noise() / 100.0)

    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
    def test_formats(self, kind, tmp_path):
        path = tmp_path / "a photo, ünïcode.bin"
        Image.fromarray(noise()).save(path, kind)
        assert read_photo(path).size == (90, 130)

    def test_exif_orientation(self):
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned by 90 degrees clockwise
        image = encoded(Image.fromarray(noise()), "PNG", exif=exif)
        assert np.array_equal(read_photo(image).rgb, np.rot90(noise(), -1))

    def test_color_profile(self):
        linear = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
        srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        for profile in (srgb, linear, b"no profile"):  # the last two cannot be used for RGB
            image = encoded(Image.fromarray(noise()), "PNG", icc_profile=profile)
            assert np.abs(read_photo(image).rgb.astype(int) - noise()).max() <= 1

    def test_palette_with_transparency(self):
        image = Image.fromarray(noise()).convert("P")
        index = image.getpixel((0, 0))
        alpha = read_photo(encoded(image, "PNG", transparency=index)).alpha
        assert np.array_equal(alpha == 0, np.array(image) == index)

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda p: p.write_text("not an image"), "is no image in a known format"),
            (lambda p: p.write_bytes(b""), "is no image in a known format"),
            (
                lambda p: Image.new("RGB", (9, 9)).save(p, "TGA"),
                "in a known format: BMP, GIF, JPEG",
            ),
            (lambda p: p.mkdir(), "is a folder; name the pictures in it"),
        ],
    )
    def test_what_is_no_picture(self, make, message, tmp_path):
        path = tmp_path / "x.png"
        make(path)
        with pytest.raises(ValueError, match=message):
            read_photo(path)

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
    def test_cut_short(self, kind, tmp_path):
        path = tmp_path / "x.bin"
        Image.fromarray(noise()).save(path, kind)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match=r"x.bin (is damaged or cut short|is no image)"):
            read_photo(path)

    def test_decompression_bombs_are_refused_before_they_are_decoded(self, tmp_path):
        path = tmp_path / "bomb.png"
        Image.new("1", (20_000, 20_000)).save(path)  # 400 million pixels in 50 kB
        limit = Image.MAX_IMAGE_PIXELS
        with pytest.raises(ValueError, match=r"20000 x 20000 = 400,000,000 pixels, more than"):
            read_photo(path)
        assert limit == Image.MAX_IMAGE_PIXELS

    @pytest.mark.parametrize(
        ("value", "error", "message"),
        [
            (np.zeros((4, 4, 2), np.uint8), ValueError, "with 1, 3 or 4 channels"),
            (np.zeros((0, 4, 3), np.uint8), ValueError, "the array is empty"),
            (np.zeros((4, 4), np.int32), TypeError, "must be uint8, uint16 or floating point"),
            (7, TypeError, "a picture must be a path, a Pillow image or a numpy array, got int"),
            ("no/such.png", FileNotFoundError, "no/such.png"),
        ],
    )
    def test_other_mistakes(self, value, error, message):
        with pytest.raises(error, match=message):
            read_photo(value)


class TestWriting:
    @pytest.mark.parametrize("suffix", [".png", ".JPG", ".webp", ".tif"])
    def test_formats(self, suffix, tmp_path):
        path = tmp_path / f"picture{suffix}"
        save_picture(Image.fromarray(noise(channels=4)), path)
        with Image.open(path) as image:
            assert image.size == (130, 90)
        assert [p.name for p in tmp_path.iterdir()] == [path.name]

    def test_mistakes(self, tmp_path):
        with pytest.raises(ValueError, match=r"must end in one of \.jpg"):
            save_picture(Image.fromarray(noise()), tmp_path / "x.doc")
        with pytest.raises(OSError, match="cannot write"):
            save_picture(Image.fromarray(noise()), tmp_path / "no" / "x.png")
