"""Builds ``colorseg._C``: torch-free kernels compiled once per instruction set, and the operators around them."""

import platform
from glob import glob
from pathlib import Path

from setuptools import Extension, setup
from torch.utils import cpp_extension

TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x020b000000000000"  # stable ABI: one binary for torch >= 2.11
# Explicit fma() calls decide where rounding happens; the other flags only free loops for vectorisation.
KERNEL_FLAGS = "-O3 -g0 -std=c++17 -ffp-contract=off -fno-math-errno -fno-trapping-math -Wall -Wno-psabi".split()
SHORT_PATHS = f"-ffile-prefix-map={Path(__file__).parent.resolve()}/="  # in error messages
ISA_FLAGS = {"scalar": []}
if platform.machine() in ("x86_64", "AMD64"):
    ISA_FLAGS["avx2"] = ["-mavx2", "-mfma"]
    ISA_FLAGS["avx512"] = "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mprefer-vector-width=512".split()

kernel_headers = glob("csrc/cpu/kernels/*.h")
libraries = [
    (
        f"colorseg_{isa}",
        {
            "sources": [f"csrc/cpu/kernels/{isa}.cpp"],
            "cflags": [*KERNEL_FLAGS, *flags, "-fPIC", "-fvisibility=hidden"],
            "obj_deps": {"": kernel_headers},
        },
    )
    for isa, flags in ISA_FLAGS.items()
]
extension = Extension(
    "colorseg._C",
    sources=sorted(glob("csrc/*.cpp") + glob("csrc/cpu/*.cpp")),
    depends=[*glob("csrc/*.h"), *glob("csrc/cpu/*.h"), *kernel_headers],
    include_dirs=["csrc", *cpp_extension.include_paths()],
    library_dirs=cpp_extension.library_paths(),
    libraries=["c10", "torch", "torch_cpu"],  # not torch_python: no symbol outside the stable ABI is used
    extra_compile_args={
        "cxx": ["-O2", "-g0", TORCH_TARGET, "-fvisibility=hidden", "-Wall", "-Wno-psabi", SHORT_PATHS]
    },
    language="c++",
)

setup(
    ext_modules=[extension],
    libraries=libraries,
    cmdclass={"build_ext": cpp_extension.BuildExtension},
)
