import math

import pytest
import torch

from colorseg.metrics import colorfulness, pixel_accuracy, psnr

pytestmark = pytest.mark.every_device


def test_pixel_accuracy_counts_equal_pixels():
    target = torch.tensor([[[0, 1], [2, 3]]])
    predicted = torch.tensor([[[0, 1], [2, 0]]])
    assert pixel_accuracy(predicted, target).item() == 0.75


def test_pixel_accuracy_leaves_ignored_pixels_out():
    target = torch.tensor([[[0, 255], [2, 3]]])
    predicted = torch.tensor([[[0, 1], [2, 0]]])
    assert pixel_accuracy(predicted, target, ignore_index=255).item() == pytest.approx(2 / 3)
    assert math.isnan(pixel_accuracy(predicted, torch.full_like(target, -100)).item())


def test_pixel_accuracy_ignores_no_uint8_class_by_default():
    # torch compares 156 (= 256 - 100) as equal to -100 in uint8
    classes = torch.tensor([156, 0], dtype=torch.uint8)
    assert pixel_accuracy(classes, classes).item() == 1
    assert pixel_accuracy(torch.zeros_like(classes), classes).item() == 0.5


def test_pixel_accuracy_names_both_shapes():
    with pytest.raises(ValueError, match=r"\(2, 4, 4\) and \(2, 5, 5\)"):
        pixel_accuracy(torch.zeros(2, 4, 4), torch.zeros(2, 5, 5))


def test_pixel_accuracy_does_not_cut_probabilities_off_to_class_0():
    classes, shares = torch.zeros(2, 4, 4).long(), torch.rand(2, 4, 4)
    with pytest.raises(TypeError, match=r"predicted must be integer classes, got .* threshold pro"):
        pixel_accuracy(shares, classes)
    with pytest.raises(TypeError, match=r"target must be integer classes, got .*float32"):
        pixel_accuracy(classes, shares)


def test_colorfulness_matches_the_formula_written_out():
    rgb = torch.randint(0, 256, (3, 3, 5, 7), dtype=torch.uint8)
    for picture, value in zip(rgb.double(), colorfulness(rgb), strict=True):
        red, green, blue = picture
        rg, yb = red - green, (red + green) / 2 - blue
        spread = math.sqrt(rg.var(correction=0) + yb.var(correction=0))
        assert value.item() == pytest.approx(
            spread + 0.3 * math.sqrt(rg.mean() ** 2 + yb.mean() ** 2), rel=1e-5
        )


def test_colorfulness_of_grey_is_zero_and_float_pictures_reach_to_one():
    grey = torch.rand(2, 1, 8, 8).expand(-1, 3, -1, -1)
    assert colorfulness(grey).abs().max() < 1e-4
    rgb = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    torch.testing.assert_close(colorfulness(rgb), colorfulness(rgb.double() / 255).float())


def test_psnr_per_picture():
    rgb = torch.zeros(3, 3, 4, 4, dtype=torch.uint8)
    other = rgb.clone()
    other[1] = 255
    other[2] = 1
    values = psnr(rgb, other)
    assert values[0].item() == math.inf
    assert values[1].item() == 0
    assert values[2].item() == pytest.approx(20 * math.log10(255), rel=1e-6)
    torch.testing.assert_close(psnr(rgb / 255, other / 255), values)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: colorfulness(torch.zeros(3, 4, 4)), ValueError, r"\(N, 3, H, W\), got \(3, 4, 4"),
        (lambda: colorfulness(torch.zeros(1, 3, 4, 4).long()), TypeError, "uint8 or floating"),
        (lambda: psnr(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 5)), ValueError, "one shape"),
        (lambda: psnr(*[torch.zeros(1, 3, 4, 4).int()] * 2), TypeError, "torch.int32"),
    ],
)
def test_mistakes_get_a_sentence(call, error, message):
    with pytest.raises(error, match=message):
        call()
