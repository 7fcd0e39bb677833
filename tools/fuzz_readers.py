"""Damage small valid files and read them: each gives a result, or an error that its reader names.

    python tools/fuzz_readers.py --inputs 100000 --seed 0 [--reader NAME]

Flips, cuts, copies and splices bytes, and writes lengths that lie.  Another exception, or more than
--seconds or --megabytes for one input, is a finding: the input is kept in --out, and the exit code
is 1.
"""

import argparse
import io
import json
import random
import resource
import sys
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from colorseg.data import safe_pickle
from colorseg.data.archive import read_members
from colorseg.data.matfile import read_mat
from colorseg.data.npz import read_npz
from colorseg.models import UNet, load_network
from colorseg.models.weights import save_weights
from colorseg.palette import Palette
from colorseg.photos import read_photo
from colorseg.training import Config, checkpoint

Reader = Callable[[bytes], object]
NASTY = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1)


def mutated(content: bytes, other: bytes, choose: random.Random) -> bytes:
    """One to four changes."""
    data = bytearray(content)
    for _ in range(choose.choice((1, 1, 1, 2, 4))):
        kind, size = choose.randrange(6), max(1, len(data))
        at = choose.randrange(size)
        length = min(size - at, 1 << choose.randrange(8))
        if kind == 0 and data:
            data[at] ^= 1 << choose.randrange(8)
        elif kind == 1:
            width = choose.choice((1, 2, 4, 8))
            value = choose.choice(NASTY) % 256**width
            data[at : at + width] = value.to_bytes(width, choose.choice(("little", "big")))
        elif kind == 2:
            del data[at : at + length]
        elif kind == 3:
            data[at:at] = data[at : at + length] * choose.choice((1, 2, 50))
        elif kind == 4:
            del data[at:]
        else:
            start = choose.randrange(max(1, len(other)))
            data[at : at + length] = other[start : start + length]
    return bytes(data)


def image(kind: str, mode: str = "RGB") -> bytes:
    """A small picture as a file."""
    content = io.BytesIO()
    Image.effect_mandelbrot((12, 9), (-2, -1, 1, 1), 20).convert(mode).save(content, kind)
    return content.getvalue()


def archive() -> bytes:
    """A tar.gz with names that lead elsewhere."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        for name in ("a/data_batch_1", "../b", "/c"):
            info = tarfile.TarInfo(name)
            info.size = 20
            tar.addfile(info, io.BytesIO(bytes(20)))
    return content.getvalue()


def mat() -> bytes:
    """A MATLAB file, compressed."""
    from scipy.io import savemat

    content = io.BytesIO()
    savemat(content, {"a": np.arange(6.0), "b": np.eye(3)}, do_compression=True)
    return content.getvalue()


def written(folder: Path, name: str, write: Callable[[Path], object]) -> bytes:
    """The file that ``write`` writes."""
    write(folder / name)
    return (folder / name).read_bytes()


def readers(folder: Path) -> dict[str, tuple[list[bytes], Reader]]:
    """Valid files of each kind, and what reads them."""
    import pickle

    def from_file(name: str, read: Callable[[Path], object]) -> Reader:
        def reader(content: bytes) -> object:
            path = folder / name
            path.write_bytes(content)
            return read(path)

        return reader

    npz = io.BytesIO()
    np.savez_compressed(npz, **{k: np.zeros((2, 4, 4, 3), np.uint8) for k in ("train", "test")})
    batch = {b"data": np.zeros((2, 12), np.uint8), b"labels": [0, 1]}
    model, palette = UNet(num_filters=2, num_colors=3), Palette.horse24()
    few = Palette(palette.colors[:3], "few")
    optimizer = torch.optim.SGD(torch.nn.Linear(1, 1).parameters(), 0.1)
    (folder / "best.safetensors").touch()
    saved = written(
        folder, "saved.pt",
        lambda p: checkpoint.save_checkpoint(
            p, torch.nn.Linear(1, 1), optimizer, checkpoint.History(), {}
        ),
    )  # fmt: skip

    def restore(path: Path) -> object:
        linear = torch.nn.Linear(1, 1)
        sgd = torch.optim.SGD(linear.parameters(), 0.1)
        state = checkpoint.read_checkpoint(path, {})
        return checkpoint.restore_checkpoint(state, path, linear, sgd, tuple)

    weights = written(folder, "w.safetensors", lambda p: save_weights(model, p, few))
    colors = io.BytesIO()
    np.save(colors, palette.colors.numpy())
    settings = b'epochs = 3\nlr = 1e-3\nclasses = ["horse", 7]\nflips = true\nout = "runs/x"\n'
    return {
        "pickle": (
            [pickle.dumps(batch, protocol) for protocol in (2, 3, 4)],
            lambda content: safe_pickle.loads(content, "x"),
        ),
        "archive": (
            [archive()],
            from_file("x.tar.gz", lambda p: read_members(p, lambda name: True, 1 << 20, 1 << 22)),
        ),
        "npz": ([npz.getvalue()], from_file("x.npz", read_npz)),
        "mat": ([mat()], lambda content: read_mat(content, "x")),
        "palette.json": (
            [written(folder, "p.json", few.save)], from_file("x.json", Palette.load),
        ),
        "palette.npy": ([colors.getvalue()], from_file("x.npy", Palette.load)),
        "weights": ([weights], from_file("x.safetensors", load_network)),
        "checkpoint": ([saved], from_file("x.pt", restore)),
        "settings": ([settings], from_file("x.toml", Config.from_toml)),
        "photo": (
            [image(k, m) for k, m in (
                ("PNG", "RGB"), ("PNG", "LA"), ("JPEG", "RGB"), ("WEBP", "RGB"), ("TIFF", "RGB"),
                ("GIF", "P"), ("BMP", "RGB"),
            )],
            from_file("x.img", lambda p: read_photo(p, 1_000_000)),
        ),
    }  # fmt: skip


def finding(read: Reader, content: bytes, limits: argparse.Namespace) -> str | None:
    """What is wrong with how the reader took the input; None if nothing is."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        read(content)
    except (ValueError, OSError):
        pass  # a sentence for the user; what it says is for the tests
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    took = time.perf_counter() - start
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    if took > limits.seconds:
        return f"it took {took:.1f} s"
    return f"it took {grown:.0f} MB" if grown > limits.megabytes else None


def main() -> int:
    """0 without findings."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    add = parser.add_argument
    add("--inputs", type=int, default=10_000, help="for each reader")
    add("--seed", type=int, default=0)
    add("--reader", help="this one alone")
    add("--seconds", type=float, default=5, help="that one input may take")
    add("--megabytes", type=float, default=300, help="of memory that one input may take")
    add("--out", type=Path, default=Path("fuzz-findings"), help="where findings are kept")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found: dict[str, int] = {}
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as tmp:
        for name, (seeds, read) in readers(Path(tmp)).items():
            if args.reader not in (None, name):
                continue
            choose, start = random.Random(f"{args.seed} {name}"), time.monotonic()
            for seed in seeds:
                read(seed)  # valid
            for _ in range(args.inputs):
                content = mutated(choose.choice(seeds), choose.choice(seeds), choose)
                problem = finding(read, content, args)
                if problem is None:
                    continue
                found[name] = found.get(name, 0) + 1
                args.out.mkdir(exist_ok=True)
                (args.out / f"{name}-{found[name]}").write_bytes(content)
                print(f"{name}: {problem}", file=sys.stderr)
            row = {"reader": name, "inputs": args.inputs, "findings": found.get(name, 0)}
            print(json.dumps(row | {"seconds": round(time.monotonic() - start, 1)}), flush=True)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
