"""``colorseg demo``: what its page computes, and what its server refuses."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from photo_cases import noise, save_segmenter
from PIL import Image

from colorseg import demo as module
from colorseg.cli import main
from colorseg.demo import Demo


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "in" / "photo.png"
    path.parent.mkdir()
    Image.fromarray(noise()).save(path)
    return str(path)


@pytest.fixture
def demo(gradio):
    demo = Demo()
    yield demo
    demo.stop()


@pytest.fixture
def client(demo):
    import httpx  # comes with Gradio

    with httpx.Client(base_url=demo.start(), timeout=60) as client:
        yield client


def test_colorize(demo, photo, monkeypatch):
    monkeypatch.setattr(module, "SHOWN", 65)
    assert list(demo.networks) == ["general", "horse24"]
    results = {}
    for decode in ("argmax", "mean"):
        (before, after), path = demo.colorized(photo, "general", decode, 0.38, 2)
        assert before.size == after.size == (65, 45)
        with Image.open(path) as whole:
            assert whole.size == (130, 90)
            results[decode] = whole.tobytes()
    assert results["argmax"] != results["mean"]


def test_segment(gradio, photo, tmp_path):
    demo = Demo(segmenter=save_segmenter(tmp_path / "model.safetensors"))
    shown, mask, shares = demo.segmented(photo)
    assert shown.size == (130, 90)
    with Image.open(mask) as labels:
        assert labels.size == (130, 90)
    assert set(shares) <= {"background", "flower"}
    assert sum(shares.values()) == pytest.approx(1)
    demo.stop()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "Drop a photograph first"),
        (b"no picture", "photo.png is no image in a known format"),
        (b"", "photo.png is no image"),
        ("large", "130 x 90"),
    ],
)
def test_mistakes_are_sentences(demo, gradio, photo, content, message, monkeypatch):
    if content == "large":
        monkeypatch.setattr(module, "MAX_PIXELS", 1000)
    elif content is not None:
        Path(photo).write_bytes(content)
    with pytest.raises(gradio.Error) as error:
        demo.colorized(photo if content is not None else None, "general", "mean", 1, 1)
    assert message in error.value.message
    assert str(Path(photo).parent) not in error.value.message


def test_it_asks_nobody_else(client):
    assert str(client.base_url).startswith("http://127.0.0.1:")
    page = client.get("/").text
    assert "fonts.googleapis.com" not in page
    assert "fonts.gstatic.com" not in page


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "../../../../etc/passwd", "%2e%2e/%2e%2e/etc/passwd", module.__file__, "/"],
)
def test_no_file_of_the_machine_is_served(client, path):
    for prefix in ("/gradio_api/file=", "/file=", "/static/", "/assets/"):
        answer = client.get(prefix + path)
        assert answer.status_code in (307, 403, 404, 405), (prefix, answer.status_code)
        assert b"root:" not in answer.content
        assert b"colorseg demo" not in answer.content


def colorize_on_page(client, path):
    """Whether the page colorizes the file; what its script sends, without the browser."""
    given = {"path": path, "meta": {"_type": "gradio.FileData"}}
    call = {"data": [given, "general", "mean", 1, 1], "fn_index": 0, "session_hash": path}
    assert client.post("/gradio_api/queue/join", json=call).status_code == 200
    events = client.stream("GET", "/gradio_api/queue/data", params={"session_hash": path})
    with events as answer:
        for line in answer.iter_lines():
            if "process_completed" in line:
                return json.loads(line.removeprefix("data:"))["success"]
    return None


def test_a_path_in_place_of_an_upload_is_refused(client, photo):
    """What somebody could send: a file of the machine as the photograph."""
    upload = {"files": ("photo.png", Path(photo).read_bytes())}
    (uploaded,) = client.post("/gradio_api/upload", files=upload).json()
    assert colorize_on_page(client, uploaded) is True
    assert colorize_on_page(client, photo) is False


def test_large_uploads_are_refused(gradio, monkeypatch):
    import httpx

    monkeypatch.setattr(module, "MAX_BYTES", 1000)
    demo = Demo()
    address = demo.start()
    answers = [
        httpx.post(f"{address}gradio_api/upload", files={"files": bytes(size)}).status_code
        for size in (500, 5000)
    ]
    demo.stop()
    assert answers == [200, 413]
    assert not demo.folder.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_no_photograph_and_the_environment_opens_nothing(gradio, tmp_path, number):
    import httpx

    hostile = {
        "GRADIO_ALLOWED_PATHS": "/etc", "GRADIO_SERVER_NAME": "0.0.0.0", "GRADIO_SHARE": "True",
        "GRADIO_ROOT_PATH": "/elsewhere", "GRADIO_RUN_HISTORY": "True", "TMPDIR": str(tmp_path),
        "HTTP_PROXY": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9",
        "ALL_PROXY": "http://127.0.0.1:9", "NO_PROXY": "example.org",
        "GRADIO_TEMP_DIR": str(tmp_path / "elsewhere"),
    }  # fmt: skip
    # -P: the installed package, not the source tree in the current folder
    command = [sys.executable, "-P", "-m", "colorseg", "demo", "--no-browser", "--port", "0"]
    server = subprocess.Popen(
        command, env=os.environ | hostile, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # a child of nohup would ignore it, as it should
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )  # fmt: skip
    address = server.stdout.readline().split()[0]
    assert address.startswith("http://127.0.0.1:")
    with httpx.Client(base_url=address, trust_env=False) as client:
        upload = client.post("/gradio_api/upload", files={"files": ("photo.png", b"of somebody")})
        assert upload.status_code == 200
        assert Path(upload.json()[0]).is_relative_to(tmp_path)
        assert client.get("/gradio_api/file=/etc/passwd").status_code == 403
        assert '"run_history":false' in client.get("/config").text.replace(" ", "")
    server.send_signal(number)
    output, errors = server.communicate(timeout=60)
    assert (server.returncode, output, errors) == (0, "stopped\n", "")
    assert not list(tmp_path.iterdir())


def test_a_port_in_use(gradio, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["demo", "--no-browser", "--port", str(port)]) == 2
    assert f"error: port {port} of 127.0.0.1 cannot be used" in capsys.readouterr().err


def test_mistakes_of_the_command(tmp_path, capsys, monkeypatch, gradio):
    assert main(["demo", "--weights", str(tmp_path / "none.safetensors")]) == 2
    assert "none.safetensors" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["demo"]) == 2
    assert "pip install 'colorseg[demo]'" in capsys.readouterr().err
