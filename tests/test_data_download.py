"""The CIFAR-10 archive in the cache, and its download from a server on this machine."""

import dataclasses
import hashlib
import os
import sys
import threading
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import fake_cifar
import pytest

from colorseg import data
from colorseg.data import download


def change(monkeypatch, **settings) -> None:
    """Take another file for CIFAR-10, or look for it elsewhere."""
    monkeypatch.setattr(data, "CIFAR10", dataclasses.replace(data.CIFAR10, **settings))


@pytest.fixture
def archive(tmp_path, monkeypatch) -> Path:
    """A fake archive whose checksum colorseg takes for that of CIFAR-10."""
    path = fake_cifar.write_archive(tmp_path / "cifar-10-python.tar.gz", fake_cifar.all_batches())
    change(monkeypatch, checksum=f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}")
    monkeypatch.delenv("COLORSEG_CACHE", raising=False)
    return path


@pytest.fixture
def server(archive, monkeypatch):
    """Serves the folder of ``archive`` on this machine, in the place of CIFAR-10's server."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), partial(Quiet, directory=archive.parent)) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        url = f"http://127.0.0.1:{http.server_port}/{archive.name}"
        change(monkeypatch, url=url)
        monkeypatch.setenv("NO_PROXY", "*")
        yield http
        http.shutdown()
        thread.join()


class TestCache:
    def test_found(self, archive):
        fake_cifar.check_horses(data.load("cifar10", cache=archive.parent))

    def test_found_without_pooch(self, archive, monkeypatch):
        monkeypatch.setitem(sys.modules, "pooch", None)
        monkeypatch.setenv("COLORSEG_CACHE", str(archive.parent))
        fake_cifar.check_horses(data.load("cifar10"))

    def test_absent(self, archive, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"not in .*empty: load with download=True \(1"):
            data.load("cifar10", cache=tmp_path / "empty")
        assert not (tmp_path / "empty").exists()

    def test_wrong_checksum(self, archive):
        archive.write_bytes(archive.read_bytes()[:-1])
        with pytest.raises(ValueError, match=r"tar.gz is damaged .* its sha256 is not .*download="):
            data.load("cifar10", cache=archive.parent)
        assert archive.exists()

    def test_default_place(self, monkeypatch):
        import pooch

        monkeypatch.delenv("COLORSEG_CACHE", raising=False)
        assert download.default_cache() == Path(pooch.os_cache("colorseg"))
        monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
        assert download.default_cache() == Path("/elsewhere/colorseg")
        monkeypatch.setenv("COLORSEG_CACHE", "~/here")
        assert download.default_cache() == Path.home() / "here"

    def test_the_real_checksum_is_of_the_real_file(self):
        file = download.CIFAR10
        assert file.url == "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
        assert file.checksum.startswith("sha256:6d958be074577803")


@pytest.mark.usefixtures("server")
class TestDownload:
    def test_fetched_once(self, archive, tmp_path, server):
        fake_cifar.check_horses(data.load("cifar10", cache=tmp_path / "cache", download=True))
        assert os.listdir(tmp_path / "cache") == [archive.name]
        server.shutdown()  # from now on the cache must do
        fake_cifar.check_horses(data.load("cifar10", cache=tmp_path / "cache", download=True))
        fake_cifar.check_horses(data.load("cifar10", cache=tmp_path / "cache"))

    def test_replaces_a_damaged_file(self, archive, tmp_path):
        (tmp_path / "cache").mkdir()
        (tmp_path / "cache" / archive.name).write_bytes(b"half")
        fake_cifar.check_horses(data.load("cifar10", cache=tmp_path / "cache", download=True))

    def test_wrong_file_is_not_kept(self, tmp_path, monkeypatch):
        change(monkeypatch, checksum="sha256:" + "0" * 64)
        with pytest.raises(ValueError, match=r"sent is not CIFAR-10, and was not kept.*000: try"):
            data.load("cifar10", cache=tmp_path / "cache", download=True)
        assert os.listdir(tmp_path / "cache") == []

    def test_server_without_the_file(self, tmp_path, monkeypatch):
        change(monkeypatch, url=data.CIFAR10.url + ".absent")
        with pytest.raises(OSError, match=r"cannot download http.*404.* pass the path of a copy"):
            data.load("cifar10", cache=tmp_path / "cache", download=True)
        assert os.listdir(tmp_path / "cache") == []

    def test_without_pooch(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "pooch", None)
        with pytest.raises(ImportError, match="needs pooch: pip install pooch, or save http"):
            data.load("cifar10", cache=tmp_path / "cache", download=True)
