"""The build backend asks pip for what is missing, at the versions the tests were run with."""

import importlib.util
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def backend(monkeypatch):
    """build_backend as a module of its own, with installed versions to choose."""
    spec = importlib.util.spec_from_file_location("build_backend", ROOT / "build_backend.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    installed = {}

    def version(name):
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(module.metadata, "version", version)
    return module, installed


def pinned(name):
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return next(line for line in lines if line.startswith(f"{name}=="))


BUILD = {
    "all there": ({"torch": "2.13.0+cpu", "setuptools": "80.9.0"}, []),
    "oldest": ({"torch": "2.11.0", "setuptools": "77.0.3"}, []),
    "nightly": ({"torch": "3.0.0a0+git1234", "setuptools": "100.0"}, []),
    "no torch": ({"setuptools": "80.9.0"}, ["torch"]),
    "old torch": ({"torch": "2.9.1", "setuptools": "80.9.0"}, ["torch"]),
    "old setuptools": ({"torch": "2.13.0", "setuptools": "65.5.0"}, ["setuptools"]),
    "nothing": ({}, ["torch", "setuptools"]),
}


@pytest.mark.parametrize(("versions", "missing"), BUILD.values(), ids=BUILD)
def test_the_build_asks_for_what_is_missing_at_its_pinned_version(versions, missing, backend):
    module, installed = backend
    installed.update(versions)
    wanted = [pinned(name) for name in missing]
    assert module.get_requires_for_build_wheel() == wanted
    assert module.get_requires_for_build_sdist() == wanted
    assert module.get_requires_for_build_editable() == wanted
