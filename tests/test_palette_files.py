"""Palettes in .json and .npy files."""

import json
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from colorseg.palette import Palette


def colors(k: int = 5) -> torch.Tensor:
    return torch.rand(k, 3, generator=torch.manual_seed(k))


class TestFiles:
    @pytest.mark.parametrize("suffix", ["json", "npy", "JSON"])
    def test_round_trip(self, tmp_path, suffix):
        palette = Palette(colors(24), "söme name")
        path = tmp_path / f"p.{suffix}"
        palette.save(path)
        loaded = Palette.load(str(path))
        assert torch.equal(loaded.colors, palette.colors)
        assert loaded.name == ("p" if suffix == "npy" else palette.name)
        assert os.listdir(tmp_path) == [path.name]

    @settings(deadline=None, max_examples=25)
    @given(
        rows=st.lists(st.tuples(*[st.floats(0, 1, width=32)] * 3), min_size=1, max_size=256),
        name=st.text(st.characters(codec="utf-8")),
    )
    def test_every_palette_comes_back_bit_for_bit(self, tmp_path_factory, rows, name):
        palette = Palette(torch.tensor(rows), name)
        for suffix in ("json", "npy"):
            path = tmp_path_factory.getbasetemp() / f"p.{suffix}"
            palette.save(path)
            loaded = Palette.load(path)
            assert loaded.colors.numpy().tobytes() == palette.colors.numpy().tobytes()
        assert Palette.load(path.with_suffix(".json")).name == name

    def test_save_replaces(self, tmp_path):
        for palette in (Palette(colors(9)), Palette.horse24()):
            palette.save(tmp_path / "p.npy")
        assert len(Palette.load(tmp_path / "p.npy")) == 24

    def test_failed_save_leaves_the_old_file_and_no_other(self, tmp_path, monkeypatch):
        Palette.horse24().save(tmp_path / "p.json")

        def full(descriptor: int) -> None:
            raise OSError("no space left")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="no space left"):
            Palette(colors()).save(tmp_path / "p.json")
        assert os.listdir(tmp_path) == ["p.json"]
        assert len(Palette.load(tmp_path / "p.json")) == 24

    def test_permissions_are_those_of_any_new_file(self, tmp_path):
        Palette(colors()).save(tmp_path / "p.npy")
        (tmp_path / "plain").touch()
        assert (tmp_path / "p.npy").stat().st_mode == (tmp_path / "plain").stat().st_mode

    def test_wrong_places(self, tmp_path):
        with pytest.raises(ValueError, match=r"p.txt is neither .json nor .npy"):
            Palette(colors()).save(tmp_path / "p.txt")
        with pytest.raises(ValueError, match=r"p.txt is neither .json nor .npy"):
            Palette.load(tmp_path / "p.txt")
        with pytest.raises(FileNotFoundError, match=r"cannot save p.npy: there is no folder .*no"):
            Palette(colors()).save(tmp_path / "no" / "p.npy")
        with pytest.raises(FileNotFoundError, match=r"there is no palette file .*p.json"):
            Palette.load(tmp_path / "p.json")


class TestJson:
    def write(self, folder, content) -> Path:
        path = folder / "p.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    def test_rgb8_and_names(self, tmp_path):
        loaded = Palette.load(self.write(tmp_path, {"rgb8": [[0, 128, 255], [1, 2, 3]]}))
        assert torch.equal(loaded.colors, torch.tensor([[0, 128, 255], [1, 2, 3]]) / 255)
        assert loaded.name == "p"

    def test_rgb_takes_whole_numbers(self, tmp_path):
        loaded = Palette.load(self.write(tmp_path, {"rgb": [[0, 1, 0.25]], "name": "x"}))
        assert loaded.colors.tolist() == [[0, 1, 0.25]]
        assert loaded.name == "x"

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            ("{", "p.json is no JSON"),
            ("[" * 100_000, "p.json is no JSON"),
            ([1], 'must be a JSON object with either "rgb" or "rgb8"'),
            ({"name": "x"}, 'either "rgb" or "rgb8"'),
            ({"rgb": [[0, 0, 0]], "rgb8": [[0, 0, 0]]}, 'either "rgb" or "rgb8"'),
            ({"rgb": []}, '"rgb" must be a list of rows of three numbers in [0, 1]'),
            ({"rgb": [[0, 0]]}, "rows of three"),
            ({"rgb": [0, 0, 0]}, "rows of three"),
            ({"rgb": "abc"}, "rows of three"),
            ({"rgb": [[0, 0, "1"]]}, "rows of three"),
            ({"rgb": [[0, 0, True]]}, "rows of three"),
            ({"rgb8": [[0, 0, 0.5]]}, "rows of three integers"),
            ({"rgb8": [[0, 0, 256]]}, "p.json holds no palette: colors must be in [0, 1]"),
            ({"rgb8": [[0, 0, -1]]}, "holds no palette: colors must be in [0, 1]"),
            ({"rgb": [[0, 0, 10**999]]}, "a number that is too large"),
            ({"rgb": [[0, 0, 1.5]]}, "holds no palette: colors must be in [0, 1], got 0 to 1.5"),
            ('{"rgb": [[0, 0, NaN]]}', "holds no palette: colors must be finite"),
            ({"rgb": [[0, 0, 0]] * 257}, "holds no palette: colors must be (K, 3)"),
            ({"rgb": [[0, 0, 0]], "name": 5}, '"name" must be a string, got 5'),
        ],
    )
    def test_errors(self, tmp_path, content, words):
        with pytest.raises(ValueError, match=re.escape(words)):
            Palette.load(self.write(tmp_path, content))


class TestNpy:
    def save(self, folder, array, **options) -> Path:
        np.save(folder / "p.npy", array, **options)
        return folder / "p.npy"

    @pytest.mark.parametrize("dtype", ["f2", ">f4", "f8"])
    def test_float_types(self, tmp_path, dtype):
        array = np.linspace(0, 1, 12).reshape(4, 3).astype(dtype)
        for order in (array, np.asfortranarray(array)):
            loaded = Palette.load(self.save(tmp_path, order))
            assert np.array_equal(loaded.colors.numpy(), array.astype(np.float32))

    def test_the_course_file_is_refused_and_converted(self, tmp_path, monkeypatch):
        course = np.empty(2, dtype=object)  # [0] holds the colors
        course[0], course[1] = colors(24).double().numpy(), "more"
        path = self.save(tmp_path, course, allow_pickle=True)
        with pytest.raises(
            ValueError, match="is a pickle, and loading a pickle runs what"
        ) as error:
            Palette.load(path)
        command = re.search(r"convert it once: (.*)", str(error.value)).group(1)
        monkeypatch.chdir(tmp_path)
        exec(command, {"np": np})  # the command works as it stands
        assert torch.equal(Palette.load(tmp_path / "palette.npy").colors, colors(24))

    @pytest.mark.parametrize("protocol", [2, 5])
    def test_pickles_do_not_run(self, tmp_path, protocol):
        class Harm:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "trace"),)

        path = self.save(tmp_path, np.array([Harm()], dtype=object), allow_pickle=True)
        for _ in range(2):
            with pytest.raises(ValueError, match="is a pickle"):
                Palette.load(path)
            path.write_bytes(pickle.dumps(Harm(), protocol))
        assert not (tmp_path / "trace").exists()

    @pytest.mark.parametrize(
        ("array", "words"),
        [
            (
                np.zeros((4, 3), np.uint8),
                "(K, 3) float array in [0, 1], K at most 256, got shape (4",
            ),
            (np.zeros(3), "got shape (3,) of float64"),
            (np.zeros((4, 3), complex), "of complex128"),
            (np.zeros((4, 3), [("a", "f4")]), "must hold a (K, 3) float array"),
            (np.zeros((4, 4)), "got shape (4, 4) of float64"),
            (np.zeros((257, 3)), "got shape (257, 3) of float64"),
            (np.zeros((0, 3)), "holds no palette: colors must be (K, 3)"),
            (np.full((4, 3), 2.0), "holds no palette: colors must be in [0, 1], got 2 to 2"),
        ],
    )
    def test_wrong_arrays(self, tmp_path, array, words):
        with pytest.raises(ValueError, match=re.escape(words)):
            Palette.load(self.save(tmp_path, array))

    def test_damaged_files(self, tmp_path):
        path = self.save(tmp_path, np.zeros((24, 3)))
        whole = path.read_bytes()
        for length in (0, 4, 8, 60):
            path.write_bytes(whole[:length])
            with pytest.raises(ValueError, match=r"p.npy is no .npy file"):
                Palette.load(path)
        path.write_bytes(whole[:-1])
        with pytest.raises(ValueError, match=r"p.npy is cut short or damaged"):
            Palette.load(path)

    def test_size_that_is_not_there(self, tmp_path):
        header = {"descr": "<f8", "fortran_order": False, "shape": (24 * 10**9, 3)}
        with open(tmp_path / "p.npy", "wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
        with pytest.raises(ValueError, match=r"got shape \(24000000000, 3\)"):
            Palette.load(tmp_path / "p.npy")
