"""Builds ``colorseg._C``: torch-free kernels per instruction set, and the operators around them.

CUDA kernels are in iff torch is a CUDA build and the toolkit is there; COLORSEG_CUDA=0 leaves them
out, COLORSEG_CUDA=1 makes their absence an error, TORCH_CUDA_ARCH_LIST says for which GPUs.  No GPU
is needed.
"""

import os
import platform
import sys
from glob import glob
from pathlib import Path

import torch
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


def cuda_home():
    """The CUDA toolkit to build with, None for a CPU build."""
    wanted = os.environ.get("COLORSEG_CUDA", "")
    if wanted == "0" or not (torch.version.cuda or wanted == "1"):
        return None
    # torch looks beside the nvcc on the PATH, which may be a wrapper
    homes = [home for home in (cpp_extension.CUDA_HOME, "/usr/local/cuda") if home]
    for home in homes:
        if torch.version.cuda and (Path(home) / "include" / "cuda_runtime_api.h").exists():
            return home
    missing = (
        "the CUDA kernels need a CUDA build of torch and the CUDA toolkit with its headers; this "
        f"is torch {torch.__version__}, and there is no toolkit in {' or '.join(homes)}: set "
        "CUDA_HOME"
    )
    if wanted == "1":
        sys.exit(missing)
    print(f"colorseg is built for the CPU alone: {missing}", file=sys.stderr)
    return None


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
sources, device, cuda_libraries, macros = glob("csrc/*.cpp") + glob("csrc/cpu/*.cpp"), "cpu", [], []
if home := cuda_home():
    cpp_extension.CUDA_HOME = home
    # sm_90's code runs on later GPUs too, compiled again by the driver
    architectures = os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "8.0;8.6;9.0+PTX")
    sources += glob("csrc/cuda/*.cpp") + glob("csrc/cuda/kernels/*.cu")
    device, cuda_libraries = "cuda", ["torch_cuda", "c10_cuda", "cudart"]
    macros = [("USE_CUDA", None), ("COLORSEG_CUDA_ARCHITECTURES", f'"{architectures}"')]
extension = Extension(
    "colorseg._C",
    sources=sorted(sources),
    depends=glob("csrc/**/*.*h", recursive=True),
    include_dirs=cpp_extension.include_paths(device),
    library_dirs=cpp_extension.library_paths(device),
    # no torch_python: nothing beyond the stable ABI
    libraries=["c10", "torch", "torch_cpu", *cuda_libraries],
    define_macros=macros,
    extra_compile_args={
        "cxx": [*COMMON, "-O2", TORCH_TARGET, SHORT_PATHS],
        "nvcc": ["-O3", "-Xcompiler=-fPIC,-fvisibility=hidden"],
    },
    language="c++",
)

setup(
    ext_modules=[extension],
    libraries=libraries,
    cmdclass={"build_ext": cpp_extension.BuildExtension},
)
