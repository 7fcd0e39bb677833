"""The readers under damaged files: a short run of the fuzzer, and what longer ones found."""

import subprocess
import sys
from pathlib import Path

import pytest

from colorseg.palette import Palette

FUZZER = Path(__file__).parents[1] / "tools" / "fuzz_readers.py"


def test_a_short_run_finds_nothing(tmp_path):
    command = [sys.executable, "-P", str(FUZZER), "--inputs", "400", "--out", str(tmp_path / "f")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('"findings": 0') == 10


def test_a_header_that_is_no_python(tmp_path):
    path = tmp_path / "p.npy"
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (24, 3), }   ), }\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(288))
    with pytest.raises(ValueError, match=r"p\.npy is no \.npy file"):
        Palette.load(path)
