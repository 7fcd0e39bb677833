"""Batches that are damaged, wrong, or made to take all time and memory."""

import pickle
from collections.abc import Callable

import fake_cifar
import numpy as np
import pytest
from fake_cifar import refusal
from hypothesis import given, settings
from hypothesis import strategies as st

from colorseg import data
from colorseg.data import cifar10, safe_pickle


class TestBombs:
    def test_memo(self):
        """One instruction asks for memo entry 2^31 - 1, 32 GiB in the unpickler written in C."""
        assert safe_pickle.loads(b"\x80\x02}r\xff\xff\xff\x7f.", "x") == {}

    @pytest.mark.parametrize(("mark", "setter"), [(b"(", b"u"), (b"", b"s")])
    def test_keys_that_take_forever_to_hash(self, mark, setter):
        nested = b"h\x00h\x00\x86q\x00" * 99 + b"h\x00"  # a pair of pairs of pairs of ...
        content = b"\x80\x02)q\x00}" + mark + nested + b"K\x01" + setter + b"."
        assert "keys are neither bytes nor str" in refusal(content)

    def test_shape_that_takes_forever_to_show(self):
        nested = b")q\x00" + b"h\x00h\x00\x86q\x00" * 99
        state = b"(K\x01" + nested + b"h\x00\x86cnumpy\ndtype\nU\x02u1\x85R\x89U\x00tb"
        content = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n)NtR" + state
        refusal(b"\x80\x02}U\x01a" + content + b"s.")

    def test_one_string_encoded_many_times(self):
        text = b"X" + (10**6).to_bytes(4, "little") + b"a" * 10**6 + b"q\x00"
        again = b"c_codecs\nencode\nh\x00X\x06\x00\x00\x00latin1\x86R"
        content = b"\x80\x02](" + text + again * 10**4 + b"e."
        assert "more bytes than it has" in refusal(content)

    @pytest.mark.parametrize("opening", [b"]" * 10**5 + b"a" * (10**5 - 1), b"(" * 10**5])
    def test_deep_nesting(self, opening):
        refusal(b"\x80\x02" + opening + b".")

    def test_lengths_beyond_the_end(self):
        for opcode in (b"T\xff\xff\xff\x7f", b"X\xff\xff\xff\xff", b"B\xff\xff\xff\xff"):
            assert "cut short" in refusal(b"\x80\x04" + opcode + b"abc")
        assert "cut short" in refusal(b"\x80\x04\x95" + b"\xff" * 7 + b"\x7f" + b"abc")


def error_of(read: Callable[[bytes, str], object], content: bytes) -> str | None:
    """The words of a ValueError, or None; any other exception is a failure of the test."""
    try:
        read(content, "x")
    except ValueError as error:
        return str(error)
    return None


class TestDamage:
    def test_every_truncation_is_told(self):
        content = fake_cifar.python2_pickle(fake_cifar.pixels(0, 1)[:, :16], [7])
        for length in range(len(content)):
            words = refusal(content[:length])
            # a cut through a name leaves another name
            assert "is cut short or no pickled batch" in words or "asks for the name" in words

    @settings(deadline=None, max_examples=150)
    @given(st.data(), st.sampled_from([2, 3, 4]))
    def test_random_damage_never_raises_anything_else(self, choices, protocol):
        content = bytearray(
            pickle.dumps(fake_cifar.batch(0, data=fake_cifar.pixels(0, 1)), protocol)
        )
        places = st.integers(0, len(content) - 1)
        edits = st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=5)
        for place, value in choices.draw(edits):
            content[place % (len(content) if place % 2 else 80)] = value
        reason = error_of(cifar10._read_batch, bytes(content))
        assert reason is None or reason.startswith("x ")

    @settings(deadline=None, max_examples=150)
    @given(st.binary(max_size=60))
    def test_random_bytes(self, content):
        reason = error_of(safe_pickle.loads, content)
        assert reason is None or reason.startswith("x is ")

    def test_other_objects(self):
        assert "it holds a list, not a dict" in refusal(pickle.dumps([1, 2], 2))

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"data": None}, '"data" must be uint8'),
            ({"data": fake_cifar.pixels(0)[:, :-1]}, '"data" must be uint8'),
            ({"data": fake_cifar.pixels(0).astype("i4")}, '"data" must be uint8'),
            ({"data": np.zeros((), np.uint8)}, '"data" must be uint8'),
            ({"data": b"bytes"}, '"data" must be uint8'),
            ({"labels": [7, 7, 7, 10]}, '"labels" must list integers 0 to 9'),
            ({"labels": [7, 7, 7, -1]}, '"labels" must list'),
            ({"labels": [7, 7, 7, True]}, '"labels" must list'),
            ({"labels": [7, 7, 7, "7"]}, '"labels" must list'),
            ({"labels": np.array(fake_cifar.LABELS)}, '"labels" must list'),
            ({"labels": None}, '"labels" must list'),
            ({"labels": [7, 7]}, "has 4 images but 2 labels"),
        ],
    )
    def test_wrong_batches(self, tmp_path, changes, words):
        batches = fake_cifar.all_batches()
        batches["data_batch_2"] = pickle.dumps(fake_cifar.batch(0, **changes), 2)
        with pytest.raises(ValueError, match=f"data_batch_2 .*{words}"):
            data.load(fake_cifar.write_folder(tmp_path, batches))

    def test_oversized_file_in_a_folder(self, tmp_path):
        fake_cifar.write_folder(tmp_path, fake_cifar.all_batches())
        with open(tmp_path / "test_batch", "r+b") as file:
            file.truncate(1 << 40)  # sparse: takes no room on the disk
        with pytest.raises(ValueError, match="test_batch is no batch of CIFAR-10: it exceeds"):
            data.load(tmp_path)
