"""Pickles made to do harm: every one is refused in a sentence, and nothing of it runs."""

import builtins
import functools
import operator
import os
import pickle
import re
import subprocess
from pathlib import Path

import fake_cifar
import numpy as np
import pytest
from fake_cifar import refusal

from colorseg import data
from colorseg.data import safe_pickle


class Call:
    """Pickles as a call of ``function(*args)``."""

    def __init__(self, function: object, *args: object) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple:
        return self.call


def hostile_calls(trace: Path) -> dict[str, Call]:
    """Each leaves the file ``trace`` if it runs; by what the refusal must name."""
    code = f"__import__('pathlib').Path({str(trace)!r}).touch()"
    return {
        "posix.system": Call(os.system, f"touch {trace}"),
        "eval": Call(eval, code),
        "exec": Call(exec, code),
        "open": Call(open, str(trace), "w"),
        "__import__": Call(__import__, "os"),
        "getattr": Call(getattr, "", "join"),
        "Popen": Call(subprocess.Popen, ["touch", str(trace)]),
        "operator.methodcaller": Call(operator.methodcaller, "system"),
        "functools.partial": Call(functools.partial, os.system, f"touch {trace}"),
        "numpy.save": Call(np.save, str(trace), 1),
        "frompyfunc": Call(np.frompyfunc, os.system, 1, 1),
        "decode": Call(__import__("codecs").decode, b"x", "zlib"),
    }


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("name", hostile_calls(Path()))
def test_calls_are_refused_and_named(tmp_path, name, protocol):
    call = hostile_calls(tmp_path / "trace")[name]
    batches = fake_cifar.all_batches()
    batches["test_batch"] = pickle.dumps({b"data": call, b"labels": [1]}, protocol)
    words = rf"batches/?: test_batch is refused: it asks for the name '.*{re.escape(name)}"
    with pytest.raises(ValueError, match=words):
        data.load(fake_cifar.write_folder(tmp_path / "batches", batches))
    archive = fake_cifar.write_archive(tmp_path / "x.tar.gz", batches)
    with pytest.raises(ValueError, match=rf"x.tar.gz: test_batch is refused: .*{re.escape(name)}"):
        data.load(archive)
    assert not (tmp_path / "trace").exists()


def test_the_calls_would_have_run(tmp_path):
    """The test above means something: the same pickles do their harm in the plain unpickler."""
    for name in ("posix.system", "eval", "exec"):
        trace = tmp_path / name
        pickle.loads(pickle.dumps(hostile_calls(trace)[name], 2))
        assert trace.exists()


class TestNames:
    @pytest.mark.parametrize(
        ("module", "name"),
        [
            ("numpy", "ndarray.tofile"),  # a dotted name reaches attributes in protocol 4
            ("numpy", "dtype.__class__"),
            ("numpy", "load"),
            ("numpy.core", "multiarray._reconstruct"),
            ("numpy.core.multiarray", "fromfile"),
            ("_codecs", "decode"),
            ("builtins", "bytes"),
            ("", ""),
            ("os\u202e", "system"),
        ],
    )
    def test_only_exact_names_are_admitted(self, module, name):
        def string(text: str) -> bytes:
            return b"\x8c" + bytes([len(text.encode())]) + text.encode()

        content = b"\x80\x04" + string(module) + string(name) + b"\x93."
        assert "asks for the name" in refusal(content)

    def test_python_2_names_are_not_translated(self):
        assert "'__builtin__.eval'" in refusal(b"\x80\x02c__builtin__\neval\n.")

    @pytest.mark.parametrize(
        ("content", "instruction"),
        [
            (b"(U\x01xios\nsystem\n.", "INST"),
            (b"(cnumpy\ndtype\nU\x02u1o.", "OBJ"),
            (b"\x80\x02cnumpy\ndtype\n)\x81.", "NEWOBJ"),
            (b"\x80\x02\x82\x01.", "EXT1"),
            (b"Pid\n.", "PERSID"),
            (b"\x80\x02K\x01Q.", "BINPERSID"),
            (b"\x80\x02K\x012.", "DUP"),
            (b"\x80\x04\x8f.", "EMPTY_SET"),
            (b"\x80\x05\x97.", "NEXT_BUFFER"),
            (b"I1\n.", "INT"),
        ],
    )
    def test_only_plain_instructions_are_admitted(self, content, instruction):
        assert instruction in refusal(content)

    def test_the_stand_ins_cannot_be_changed(self):
        for name in (b"c_codecs\nencode\n", b"cnumpy\ndtype\n", b"cnumpy\nndarray\n"):
            before = dict(vars(safe_pickle._Encoded)), dict(vars(safe_pickle._Dtype))
            for state in (b"}X\x01\x00\x00\x00aK\x01s", b"N}X\x01\x00\x00\x00aK\x01s\x86"):
                refusal(b"\x80\x02" + name + state + b"b.")
            assert before == (dict(vars(safe_pickle._Encoded)), dict(vars(safe_pickle._Dtype)))


class TestArrays:
    @pytest.mark.parametrize(
        ("array", "words"),
        [
            (np.array([1, "x", None], dtype=object), "an array of type 'O8'"),
            (np.zeros(2, dtype=[("a", "u1")]), "an array of type 'V1'"),
            (np.array(["text"]), "an array of type 'U4'"),
            (np.array(["2020-01-01"], dtype="M8[D]"), "an array of type 'M8'"),
            (np.ma.array([1]), "the name 'numpy.ma"),
            (np.uint8(3), "multiarray.scalar'"),
        ],
    )
    def test_other_kinds_are_refused(self, array, words):
        assert words in refusal(pickle.dumps({b"data": array}, 2))

    @pytest.mark.parametrize("dtype", ["u1", ">u2", "<i8", ">f4", "f8", "b1"])
    @pytest.mark.parametrize("protocol", [2, 3, 4])
    def test_plain_numbers_are_read(self, dtype, protocol):
        array = np.arange(12).reshape(3, 4).astype(dtype)
        for written in (array, np.asfortranarray(array)):
            read = safe_pickle.loads(pickle.dumps({"key": written}, protocol), "x")[b"key"]
            assert read.dtype == array.dtype
            assert np.array_equal(read, array)

    @pytest.mark.parametrize(
        ("old", "new", "words"),
        [
            (b"\x00\x0c\x86", b"\xff\xff\x86", "bytes for an array of another size"),
            (b"K\x04M", b"K\x05M", "bytes for an array of another size"),
            (b"M\x00\x0c\x86", b"J\xff\xff\xff\xff\x86", "a shape that is none"),
            (b"U\x02u1", b"U\x02O8", "an array of type 'O8'"),
            (b"U\x01|NNN", b"U\x01|)NN", "an array of records"),
            (b"U\x01|NNN", b"U\x01?NNN", "an array of records"),
            (b"\x89T", b"\x89](K\x01eT", "cut short or no pickled batch"),
            (b"cnumpy\nndarray\n", b"cnumpy\ndtype\n", "an array of a class of its own"),
        ],
    )
    def test_lies_about_an_array(self, old, new, words):
        content = fake_cifar.python2_pickle(fake_cifar.pixels(0), fake_cifar.LABELS)
        assert content.count(old) == 1
        assert words in refusal(content.replace(old, new))

    def test_array_without_contents(self):
        content = b"\x80\x02}U\x01acnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n)NtRs."
        assert "an array without contents" in refusal(content)

    def test_array_of_a_list(self):
        state = b"(K\x01K\x01\x85cnumpy\ndtype\nU\x02u1\x85R\x89](K\x01etb"
        content = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n)NtR" + state
        assert "an array of objects" in refusal(b"\x80\x02}U\x01a" + content + b"s.")


def test_npz_with_a_pickle_does_not_run_it(tmp_path):
    call = Call(os.system, f"touch {tmp_path / 'trace'}")
    images = np.zeros((1, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "x.npz", train=np.array([call], dtype=object), test=images)
    with pytest.raises(ValueError, match=r'x.npz: "train" is damaged or pickled'):
        data.load(tmp_path / "x.npz")
    (tmp_path / "x.npz").write_bytes(pickle.dumps(call))
    with pytest.raises(ValueError, match=r"x.npz is cut short or no .npz file"):
        data.load(tmp_path / "x.npz")
    assert not (tmp_path / "trace").exists()


def test_no_builtin_is_within_reach():
    """None of the admitted names is a function of Python or numpy itself."""
    admitted = safe_pickle._NAMES.values()
    assert not any(value in vars(builtins).values() for value in admitted)
    assert not any(isinstance(value, type(len) | type(np.sum)) for value in admitted)
