"""Builds ``colorseg._C``: torch-free kernels per instruction set, and the operators around them."""

import platform
from glob import glob
from pathlib import Path

from setuptools import Extension, setup
from torch.utils import cpp_extension

TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x020b000000000000"  # stable ABI: one binary, torch >= 2.11
SHORT_PATHS = f"-ffile-prefix-map={Path(__file__).parent.resolve()}/="  # in error messages
COMMON = ["-g0", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wno-psabi"]
# fma() is called where it is wanted; the other flags only free loops for the vectoriser
KERNELS = ["-O3", "-std=c++17", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
ISAS = {"scalar": ""}
if platform.machine() in ("x86_64", "AMD64"):
    ISAS["avx2"] = "-mavx2 -mfma"
    ISAS["avx512"] = "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mprefer-vector-width=512"
    ISAS["avx512_bf16"] = ISAS["avx512"] + " -mavx512bf16"

kernel_headers = glob("csrc/cpu/kernels/*.h")
libraries = [
    (
        f"colorseg_{isa}",
        {
            "sources": [f"csrc/cpu/kernels/{isa}.cpp"],
            "cflags": [*COMMON, *KERNELS, *flags.split()],
            "obj_deps": {"": kernel_headers},
        },
    )
    for isa, flags in ISAS.items()
]
extension = Extension(
    "colorseg._C",
    sources=sorted(glob("csrc/*.cpp") + glob("csrc/cpu/*.cpp")),
    depends=[*glob("csrc/*.h"), *glob("csrc/cpu/*.h"), *kernel_headers],
    include_dirs=cpp_extension.include_paths(),
    library_dirs=cpp_extension.library_paths(),
    libraries=["c10", "torch", "torch_cpu"],  # no torch_python: nothing beyond the stable ABI
    extra_compile_args={"cxx": [*COMMON, "-O2", TORCH_TARGET, SHORT_PATHS]},
    language="c++",
)

setup(
    ext_modules=[extension],
    libraries=libraries,
    cmdclass={"build_ext": cpp_extension.BuildExtension},
)
