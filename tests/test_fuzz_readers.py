"""The readers under damaged files: a short run of the fuzzer, and what longer ones found."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from colorseg._files import load_torch
from colorseg.palette import Palette

CLAIMS = ("archive/.format_version", "archive/byteorder", "archive/version")
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


@pytest.mark.parametrize("record", CLAIMS)
def test_a_checkpoint_that_claims_4_gigabytes(record, tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "archive.pt")
    content = bytearray((tmp_path / "archive.pt").read_bytes())
    with zipfile.ZipFile(tmp_path / "archive.pt") as archive:
        at = content.index(b"PK\x01\x02", archive.start_dir)
        while not content.startswith(record.encode(), at + 46):
            at = content.index(b"PK\x01\x02", at + 4)
    content[at + 24 : at + 28] = b"\xff\xff\xff\xff"[:3] + b"\xfe"  # its size in the directory
    (tmp_path / "archive.pt").write_bytes(content)
    with pytest.raises(ValueError, match="claims 4278190079 bytes of a file of"):
        load_torch(tmp_path / "archive.pt")
