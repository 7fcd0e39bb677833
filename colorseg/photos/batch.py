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


def convert(
    inputs: Sequence[str | os.PathLike[str]], out: str | Path, endings: Sequence[str], work: Work
) -> list[Outcome]:
    """Run ``work`` on every picture and write what it returns.

    Args:
        inputs: pictures, and folders that are searched for them; a picture of a folder keeps its
            place below it.
        out: folder; made if missing, and not searched where it lies in one of ``inputs``.
        endings: what is added to a picture's name to name the files that are made of it, such as
            ``""`` or ``"-mask.png"``.
        work: from the path to pictures by their ending; the entry "classes" are facts.

    Returns:
        One outcome per picture, in order.

    Raises:
        OSError: the folder cannot be written to.
        ValueError: there is nothing to do; two results would become the same file.
    """
    from tqdm import tqdm

    sources = list(_sources(inputs, Path(out)))
    if not sources:
        raise ValueError(f"there are no pictures in {', '.join(map(str, inputs))}")
    folder = make_folder(out)
    targets = _targets(sources, folder, endings)
    return [
        _outcome(source, paths, work)
        for (source, _), paths in tqdm(
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


def _sources(inputs: Sequence[str | os.PathLike[str]], out: Path) -> Iterator[tuple[Path, Path]]:
    """Each picture and its place below the output folder."""
    for name in inputs:
        path = Path(name)
        if not path.is_dir():
            yield path, Path(path.name)
            continue
        made = out.resolve()
        inside = path.resolve() in made.parents
        for found in sorted(path.rglob("*")):
            if inside and made in found.resolve().parents:  # made by an earlier run
                continue
            if found.suffix.lower() in READ and found.is_file():
                yield found, found.relative_to(path)


def _targets(
    sources: Sequence[tuple[Path, Path]], folder: Path, endings: Sequence[str]
) -> list[dict[str, Path]]:
    """For each picture the files to be made of it, by their endings."""
    targets: list[dict[str, Path]] = []
    makers: dict[Path, Path] = {}
    for source, place in sources:
        paths = {ending: folder / place.with_name(_name(place, ending)) for ending in endings}
        for path in paths.values():
            if path in makers:
                raise ValueError(
                    f"{makers[path]} and {source} would both be written to {path}; rename one, or "
                    "write them to different folders"
                )
            makers[path] = source
        targets.append(paths)
    return targets


def _name(place: Path, ending: str) -> str:
    suffix = place.suffix if place.suffix.lower() in FORMATS else ".png"
    return f"{place.stem}{ending}" + ("" if "." in ending else suffix)


def _outcome(source: Path, paths: dict[str, Path], work: Work) -> Outcome:
    outcome = Outcome(source)
    try:
        results = work(source)
        outcome.facts = results.pop("classes", {})
        for ending, picture in results.items():
            path = paths[ending]
            path.parent.mkdir(parents=True, exist_ok=True)
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
