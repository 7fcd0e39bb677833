"""Devices, the closed list of skips, and the one table of tolerances.

A test marked ``every_device`` runs on the CPU and, then marked ``cuda`` too, on a GPU: ``device``
is where the tensors and modules that it makes are.  ``cpu_only`` takes a test of such a module out.
"""

import contextlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

# inductor's cache on disk does not see that a fake kernel changed
os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"
# threads that spin while they wait make small operators crawl on a busy machine
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch

# COLORSEG_SIMT=1: run the CUDA kernels in place of the CPU's, see tests/simt; "sanitize" under
# AddressSanitizer too, whose library must be preloaded
if simt := os.environ.get("COLORSEG_SIMT"):
    os.environ["COLORSEG_DEBUG"] = "1"  # labels out of range are errors, as on the CPU
    from simt.build import load

    load(simt == "sanitize")

if torch.cuda.is_available():
    os.environ["COLORSEG_DEBUG"] = "1"
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True

# Largest error allowed against the float64 reference, relative to the largest value of the tensor.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}

# The only reasons for which a test may be skipped.
SKIPS = {
    "gpu": "needs a CUDA device and a build with CUDA",
    "shared_data": "needs the real images: set COLORSEG_DATA to their folder",
    "gpus": "needs two CUDA devices",
    "gpu_memory": "needs 30 GB of free memory on the CUDA device",
    "proc": "needs Linux's /proc",
    "isa": "needs an instruction set that this machine does not have",
    "tensorboard": "needs TensorBoard: pip install 'colorseg[tensorboard]'",
    "gradio": "needs Gradio: pip install 'colorseg[demo]'",
    "browser": "needs Chromium, and Playwright: pip install playwright",
    "simt": "needs the CUDA kernels on the CPU: set COLORSEG_SIMT=1",
    "torchvision": "needs torchvision 0.28.0: pip install --no-deps torchvision==0.28.0",
}


def skip(reason: str) -> None:
    """Skip the running test for one of the reasons in SKIPS."""
    pytest.skip(SKIPS[reason])


@pytest.fixture
def shared_data() -> Path:
    """The folder with real images, if there is one."""
    folder = Path(os.environ.get("COLORSEG_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        skip("shared_data")
    return folder


@pytest.fixture(scope="session")
def gradio() -> ModuleType:
    """Gradio, which the demo needs."""
    if importlib.util.find_spec("gradio") is None:
        skip("gradio")
    return importlib.import_module("gradio")


@pytest.fixture(scope="session")
def torchvision() -> ModuleType:
    """The real one, beside whichever torch is installed."""
    if importlib.util.find_spec("torchvision") is None:
        skip("torchvision")
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:  # made for a torch with CUDA: it finds no operators of its own
        if "operator torchvision::nms does not exist" not in str(error):
            raise
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    for name in ("nms", "qnms"):
        schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        torch.library.define(f"torchvision::{name}", schema)
    return importlib.import_module("torchvision")


@pytest.fixture
def bfloat16_kernels() -> None:
    """Skips where optimize_for_inference has none."""
    import colorseg

    if not colorseg.build_info()["cpu_bfloat16"]:
        skip("isa")


def has_gpu() -> bool:
    """Whether the CUDA kernels can run here, on a GPU."""
    import colorseg

    return torch.cuda.is_available() and bool(colorseg.build_info()["cuda"])


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what is marked ``every_device`` on each, and what is marked ``cuda`` on a GPU."""
    mark = metafunc.definition.get_closest_marker
    if mark("every_device") and not mark("cpu_only"):
        devices = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
        metafunc.parametrize("device", devices, indirect=True)
    elif mark("cuda"):
        metafunc.parametrize("device", ["cuda"], indirect=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    if not has_gpu():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason=SKIPS["gpu"]))


@pytest.fixture(autouse=True)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where the test's tensors are, "cpu" or "cuda"; their numbers are the same in every run."""
    name = getattr(request, "param", "cpu")
    with torch.device(name) if name == "cuda" else contextlib.nullcontext():
        torch.manual_seed(0)
        yield name


def assert_close(got: torch.Tensor, want: torch.Tensor, dtype: torch.dtype | None = None) -> None:
    """Same shape, NaN and infinities in place, finite values within the tolerance of the dtype."""
    assert got.shape == want.shape
    got64, want64 = got.detach().double(), want.detach().double()
    assert torch.equal(got64.isnan(), want64.isnan())
    finite = want64.isfinite()
    assert torch.equal(got64[~finite & ~want64.isnan()], want64[~finite & ~want64.isnan()])
    if not finite.any():
        return
    scale = max(1.0, want64[finite].abs().max().item())
    error = (got64[finite] - want64[finite]).abs().max().item() / scale
    assert error <= TOLERANCE[dtype or got.dtype], (
        f"error {error:.2e} of the largest value {scale:.3g}"
    )
