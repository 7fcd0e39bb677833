"""Many pictures through one function: what fails is reported, the others are done."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from colorseg._files import make_folder
from colorseg.photos.writing import FORMATS, save_picture

READ = (*FORMATS, ".bmp", ".gif", ".ppm", ".pgm")  # suffixes that are looked for in folders
Work = Callable[[Path], dict[str, Any]]


@dataclass
class Outcome:
    """What became of one picture."""

    source: Path
    written: list[Path] = field(default_factory=list)
    facts: dict[str, float] = field(default_factory=dict)
    error: str | None = None

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "input": str(self.source),
            "outputs": [str(path) for path in self.written],
            "error": self.error,
            **({"classes": self.facts} if self.facts else {}),
        }


def convert(inputs: Sequence[str | os.PathLike[str]], out: str | Path, work: Work) -> list[Outcome]:
    """Run ``work`` on every picture and write what it returns.

    Args:
        inputs: pictures, and folders that are searched for them; a picture of a folder keeps its
            place below it.
        out: folder; made if missing.
        work: from the path to pictures by what is added to the file's name, such as ``""`` or
            ``"-mask.png"``; the entry "classes" are facts.

    Returns:
        One outcome per picture, in order.

    Raises:
        OSError: the folder cannot be written to.
        ValueError: there is nothing to do; two pictures would become the same file.
    """
    from tqdm import tqdm

    sources = list(_sources(inputs))
    if not sources:
        raise ValueError(f"there are no pictures in {', '.join(map(str, inputs))}")
    folder = make_folder(out)
    targets = _targets(sources, folder)
    return [
        _outcome(source, target, work)
        for (source, _), target in tqdm(
            list(zip(sources, targets, strict=True)), unit=" pictures", leave=False,
            disable=None if len(sources) > 1 else True,
        )
    ]  # fmt: skip


def side_by_side(*pictures: Image.Image) -> Image.Image:
    """Pictures of one height beside one another."""
    canvas = Image.new("RGB", (sum(p.width for p in pictures), pictures[0].height), "white")
    left = 0
    for picture in pictures:
        canvas.paste(picture.convert("RGB"), (left, 0))
        left += picture.width
    return canvas


def _sources(inputs: Sequence[str | os.PathLike[str]]) -> Iterator[tuple[Path, Path]]:
    """Each picture and its place below the output folder."""
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            found = (p for p in sorted(path.rglob("*")) if p.suffix.lower() in READ)
            yield from ((p, p.relative_to(path)) for p in found if p.is_file())
        else:
            yield path, Path(path.name)


def _targets(sources: Sequence[tuple[Path, Path]], folder: Path) -> list[Path]:
    targets: dict[Path, Path] = {}
    for source, place in sources:
        target = folder / place
        if target.suffix.lower() not in FORMATS:
            target = target.with_suffix(".png")
        if target in targets:
            raise ValueError(
                f"{targets[target]} and {source} would both be written to {target}; rename one, or "
                "write them to different folders"
            )
        targets[target] = source
    return list(targets)


def _outcome(source: Path, target: Path, work: Work) -> Outcome:
    outcome = Outcome(source)
    try:
        results = work(source)
        outcome.facts = results.pop("classes", {})
        target.parent.mkdir(parents=True, exist_ok=True)
        for ending, picture in results.items():
            suffix = "" if "." in ending else target.suffix
            path = target.with_name(f"{target.stem}{ending}{suffix}")
            if path.exists() and source.exists() and path.samefile(source):
                raise ValueError(f"{path} would overwrite the picture; choose another folder")
            save_picture(picture, path)
            outcome.written.append(path)
    except FileNotFoundError:
        outcome.error = f"there is no picture {source}"
    except (OSError, TypeError, ValueError, MemoryError) as error:
        said = str(error) or f"{source} needs more memory than there is"
        outcome.error = said if str(source) in said else f"{source}: {said}"
    return outcome
