"""Devices, the closed list of skips, and the one table of tolerances."""

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

# inductor's cache on disk does not see that a fake kernel changed
os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"
# threads that spin while they wait make small operators crawl on a busy machine
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch

# Largest error allowed against the float64 reference, relative to the largest value of the tensor.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}

# The only reasons for which a test may be skipped.
SKIPS = {
    "gpu": "needs a CUDA device and a build with CUDA",
    "shared_data": "needs the real images: set COLORSEG_DATA to their folder",
    "isa": "needs an instruction set that this machine does not have",
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


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """The same inputs in every run and in any order."""
    torch.manual_seed(0)


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
