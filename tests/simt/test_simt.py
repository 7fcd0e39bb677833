"""The emulation itself: right kernels run right in any order, planted faults are caught."""

import os
import subprocess
from pathlib import Path

import pytest
from simt.build import FLAGS, HERE, SANITIZE
from torch.utils import cpp_extension

NONE, NO_BARRIER, BEYOND_THE_END, DIVERGENT_BARRIER, HALF_WARP, NO_WAITING = range(6)


def compiled(folder: Path, flags: list[str]) -> Path:
    program = folder / "planted"
    includes = [f"-I{path}" for path in cpp_extension.include_paths()]
    sources = [str(HERE / "planted.cpp"), str(HERE / "simt.cpp")]
    subprocess.run(["g++", *FLAGS, *includes, *flags, *sources, "-o", str(program)], check=True)
    return program


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return compiled(tmp_path_factory.mktemp("plain"), [])


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory):
    return compiled(tmp_path_factory.mktemp("sanitized"), SANITIZE)


def run(program: Path, fault: int, seed: int = 0) -> tuple[int, str]:
    environment = {**os.environ, "COLORSEG_SIMT_SEED": str(seed), "ASAN_OPTIONS": "detect_leaks=0"}
    environment.pop("LD_PRELOAD", None)
    done = subprocess.run(
        [program, str(fault)], env=environment, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("seed", range(5))
def test_right_in_any_order(plain, seed):
    assert run(plain, NONE, seed) == (0, "right\n")


def test_right_under_the_sanitizers(sanitized):
    assert run(sanitized, NONE) == (0, "right\n")


@pytest.mark.parametrize("seed", range(5))
def test_a_missing_barrier_gives_a_wrong_result(plain, seed):
    assert run(plain, NO_BARRIER, seed) == (1, "wrong result\n")


def test_a_write_beyond_shared_memory_is_caught(sanitized):
    code, output = run(sanitized, BEYOND_THE_END)
    assert code != 0
    assert "heap-buffer-overflow" in output
    assert "planted.cpp" in output


def test_threads_that_wait_for_nobody_are_caught(plain):
    code, output = run(plain, DIVERGENT_BARRIER)
    assert code == 2
    assert "a barrier that some threads never came to" in output


def test_a_warp_operation_of_some_lanes_is_refused(plain):
    code, output = run(plain, HALF_WARP)
    assert code == 2
    assert "without all lanes of the warp" in output


def test_copies_that_nobody_waits_for_are_caught(plain):
    code, output = run(plain, NO_WAITING)
    assert code == 2
    assert "copies that nobody waited for" in output


def test_every_kernel_waits_for_the_one_before():
    """Kernels start early on a GPU; the emulation runs one after the other and could not tell."""
    kernels = 0
    for source in sorted((HERE.parents[1] / "csrc" / "cuda" / "kernels").glob("*.cu*")):
        for definition in source.read_text().split("__global__ ")[1:]:
            body = definition.split("{", 1)[1].split()
            assert body[0] == "await_previous();", f"{source.name}: {definition[:60]}"
            kernels += 1
    assert kernels > 30
