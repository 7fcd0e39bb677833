"""What the compiled extension links to, and that its instruction sets stay apart."""

import os
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torch.utils import cpp_extension

from colorseg import _C


def symbols(path: str, *options: str) -> list[str]:
    """Lines of ``nm``, which the compiler's binutils bring."""
    command = ["nm", "-DC", *options, path]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return output.splitlines()


def test_only_the_stable_abi_is_used():
    """So that one binary serves every torch from 2.11 on."""
    undefined = symbols(str(_C.__file__), "--undefined-only")
    assert any("aoti_torch_" in line for line in undefined)
    assert [
        line for line in undefined if "at::" in line or "c10::" in line or "torch::" in line
    ] == []


def test_kernels_export_nothing():
    """A weak symbol of a wider instruction set could replace its baseline copy elsewhere."""
    exported = symbols(str(_C.__file__), "--defined-only")
    assert any("PyInit__C" in line for line in exported)
    assert [line for line in exported if "colorseg" in line] == []


def test_the_extension_lies_in_the_package():
    import colorseg

    assert Path(str(_C.__file__)).parent == Path(str(colorseg.__file__)).parent


def test_the_sources_are_cpp17():
    """As which torch 2.11 compiles extensions; what surrounds the CUDA kernels: check_cuda.py."""
    csrc = Path(__file__).parents[1] / "csrc"
    include = [*cpp_extension.include_paths(), sysconfig.get_path("include")]
    flags = ["-std=c++17", "-fsyntax-only", "-DTORCH_TARGET_VERSION=0x020b000000000000"]
    command = ["g++", "-w", *flags, *(f"-I{path}" for path in include)]

    def errors(source: Path) -> str:
        return subprocess.run([*command, source], capture_output=True, text=True).stderr

    sources = [*csrc.glob("*.cpp"), *csrc.glob("cpu/*.cpp")]
    assert len(sources) > 10
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        assert [*filter(None, pool.map(errors, sources))] == []
