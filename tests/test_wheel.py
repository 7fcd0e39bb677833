"""What the installed distribution holds: the package, and nothing else."""

import json
import re
from importlib import metadata

import pytest

DATA = {
    "colorseg": {"py.typed", "_C.pyi"},
    "colorseg/data": {"sample.png", "sample_sources.md", "sample_tiles.json"},
    "colorseg/models/weights": {
        "README.md", "general-UNet.safetensors", "horse24-ConvTransposeNet.safetensors",
        "horse24-PoolUpsampleNet.safetensors", "horse24-UNet.safetensors",
    },
    "colorseg/report/presets": {
        "best.toml", "clean.toml", "course-2021.toml", "lightning.toml",
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def files():
    distribution = metadata.distribution("colorseg")
    if "editable" in json.loads(distribution.read_text("direct_url.json") or "{}").get(
        "dir_info", {}
    ):
        pytest.skip("installed in editable mode: the files are those of the source tree")
    return [str(path) for path in distribution.files]


def test_the_package_and_its_data_and_nothing_else(files):
    compiled = re.compile(r"colorseg/_C\.[\w-]+\.(so|pyd)")
    known = {f"{folder}/{name}" for folder, names in DATA.items() for name in names}
    left = [
        path
        for path in files
        if not re.fullmatch(r"colorseg/[\w/]+\.py|.*/__pycache__/.*|\.\./.*", path)
        and not path.startswith(f"colorseg-{metadata.version('colorseg')}.dist-info/")
        and path not in known
        and not compiled.fullmatch(path)
    ]
    assert left == []
    assert known <= set(files)
    assert sum(compiled.fullmatch(path) is not None for path in files) == 1


def test_the_command_is_installed(files):
    assert any(re.search(r"/(bin|Scripts)/colorseg(\.exe)?$", path) for path in files)
