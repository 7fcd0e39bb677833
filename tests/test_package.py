"""What importing colorseg loads, its errors where that fails, and who may import whom."""

import ast
import importlib.machinery
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import colorseg

PACKAGE = Path(colorseg.__file__).parent
ROOT = PACKAGE.parent
SLOW = ("matplotlib", "torchmetrics", "pooch", "tqdm", "sklearn")


def python(code, cwd=ROOT, **environment):
    """Run code in a fresh interpreter that finds colorseg in ``cwd``."""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(cwd)} | environment,
        capture_output=True,
        text=True,
    )


def loaded_by(code):
    """The names of all modules that are loaded after ``code``."""
    done = python(f"{code}\nimport sys, json; print(json.dumps(sorted(sys.modules)))")
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


@pytest.fixture(scope="module")
def loaded_by_torch():
    return loaded_by("import torch")  # among others tqdm


def test_importing_the_package_loads_nothing():
    loaded = loaded_by("import colorseg; assert colorseg.__version__")
    assert not {"torch", "numpy", "colorseg._C", *SLOW} & loaded


def test_reference_needs_no_compiled_code(loaded_by_torch):
    loaded = loaded_by("import colorseg; colorseg.reference.conv2d") - loaded_by_torch
    assert "colorseg.reference" in loaded
    assert not {"colorseg._C", "colorseg.ops", *SLOW} & loaded


def test_slow_packages_and_cuda_wait_for_their_first_use(loaded_by_torch):
    code = "import colorseg, torch; colorseg.models.UNet(); colorseg.training; colorseg.data"
    loaded = loaded_by(f"{code}; assert not torch.cuda.is_initialized()") - loaded_by_torch
    assert {"colorseg._C", "colorseg.nn", "colorseg.training"} <= loaded
    assert not {*SLOW} & loaded


def test_build_info():
    info = colorseg.build_info()
    assert list(info) == [
        "version", "torch_built", "torch_running", "cuda", "cuda_arch_list",
        "cpu_isa", "cpu_isas_available", "cpu_bfloat16", "threads",
    ]  # fmt: skip
    assert info["version"] == colorseg.__version__
    assert info["cpu_isa"] in info["cpu_isas_available"]
    assert info["cpu_isas_available"][0] == "scalar"


def test_an_unknown_instruction_set_is_one_clear_error():
    done = python("import colorseg; colorseg.ops", COLORSEG_CPU_ISA="nonsense")
    assert done.returncode == 1
    message = done.stderr.splitlines()[-1]
    assert "COLORSEG_CPU_ISA=nonsense is not available on this machine, which has scalar" in message
    assert "unset the variable" in message
    assert "pip install" not in done.stderr


def test_an_instruction_set_can_be_chosen():
    code = "import colorseg; print(colorseg.build_info()['cpu_isa'])"
    assert python(code, COLORSEG_CPU_ISA="scalar").stdout == "scalar\n"


@pytest.fixture
def unbuilt(tmp_path):
    """The source tree without the compiled extension."""
    compiled = shutil.ignore_patterns("_C.*.so", "__pycache__")
    shutil.copytree(PACKAGE, tmp_path / "colorseg", ignore=compiled)
    return tmp_path


WITHOUT_EXTENSION = """
import colorseg
for name in ("ops", "nn", "models", "training", "fuse"):
    try:
        getattr(colorseg, name)
    except ImportError as error:
        print(error)
colorseg.reference, colorseg.palette.Palette.horse24(), colorseg.data.load("sample")
"""


def test_without_the_extension_the_error_names_the_command(unbuilt):
    done = python(WITHOUT_EXTENSION, unbuilt)
    assert done.returncode == 0, done.stderr
    messages = done.stdout.splitlines()
    assert len(messages) == 5
    for message in messages:
        assert message.startswith("colorseg's compiled operators could not be loaded with torch 2.")
        assert "`pip install -e .`" in message
        assert "start Python in another folder than the source tree" in message
        assert message.endswith("colorseg.reference works without them.")


def test_a_broken_extension_names_the_cause(unbuilt):
    name = f"_C{importlib.machinery.EXTENSION_SUFFIXES[0]}"
    (unbuilt / "colorseg" / name).write_bytes(b"no library")
    done = python("import colorseg; colorseg.ops", unbuilt)
    assert "file too short" in done.stderr.splitlines()[-1]


def test_every_public_name_exists():
    assert set(colorseg.__all__) <= set(dir(colorseg))
    for name in colorseg.__all__:
        assert getattr(colorseg, name) is not None
    with pytest.raises(AttributeError, match="module 'colorseg' has no attribute 'nonsense'"):
        colorseg.nonsense  # noqa: B018


def test_public_names_of_the_parts():
    for part in (colorseg.ops, colorseg.nn, colorseg.models):
        for name in part.__all__:
            assert callable(getattr(part, name)) or name == "NETWORKS"


def imports(path):
    """The modules a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


LAYERS = [
    "ops",
    "nn",
    "models",
    "training",
    "photos",
    "report",
    "cli",
]  # each may import what stands before it


def imported_layers(path):
    return {name.split(".")[1] for name in imports(path) if name.startswith("colorseg.")} & {
        *LAYERS
    }


@pytest.mark.parametrize("layer", LAYERS[:-1])
def test_imports_point_one_way(layer):
    files = sorted((PACKAGE / layer).rglob("*.py"))
    assert files
    above = {*LAYERS[LAYERS.index(layer) + 1 :]}
    for file in files:
        assert not imported_layers(file) & above, file.relative_to(ROOT)


def test_the_lowest_modules_import_no_layer():
    for name in ("reference.py", "_extension.py", "_files.py", "_version.py"):
        assert not imported_layers(PACKAGE / name), name
