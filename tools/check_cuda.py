"""Compile the CUDA sources without a GPU, and fail where a hot kernel spills registers.

    python tools/check_cuda.py [--arch 80 90]

Prints registers and spills of every kernel; those in double are for gradient checks and may spill.
The files around the kernels are compiled against the headers of the installed torch, which may be
a CPU build.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from torch.utils import cpp_extension

CUDA = Path(__file__).parents[1] / "csrc" / "cuda"
KERNEL_FLAGS = ["-std=c++17", "-O3", "-Xptxas", "-v", "-Werror", "all-warnings"]
TORCH_FLAGS = [
    "-std=c++17", "-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020b000000000000",
    "-Xcompiler=-fvisibility=hidden,-Wall,-Werror",
]  # fmt: skip


class Kernel(NamedTuple):
    """What ptxas says of one kernel on one architecture."""

    name: str
    arch: str
    registers: int
    spilled_bytes: int


def kernels_in(log: str) -> Iterator[Kernel]:
    """The kernels that a log of ``ptxas -v`` reports."""
    entry = re.compile(
        r"Compiling entry function '(\w+)' for 'sm_(\w+)'.*?(\d+) bytes spill stores, (\d+) bytes "
        r"spill loads.*?Used (\d+) registers",
        re.DOTALL,
    )
    for name, arch, stores, loads, registers in entry.findall(log):
        yield Kernel(name, arch, int(registers), int(stores) + int(loads))


def readable(names: list[str]) -> list[str]:
    """Demangled, without namespaces and parameters."""
    text = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True)
    lines = text.stdout.splitlines()
    return [re.sub(r"^void |\(anonymous namespace\)::|colorseg::cuda::|\(.*", "", x) for x in lines]


def main() -> int:
    """Compile everything; 1 where something fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", nargs="+", default=["80", "90"], help="compute capabilities")
    options = parser.parse_args()
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        sys.exit("there is no nvcc on the PATH; install the CUDA toolkit, 12.8 or later")
    targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in options.arch]
    includes = [f"-I{path}" for path in cpp_extension.include_paths()]

    def compile_one(source: Path) -> subprocess.CompletedProcess[str]:
        flags = [*KERNEL_FLAGS, *targets] if source.suffix == ".cu" else [*TORCH_FLAGS, *includes]
        with tempfile.TemporaryDirectory() as folder:
            command = [nvcc, *flags, "-c", str(source), "-o", f"{folder}/out.o"]
            return subprocess.run(command, capture_output=True, text=True, check=False)

    sources = [*sorted(CUDA.glob("kernels/*.cu")), *sorted(CUDA.glob("*.cpp"))]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        runs = dict(zip(sources, pool.map(compile_one, sources), strict=True))
    failed = [source for source, run in runs.items() if run.returncode]
    for source in failed:
        lines = [x for x in runs[source].stderr.splitlines() if "ptxas info" not in x]
        print(f"{source.name} does not compile:", *lines[:20], sep="\n", file=sys.stderr)
    kernels = [k for run in runs.values() for k in kernels_in(run.stderr)]
    table = sorted(zip(readable([k.name for k in kernels]), kernels, strict=True))
    for name, kernel in table:
        spills = f", {kernel.spilled_bytes} bytes spilled" * bool(kernel.spilled_bytes)
        print(f"sm_{kernel.arch} {kernel.registers:4} registers  {name}{spills}")
    hot = [name for name, kernel in table if kernel.spilled_bytes and "double" not in name]
    print(f"{len(kernels)} kernels, {len(hot)} hot ones spill, {len(failed)} files do not compile")
    return 1 if failed or hot or not kernels else 0


if __name__ == "__main__":
    sys.exit(main())
