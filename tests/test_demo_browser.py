"""The page of ``colorseg demo`` in a real browser: Chromium, by Playwright."""

import importlib.util
import shutil

import numpy as np
import pytest
from conftest import skip
from photo_cases import save_segmenter
from PIL import Image

from colorseg.demo import Demo

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@pytest.fixture(scope="module")
def demo(gradio, tmp_path_factory):
    demo = Demo(segmenter=save_segmenter(tmp_path_factory.mktemp("w") / "model.safetensors"))
    demo.address = demo.start()
    yield demo
    demo.stop()


@pytest.fixture
def page(demo):
    if CHROMIUM is None or importlib.util.find_spec("playwright") is None:
        skip("browser")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.asked = []
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(demo.address)
        yield page
        browser.close()


def drop(page, path, tab=0):
    page.locator("input[type=file]").nth(tab).set_input_files(str(path))


def picture(path, shape=(80, 120)):
    ramp = np.linspace(0, 255, shape[0] * shape[1] * 3).reshape(*shape, 3)
    Image.fromarray(ramp.astype(np.uint8)).save(path)
    return path


def download(page, button, path):
    with page.expect_download() as download:
        page.get_by_text(button, exact=True).click()
    download.value.save_as(path)
    with Image.open(path) as image:
        return image.copy()


def test_drop_a_photograph_and_download_it_colored(page, tmp_path):
    drop(page, picture(tmp_path / "a photo.jpg"))
    page.locator("[data-testid=imageslider] img, .slider-wrap img").first.wait_for()
    first = download(page, "Download", tmp_path / "first.png")
    assert first.size == (120, 80)
    page.get_by_label("argmax").check()
    page.get_by_role("button", name="Colorize").click()
    page.wait_for_timeout(2000)
    assert download(page, "Download", tmp_path / "second.png").tobytes() != first.tobytes()
    outside = [
        url for url in page.asked if not url.startswith(("http://127.0.0.1", "data:", "blob:"))
    ]
    assert outside == []


def test_segment(page, tmp_path):
    page.get_by_role("tab", name="Segment").click()
    drop(page, picture(tmp_path / "a.png"), tab=1)
    page.get_by_text("background").first.wait_for()
    mask = download(page, "Download the mask", tmp_path / "mask.png")
    assert mask.size == (120, 80)
    assert mask.mode == "P"


def test_a_file_that_is_no_picture(page, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    drop(page, broken)
    page.get_by_text("broken.png is no image in a known format").wait_for()
