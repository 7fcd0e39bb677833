"""Oxford's 17 flowers from small copies of the published files, packed, unpacked and damaged."""

import dataclasses
import gzip
import hashlib
import io
import os
import tarfile

import mask_files
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat

from colorseg.data import flowers17, load_segmentation
from colorseg.data.matfile import read_mat

# pictures 1 to 8 have a trimap; the union of the training lists has most of val1
SPLITS = {"trn1": [1, 2, 3, 11], "trn2": [2, 5, 6], "trn3": [3, 4, 7], "val1": [3, 5, 8, 12]}


def encoded(pixels, kind):
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, kind)
    return content.getvalue()


def mat(splits=None, **options):
    content = io.BytesIO()
    arrays = {k: np.array([v], np.uint16) for k, v in (splits or SPLITS).items()}
    savemat(content, arrays, **options)
    return content.getvalue()


def files():
    """Contents by path, as they are after unpacking."""
    jpgs = {f"jpg/image_{i:04d}.jpg": encoded(mask_files.picture(i), "jpeg") for i in range(1, 13)}
    tris = {f"trimaps/image_{i:04d}.png": encoded(flower(i), "png") for i in range(1, 9)}
    return jpgs | tris | {"jpg/files.txt": b"image_0001.jpg\n", "trimaps/imlist.mat": b"MATLAB"}


def flower(number):
    """A trimap whose first row tells which it is."""
    rgb = np.full((12, 12, 3), mask_files.GROUND, np.uint8)
    rgb[0, :number] = mask_files.FLOWER
    return rgb


def pack(path, members):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


@pytest.fixture(params=["packed", "unpacked"])
def folder(request, tmp_path):
    folder = tmp_path / "flowers"
    folder.mkdir()
    (folder / "datasplits.mat").write_bytes(mat(do_compression=True))
    if request.param == "packed":
        for role in ("jpg", "trimaps"):
            members = {k: v for k, v in files().items() if k.startswith(role)}
            pack(folder / flowers17.FILES[role].name, members)
    else:
        for name, content in files().items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
    return folder


def numbers(found):
    return found.masks[:, 0].sum(1).tolist()


def test_clean_lists_share_nothing(folder):
    train, val = load_segmentation(folder, image_size=12)
    assert numbers(train) == [1, 2]  # trn1 without val1's 3, and without 11, which has no trimap
    assert numbers(val) == [3, 5, 8]
    assert train.classes == ("background", "flower")


def test_the_lists_of_the_course_have_duplicates_and_leak(folder):
    train, val = load_segmentation(folder, image_size=12, mode="course")
    assert numbers(train) == [1, 2, 3, 2, 5, 6, 3, 4, 7]
    assert numbers(val) == [3, 5, 8]


def test_nothing_is_unpacked_to_the_disk(folder, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    load_segmentation(folder, image_size=12)
    assert sorted(tmp_path.rglob("*")) == before


def test_from_the_cache(tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    with pytest.raises(FileNotFoundError, match=r"17 flowers is not in .* download=True \(60 MB"):
        load_segmentation("flowers17", cache=cache)
    cache.mkdir()
    for role, file in flowers17.FILES.items():
        path = cache / file.name
        if role == "splits":
            path.write_bytes(mat())
        else:
            pack(path, {k: v for k, v in files().items() if k.startswith(role)})
        if file.checksum:
            digest = hashlib.md5(path.read_bytes()).hexdigest()
            with pytest.raises(ValueError, match="is damaged or another file, since its md5 is n"):
                load_segmentation("flowers17", cache=cache)
            known = dataclasses.replace(file, checksum=f"md5:{digest}")
            monkeypatch.setitem(flowers17.FILES, role, known)
    train, val = load_segmentation("flowers17", cache=cache, image_size=12)
    assert (numbers(train), numbers(val)) == ([1, 2], [3, 5, 8])
    assert train.name == "flowers17/train"


def test_where_the_files_come_from():
    site = "https://www.robots.ox.ac.uk/~vgg/data/flowers/17/"
    names = [file.url.removeprefix(site) for file in flowers17.FILES.values()]
    assert names == ["17flowers.tgz", "trimaps.tgz", "datasplits.mat"]


def test_members_that_are_no_pictures_of_the_set_are_passed_over(tmp_path):
    path = tmp_path / "17flowers.tgz"
    pack(path, {"../../image_0001.jpg": b"one", "/etc/passwd": b"x", "image_0002.jpg.sh": b"y"})
    assert flowers17._pictures(path) == {"image_0001": b"one"}
    assert os.listdir(tmp_path) == ["17flowers.tgz"]


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda f: (f / "trimaps.tgz").unlink(), FileNotFoundError, "neither the folder trimaps"),
        (lambda f: (f / "trimaps.tgz").write_bytes(b"x"), ValueError, "trimaps.tgz is cut short"),
        (lambda f: (f / "datasplits.mat").write_bytes(b"x"), ValueError, "no MATLAB file of vers"),
        (
            lambda f: (f / "datasplits.mat").write_bytes(mat({"trn1": [1], "val2": [2]})),
            ValueError,
            "has no list val1, only trn1, val2",
        ),
        (
            lambda f: (f / "datasplits.mat").write_bytes(mat(SPLITS | {"val1": [0, 3]})),
            ValueError,
            "val1 must be numbers of pictures",
        ),
        (
            lambda f: (f / "datasplits.mat").write_bytes(bytes(2 << 20)),
            ValueError,
            "is not datasplits.mat: it exceeds 1048576 bytes",
        ),
        (
            lambda f: pack(f / "trimaps.tgz", {"image_0003.png": b"no", "image_0001.png": b"no"}),
            ValueError,
            "mask image_0001 is damaged or no picture",
        ),
    ],
)
@pytest.mark.parametrize("folder", ["packed"], indirect=True)
def test_mistakes_get_a_sentence(folder, spoil, error, message):
    spoil(folder)
    with pytest.raises(error, match=message):
        load_segmentation(folder, image_size=12)


ARRAYS = {
    "doubles": np.arange(6.0).reshape(2, 3) / 7,
    "a": np.array([[1, 2, 300]], np.uint16),
    "bytes": np.arange(4, dtype=np.int8)[:, None] - 2,
    "single": np.float32([[0.5]]),
    "wide": np.array([[2**40]], np.int64),
    "nothing": np.zeros((0, 3)),
}


def arrays_or_error(content):
    """What is read, or the words of a ValueError; any other exception is a failure of the test."""
    try:
        return read_mat(content, "x")
    except ValueError as error:
        return str(error)


class TestMatFile:
    @pytest.mark.parametrize("compressed", [False, True])
    def test_against_scipy(self, compressed):
        content = io.BytesIO()
        others = {"text": "hello", "cell": np.array([1, "x"], object), "z": np.array([1j])}
        savemat(content, ARRAYS | others, do_compression=compressed)
        found = read_mat(content.getvalue(), "x")
        assert found.keys() == ARRAYS.keys()
        for name, want in ARRAYS.items():
            assert found[name].shape == want.shape
            assert np.array_equal(found[name], want), name

    def test_big_endian(self):
        """Written by hand after the description of the format."""
        numbers = np.array([1, 515], ">u2").tobytes()
        body = (
            np.array([6, 8, 11, 0], ">u4").tobytes()
            + np.array([5, 8, 1, 2], ">u4").tobytes()
            + np.array([1 << 16 | 1], ">u4").tobytes() + b"t\0\0\0"
            + np.array([4 << 16 | 4], ">u4").tobytes() + numbers
        )  # fmt: skip
        head = b"MATLAB 5.0".ljust(124) + b"\x01\x00MI"
        content = head + np.array([14, len(body)], ">u4").tobytes() + body
        assert read_mat(content, "x")["t"].tolist() == [[1, 515]]

    def test_an_array_that_unpacks_to_fill_the_memory(self):
        content = io.BytesIO()
        savemat(content, {"zeros": np.zeros((1, 4 << 20))}, do_compression=True)
        assert len(content.getvalue()) < 1 << 17
        with pytest.raises(ValueError, match="x is damaged: an array unpacks to more than 16777"):
            read_mat(content.getvalue(), "x")

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            np.array([6, 8, 11, 0], "<u4").tobytes(),  # flags alone
            np.array([6, 0, 5, 0, 1, 0], "<u4").tobytes(),  # flags, shape and name without values
            np.array([6, 8, 11, 0, 7, 4, 0x7F800000, 0, 1, 0], "<u4").tobytes(),  # infinite shape
        ],
    )
    def test_an_array_without_its_description(self, body):
        head = b"MATLAB 5.0".ljust(124) + b"\x00\x01IM"
        content = head + np.array([14, len(body)], "<u4").tobytes() + body
        with pytest.raises(ValueError, match="x is damaged: an array has no flags, shape and name"):
            read_mat(content, "x")

    @pytest.mark.parametrize("compressed", [False, True])
    def test_every_truncation_is_told_or_leaves_arrays_out(self, compressed):
        whole = mat(do_compression=compressed)
        for length in range(0, len(whole), 3):
            found = arrays_or_error(whole[:length])
            assert found.startswith("x is ") if isinstance(found, str) else found.keys() < {*SPLITS}

    @settings(deadline=None, max_examples=200)
    @given(edits=st.lists(st.tuples(st.integers(128, 700), st.integers(0, 255)), min_size=1))
    def test_random_damage_never_raises_anything_else(self, edits):
        content = bytearray(mat())
        for place, value in edits:
            content[place % len(content)] = value
        found = arrays_or_error(bytes(content))
        assert isinstance(found, dict) or found.startswith("x is ")


def test_an_archive_that_unpacks_to_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(flowers17, "_MAX_UNPACKED", 10**6)
    path = tmp_path / "17flowers.tgz"
    pack(path, {"zeros": bytes(10**7)})
    assert path.stat().st_size < len(gzip.compress(bytes(10**7))) + 999
    with pytest.raises(ValueError, match=r"17flowers\.tgz unpacks to more than 1000000 bytes"):
        flowers17._pictures(path)
