"""Build one wheel, say what is in it, and test it under several versions of torch.

    python tools/check_versions.py 2.11.0 2.13.0

Each version gets a virtual environment of its own; -k, as pytest takes it, chooses the tests.
"""

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
NEEDED = ["pytest", "hypothesis", "scipy", "scikit-learn", "setuptools", "ninja", "pybind11"]
TESTS = [
    "tests/test_conv2d.py", "tests/test_conv_bn_relu.py", "tests/test_soft_iou_loss.py",
    "tests/test_color_cross_entropy.py", "tests/test_nearest_color.py", "tests/test_chain.py",
    "tests/test_blocks.py", "tests/test_models.py", "tests/test_inference.py",
    "tests/test_inference_deeplab.py", "tests/test_deeplabv3.py", "tests/test_packed_conv2d.py",
]  # fmt: skip


def contents(wheel: Path) -> None:
    """Print the size of each kind of file in it."""
    sizes: dict[str, int] = {}
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            kind = Path(entry.filename).suffix or entry.filename
            sizes[kind] = sizes.get(kind, 0) + entry.file_size
    print(wheel.name, f"{wheel.stat().st_size:,} bytes")
    for kind, size in sorted(sizes.items(), key=lambda item: -item[1]):
        print(f"  {size:>10,} {kind}")


def tested(wheel: Path, version: str, folder: Path, words: str) -> bool:
    """Whether the wheel passes under that torch."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = str(folder / "bin" / "python")
    install = [python, "-m", "pip", "install", "-q", f"torch=={version}", str(wheel), *NEEDED]
    subprocess.run(install, check=True)
    facts = "import colorseg, torch; print(torch.__version__, colorseg.build_info()['torch_built'])"
    subprocess.run([python, "-P", "-c", facts], check=True)
    pytest = [python, "-P", "-m", "pytest", "-q", "-k", words, *TESTS]
    return subprocess.run(pytest, cwd=ROOT).returncode == 0


def main() -> int:
    """0 if the wheel passes under all versions."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("versions", nargs="+", metavar="VERSION", help="of torch")
    parser.add_argument("-k", default="not inductor", metavar="WORDS", help="which tests")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
        subprocess.run([*build, "-w", folder, str(ROOT)], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        contents(wheel)
        passed = [tested(wheel, v, Path(folder) / v, args.k) for v in args.versions]
    for version, good in zip(args.versions, passed, strict=True):
        print(f"torch {version}: {'passed' if good else 'failed'}")
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
