"""Builds the CUDA sources for the host emulation, and loads them in place of the CPU kernels.

The operators that come from here then run the CUDA kernels on tensors in host memory, so every
test of theirs is a test of the CUDA kernels.
"""

import ctypes
import os
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch.utils import cpp_extension

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
FLAGS = [
    "-DCOLORSEG_SIMT", "-D_GLIBCXX_ASSERTIONS", "-DTORCH_TARGET_VERSION=0x020b000000000000",
    "-std=c++20", "-O2", "-g1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wall",
    "-Wno-psabi", "-Wno-unknown-pragmas", f"-I{HERE}", f"-ffile-prefix-map={ROOT}/=/",
]  # fmt: skip


_loaded: ctypes.CDLL | None = None


def sources() -> list[Path]:
    """Kernels, the operators around them with what they share, and the emulation itself."""
    csrc = ROOT / "csrc"
    found = [*csrc.glob("cuda/kernels/*.cu"), *csrc.glob("cuda/*.cpp")]
    shared = [csrc / f"{name}.cpp" for name in ("aten_convolution", "kept_memory", "precision")]
    return [*sorted(found), *shared, HERE / "controls.cpp", HERE / "simt.cpp"]


def build(folder: Path, sanitize: bool) -> Path:
    """Compile what changed into ``folder`` and return the library."""
    folder.mkdir(parents=True, exist_ok=True)
    flags = [*FLAGS, *(f"-I{path}" for path in cpp_extension.include_paths())]
    flags += SANITIZE if sanitize else []
    csrc = ROOT / "csrc"
    headers = [*csrc.glob("*.h"), *csrc.glob("cuda/**/*.*h"), *HERE.glob("*.h")]
    newest = max(path.stat().st_mtime for path in [*headers, Path(__file__)])

    def compile_one(source: Path) -> Path:
        target = folder / f"{source.parent.name}_{source.name}.o"
        if not target.exists() or target.stat().st_mtime < max(newest, source.stat().st_mtime):
            command = ["g++", *flags, "-x", "c++", "-c", str(source), "-o", str(target)]
            subprocess.run(command, check=True)
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, sources()))
    library = folder / "colorseg_simt.so"
    paths = [f"-L{path}" for path in cpp_extension.library_paths()]
    links = ["-shared", *(SANITIZE if sanitize else []), *paths, "-ltorch", "-ltorch_cpu", "-lc10"]
    subprocess.run(["g++", *map(str, objects), "-o", str(library), *links], check=True)
    return library


def load(sanitize: bool = False) -> None:
    """Build the emulation and let it take over the operators that it has."""
    import colorseg.ops  # noqa: F401  the schemas, and the kernels that are replaced

    platform = sysconfig.get_platform()
    folder = ROOT / "build" / f"simt-{platform}-{torch.__version__}{'-sanitized' * sanitize}"
    library = build(folder, sanitize)
    torch.ops.load_library(str(library))
    global _loaded
    _loaded = ctypes.CDLL(str(library))


def set_allow_tf32(allowed: bool) -> None:
    """What ``colorseg._C.set_allow_tf32`` is to the kernels of the extension."""
    assert _loaded is not None
    _loaded.set_allow_tf32(ctypes.c_bool(allowed))


def count_launches() -> int:
    """How many kernels have run."""
    assert _loaded is not None
    _loaded.count_launches.restype = ctypes.c_int64
    return int(_loaded.count_launches())


if __name__ == "__main__":
    print(build(Path(sys.argv[1]), "--sanitize" in sys.argv))
