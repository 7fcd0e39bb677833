"""``colorseg demo``: a page on this machine alone that colorizes and segments photographs."""

import os
import socket
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import nn

from colorseg.models import load_network, load_segmenter
from colorseg.models.weights import SHIPPED
from colorseg.photos import colorize, overlay, read_photo, save_picture, segment_labels
from colorseg.photos.colorizing import DECODINGS, TEMPERATURE

HOST = "127.0.0.1"
MAX_BYTES, MAX_PIXELS = 50 * 2**20, 50_000_000  # of an upload
SHOWN = 1600  # pixels of the longer side on the page; the download has all
CACHED = 3600  # seconds that uploads and results are kept
TITLE = "colorseg"
INTRODUCTION = """# colorseg
Photographs stay on this machine, and are deleted when the demo ends."""
NO_SEGMENTER = (
    "No network that segments ships with colorseg. Train one, "
    "`python examples/finetune_deeplab.py`, and name its weights: "
    "`colorseg demo --segmenter runs/deeplab/iou/model.safetensors`."
)


class Demo:
    """The page, with the networks that it offers.

    Args:
        weights: files of networks that colorize, beside those that ship with the package.
        segmenter: a file of a network that segments, if there is one.

    Raises:
        ImportError: Gradio is not installed.
        FileNotFoundError, ValueError: as ``load_network`` and ``load_segmenter``.
    """

    def __init__(
        self, weights: Sequence[str | Path] = (), segmenter: str | Path | None = None
    ) -> None:
        self.networks: dict[str, nn.Module] = {}
        for name in [*map(str, weights), *sorted(SHIPPED)]:  # "general" before "horse24"
            self.networks[name] = load_network(name)
        self.segmenter = load_segmenter(segmenter) if segmenter else None
        # deleted at the interpreter's end, too, if nobody calls stop()
        self._folder = tempfile.TemporaryDirectory(
            prefix="colorseg-demo-", ignore_cleanup_errors=True
        )
        self.folder = Path(self._folder.name)
        _close_environment(self.folder)
        gradio = _gradio()  # late: what it reads of the environment is read when it is imported
        self.blocks = gradio.Blocks(
            title=TITLE, analytics_enabled=False, delete_cache=(CACHED, CACHED)
        )
        with self.blocks:
            gradio.Markdown(INTRODUCTION)
            with gradio.Tab("Colorize"):
                self._colorize_tab(gradio)
            with gradio.Tab("Segment"):
                self._segment_tab(gradio)

    def start(self, port: int | None = None, browser: bool = False) -> str:
        """Serve the page on ``port`` of 127.0.0.1, or on a free one (None, 0); return its address.

        Raises:
            OSError: the port is taken.
        """
        gradio = _gradio()
        if port:
            _check_free(port)
        # fonts of the machine: the page asks no other server for anything
        theme = gradio.themes.Soft(
            font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
        )
        _, address, _ = self.blocks.launch(
            server_name=HOST, server_port=port or None, inbrowser=browser, share=False, quiet=True,
            prevent_thread_lock=True, max_file_size=MAX_BYTES, allowed_paths=[], show_error=True,
            theme=theme, footer_links=[], run_history=False, ssr_mode=False, mcp_server=False,
        )  # fmt: skip
        return str(address)

    def stop(self) -> None:
        """End the server and delete what it kept."""
        self.blocks.close(verbose=False)
        self._folder.cleanup()

    def colorized(
        self, path: str | None, name: str, decode: str, temperature: float, vividness: float
    ) -> tuple[tuple[Image.Image, Image.Image], str]:
        """Before and after, small enough to be shown, and the file of the whole result."""

        def work(photo: Image.Image) -> tuple[tuple[Image.Image, Image.Image], str]:
            colored = colorize(
                photo, self.networks[name], decode=decode, temperature=temperature,
                vividness=vividness, max_pixels=MAX_PIXELS,
            )  # fmt: skip
            grey = photo.convert("L").convert("RGB")
            return (_shown(grey), _shown(colored)), self._file("colorized.png", colored)

        return _answer(path, work)

    def segmented(self, path: str | None) -> tuple[Image.Image, str, dict[str, float]]:
        """The overlay, the file of the mask, and the share of each class."""

        def work(photo: Image.Image) -> tuple[Image.Image, str, dict[str, float]]:
            assert self.segmenter is not None
            from colorseg.photos.segmenting import mask_image

            labels = segment_labels(photo, self.segmenter, max_pixels=MAX_PIXELS)
            counts = np.bincount(labels.ravel()) / labels.size
            names = self.segmenter.classes or [f"class {i}" for i in range(len(counts))]
            shares = {n: float(s) for n, s in zip(names, counts, strict=False)}
            mask = self._file("mask.png", mask_image(labels))
            return _shown(overlay(photo, labels)), mask, shares

        return _answer(path, work)

    def _file(self, name: str, picture: Image.Image) -> str:
        path = Path(tempfile.mkdtemp(dir=self.folder)) / name
        save_picture(picture, path)
        return str(path)

    def _colorize_tab(self, gradio: Any) -> None:
        with gradio.Row():
            with gradio.Column(scale=1):
                photo = _upload(gradio)
                name = gradio.Dropdown(list(self.networks), label="Weights")
                decode = gradio.Radio(list(DECODINGS), value="annealed", label="Decoding")
                temperature = gradio.Slider(0.05, 1, TEMPERATURE, label="Temperature")
                vividness = gradio.Slider(0, 3, 1, label="Vividness")
                button = gradio.Button("Colorize", variant="primary")
            with gradio.Column(scale=2):
                result = gradio.ImageSlider(label="Before | after", type="pil", format="png")
                download = gradio.DownloadButton("Download", interactive=True)
        inputs = [photo, name, decode, temperature, vividness]
        for event in (button.click, photo.upload):
            event(self.colorized, inputs, [result, download], api_name=False)

    def _segment_tab(self, gradio: Any) -> None:
        if self.segmenter is None:
            gradio.Markdown(NO_SEGMENTER)
            return
        with gradio.Row():
            with gradio.Column(scale=1):
                photo = _upload(gradio)
                button = gradio.Button("Segment", variant="primary")
            with gradio.Column(scale=2):
                result = gradio.Image(
                    label="Classes", interactive=False, format="png", buttons=["fullscreen"]
                )
                shares = gradio.Label(label="Share of the picture")
                download = gradio.DownloadButton("Download the mask", interactive=True)
        for event in (button.click, photo.upload):
            event(self.segmented, [photo], [result, download, shares], api_name=False)


def _upload(gradio: Any) -> Any:
    sources = ["upload", "clipboard"]
    image = gradio.Image(label="Photograph", type="filepath", sources=sources, buttons=[])
    # it would open the file itself, and show its own error of a broken one
    image.preprocess = lambda uploaded: uploaded.path if uploaded else None
    return image


def _answer(path: str | None, work: Callable[[Image.Image], Any]) -> Any:
    """``work`` of the photograph; a mistake becomes a sentence on the page."""
    gradio = _gradio()
    if path is None:
        raise gradio.Error("Drop a photograph first.")
    try:
        photo = read_photo(path, MAX_PIXELS)
        return work(photo.image(photo.rgb))
    except (OSError, ValueError) as error:
        raise gradio.Error(str(error).replace(str(path), Path(path).name)) from None


def _shown(picture: Image.Image) -> Image.Image:
    small = picture.copy()
    small.thumbnail((SHOWN, SHOWN))
    return small


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError):
            raise OSError(
                f"port {port} of {HOST} cannot be used; choose another one, or none for a free one"
            ) from None


def _close_environment(folder: Path) -> None:
    """What is served, and where, is said here alone, not by variables that Gradio reads."""
    for name in [name for name in os.environ if name.startswith("GRADIO_")]:
        del os.environ[name]
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(folder)  # of uploads, and of copies of results
    for name in ("no_proxy", "NO_PROXY"):  # it asks its own page whether it is up
        hosts = os.environ.get(name, "").split(",")
        os.environ[name] = ",".join(dict.fromkeys([*filter(None, hosts), HOST]))


def _gradio() -> Any:
    try:
        import gradio
    except ImportError:
        raise ImportError(
            "the demo needs Gradio, which is not installed; pip install 'colorseg[demo]'"
        ) from None
    return gradio
