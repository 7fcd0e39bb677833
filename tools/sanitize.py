"""Build the operators with AddressSanitizer and UndefinedBehaviorSanitizer and test them.

    python tools/sanitize.py [--races] [pytest arguments]

With --races it is ThreadSanitizer.  Builds into build/; the installed package stays as it
is.  Needs gcc on Linux.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
MEMORY = "-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer"
RACES = f"-fsanitize=thread -fno-omit-frame-pointer -g -include {ROOT}/tools/tsan_parallel_for.h"
# small sizes; not what compiles, counts memory, or builds the emulation
TESTS = [
    "tests/test_conv2d.py", "tests/test_conv2d_dilated.py", "tests/test_conv2d_errors.py",
    "tests/test_conv_bn_relu.py", "tests/test_soft_iou_loss.py", "tests/test_nearest_color.py",
    "tests/test_color_cross_entropy.py", "tests/test_convolve.py", "tests/test_convolve_blocks.py",
    "tests/test_chain.py", "tests/test_inference.py", "tests/test_lattices.py",
    "tests/test_packed_conv2d.py",
]  # fmt: skip
LEFT_OUT = "not inductor and not compile and not memory and not opcheck and not large_image"


def library(name: str) -> str:
    """The path of a runtime library of gcc's."""
    found = subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True)
    return found.stdout.strip()


def build(flags: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Compile into ``folder``, ``lib`` of it."""
    package = folder / "lib"
    shutil.rmtree(package, ignore_errors=True)
    environment = os.environ | {
        "CFLAGS": flags, "CXXFLAGS": flags, "LDFLAGS": flags.split()[0], "COLORSEG_CUDA": "0",
    }  # fmt: skip
    command = [
        sys.executable, "setup.py", "build_clib", "-b", str(folder / "clib"), "-t",
        str(folder / "objects"), "build_ext", "-b", str(package), "-t", str(folder / "objects"),
    ]  # fmt: skip
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def main() -> int:
    """The exit code of pytest, or of the build."""
    arguments = sys.argv[1:]
    races = "--races" in arguments
    if races:
        arguments.remove("--races")
    folder = ROOT / "build" / ("sanitize-races" if races else "sanitize-memory")
    package = folder / "lib"
    done = build(RACES if races else MEMORY, folder)
    if done.returncode:
        print(done.stdout[-2000:], done.stderr[-4000:], file=sys.stderr)
        return done.returncode
    modules = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "colorseg", package / "colorseg", ignore=modules, dirs_exist_ok=True)
    libraries = ["libtsan.so"] if races else ["libasan.so", "libubsan.so"]
    environment = os.environ | {
        "PYTHONPATH": str(package),
        "PYTHONSAFEPATH": "1",
        "LD_PRELOAD": " ".join(map(library, libraries)),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own are none of ours
        # torch's own loops are not known to it; pytest would keep a report for itself
        "TSAN_OPTIONS": f"ignore_noninstrumented_modules=1 exitcode=66 log_path={folder}/races",
    }
    tests = arguments or ["-k", LEFT_OUT, *TESTS]
    # ThreadSanitizer finds no room where addresses are random
    fixed = ["setarch", "-R"] if races else []
    command = [*fixed, sys.executable, "-m", "pytest", *tests]
    code = subprocess.run(command, cwd=ROOT, env=environment).returncode
    for report in folder.glob("races.*"):
        print(report.read_text(), file=sys.stderr)
        report.unlink()
    return code


if __name__ == "__main__":
    sys.exit(main())
