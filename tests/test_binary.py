"""What the compiled extension links to, and that its instruction sets stay apart."""

import subprocess
from pathlib import Path

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
