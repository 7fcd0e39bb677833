"""Archives that are damaged, or made to write, link or fill the memory."""

import gzip
import tarfile

import fake_cifar
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colorseg import data
from colorseg.data import cifar10


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size
    return info


class TestArchives:
    @pytest.mark.parametrize(
        "extra",
        [
            member("../../escape", size=3),
            member("/tmp/escape", size=3),
            member("data_batch_1", tarfile.SYMTYPE, "/etc/passwd"),
            member("data_batch_1", tarfile.LNKTYPE, "../../../etc/passwd"),
            member("data_batch_1", tarfile.DIRTYPE),
            member("data_batch_1", tarfile.FIFOTYPE),
            member("data_batch_1", tarfile.CHRTYPE),
            member("loop", tarfile.SYMTYPE, "loop"),
            member("readme.html", size=10**6),
        ],
    )
    def test_foreign_members_do_nothing(self, tmp_path, extra):
        folder = tmp_path / "deep" / "er"
        folder.mkdir(parents=True)
        path = fake_cifar.write_archive(folder / "x.tar.gz", fake_cifar.all_batches(), [extra])
        train, _ = data.load(path)
        assert np.array_equal(train.images.numpy(), fake_cifar.horses(range(5)))
        assert [p.name for p in tmp_path.rglob("*")] == ["deep", "er", "x.tar.gz"]

    def test_links_do_not_replace_batches(self, tmp_path):
        batches = fake_cifar.all_batches()
        del batches["data_batch_3"]
        link = member("data_batch_3", tarfile.SYMTYPE, str(tmp_path / "elsewhere"))
        (tmp_path / "elsewhere").write_bytes(fake_cifar.all_batches()["data_batch_3"])
        path = fake_cifar.write_archive(tmp_path / "x.tar.gz", batches, [link])
        with pytest.raises(ValueError, match="lacks data_batch_3: colorseg reads CIFAR-10"):
            data.load(path)

    def test_oversized_batch(self, tmp_path):
        path = tmp_path / "x.tar.gz"
        header = member("data_batch_1", size=1 << 40).tobuf()
        path.write_bytes(gzip.compress(header + bytes(10**5)))
        with pytest.raises(ValueError, match="data_batch_1 claims 1099511627776 bytes, too many"):
            data.load(path)

    def test_archive_that_unpacks_to_fill_the_memory(self, tmp_path, monkeypatch):
        monkeypatch.setattr(cifar10, "_MAX_UNPACKED", 10**6)
        bomb = member("pax", tarfile.XHDTYPE, size=10**7).tobuf() + bytes(10**7)
        for content in (bomb, member("x", size=10**7).tobuf() + bytes(10**7)):
            (tmp_path / "x.tar.gz").write_bytes(gzip.compress(content))
            with pytest.raises(ValueError, match=r"x.tar.gz unpacks to more than 1000000 bytes"):
                data.load(tmp_path / "x.tar.gz")

    def test_chain_of_long_names(self, tmp_path):
        name = member("././@LongLink", tarfile.GNUTYPE_LONGNAME, size=5).tobuf() + bytes(512)
        (tmp_path / "x.tar.gz").write_bytes(gzip.compress(name * 5000))
        with pytest.raises(ValueError, match=r"x.tar.gz is cut short or no tar.gz archive"):
            data.load(tmp_path / "x.tar.gz")

    def test_two_batches_of_one_name(self, tmp_path):
        extra = [member("elsewhere/test_batch", size=5)]
        path = fake_cifar.write_archive(tmp_path / "x.tar.gz", fake_cifar.all_batches(), extra)
        with pytest.raises(ValueError, match="two members named test_batch"):
            data.load(path)

    def test_truncations(self, tmp_path):
        path = fake_cifar.write_archive(tmp_path / "x.tar.gz", fake_cifar.all_batches())
        whole = path.read_bytes()
        unpacked = gzip.decompress(whole)
        cuts = [whole[: len(whole) * i // 20] for i in range(20)]
        cuts += [gzip.compress(unpacked[: len(unpacked) * i // 20], 1) for i in range(18)]
        for content in cuts:
            path.write_bytes(content)
            with pytest.raises(ValueError, match=r"x.tar.gz(:| is cut short| lacks)"):
                data.load(path)

    @pytest.mark.parametrize("content", [b"", b"no gzip", gzip.compress(b"no tar" * 200)])
    def test_foreign_files(self, tmp_path, content):
        (tmp_path / "x.tar.gz").write_bytes(content)
        with pytest.raises(ValueError, match=r"x.tar.gz (is cut short or no tar.gz|lacks)"):
            data.load(tmp_path / "x.tar.gz")

    @settings(deadline=None, max_examples=40)
    @given(edits=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1))
    def test_random_damage_never_raises_anything_else(self, tmp_path_factory, edits):
        path = tmp_path_factory.getbasetemp() / "damaged.tar.gz"
        small = {name: content[:900] for name, content in fake_cifar.all_batches().items()}
        content = bytearray(gzip.decompress(fake_cifar.write_archive(path, small).read_bytes()))
        for place, value in edits:
            content[place % len(content)] = value
        path.write_bytes(gzip.compress(content, 1))
        with pytest.raises(ValueError, match=r"damaged.tar.gz"):
            data.load(path)


def test_binary_version(tmp_path):
    for i, name in enumerate(fake_cifar.BATCHES):
        records = np.concatenate(
            [np.array(fake_cifar.LABELS, np.uint8)[:, None], fake_cifar.pixels(i)], axis=1
        )
        (tmp_path / f"{name}.bin").write_bytes(records.tobytes())
    fake_cifar.check_horses(data.load(tmp_path))
    archive = fake_cifar.write_archive(
        tmp_path / "b.tar.gz", {p.name: p.read_bytes() for p in tmp_path.glob("*.bin")}
    )
    fake_cifar.check_horses(data.load(archive))
    broken = tmp_path / "data_batch_2.bin"
    content = broken.read_bytes()
    for damaged, message in (
        (content[:-1], "are no whole number of records of 3073"),
        (b"\x0a" + content[1:], "label 10"),
        (b"", "0 bytes are no whole number"),
    ):
        broken.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"data_batch_2 is no binary .*{message}"):
            data.load(tmp_path)
    broken.unlink()
    with pytest.raises(ValueError, match="lacks data_batch_2: "):
        data.load(tmp_path)
