"""The operators under random shapes, strides, dtypes and options: a short run of the fuzzer."""

import importlib
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from colorseg import ops, reference

FUZZER = Path(__file__).parents[1] / "tools" / "fuzz_operators.py"
CASES = os.environ.get("COLORSEG_CASES", "600")


@pytest.fixture(scope="module")
def fuzzer():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FUZZER.parent)
        yield importlib.import_module("fuzz_operators")


def test_a_short_run_finds_nothing():
    command = [sys.executable, str(FUZZER), "--cases", CASES]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"findings": 0' in done.stdout


@pytest.mark.parametrize("operator", ["conv2d", "conv_bn_relu", "color_cross_entropy"])
def test_it_sees_what_is_wrong_by_a_hundredth(fuzzer, operator, monkeypatch):
    right = getattr(ops, operator)

    def wrong(*args, **options):
        result = right(*args, **options)
        return result * 1.01 if result.numel() else result

    monkeypatch.setattr(ops, operator, wrong)
    found = [fuzzer.check(0, number, operator, Counter()) for number in range(40)]
    assert sum(finding is not None for finding in found) > 10


def test_it_sees_an_error_that_is_none_for_users(fuzzer, monkeypatch):
    def broken(*_, **__):
        raise IndexError("list index out of range")

    monkeypatch.setattr(ops, "conv2d", broken)
    assert "IndexError list index out of range: conv2d" in fuzzer.check(0, 0, "conv2d", Counter())


def test_a_case_that_ends_the_process_is_named(tmp_path):
    """The other cases are run all the same."""
    crashing = tmp_path / "crashing.py"
    crashing.write_text(
        f"import os, sys\n"
        f"sys.path.insert(0, {str(FUZZER.parent)!r})\n"
        f"import fuzz_operators\n"
        f"fuzz_operators.check = lambda seed, number, *_: number == 2 and os.abort()\n"
        f"fuzz_operators.__file__ = __file__\n"
        f"sys.exit(fuzz_operators.main())\n"
    )
    command = [sys.executable, str(crashing), "--cases", "5"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "case 2 ended the process with code -6" in done.stdout
    assert '"cases": 2' in done.stdout, "those behind it"


def test_the_same_number_is_the_same_case(fuzzer):
    (first, _), (second, _) = (fuzzer.drawn(3, 11, None) for _ in range(2))
    assert first.text() == second.text()
    for name, tensor in first.tensors.items():
        if tensor is not None:
            assert tensor.equal(second.tensors[name])
    assert hasattr(reference, first.operator)
