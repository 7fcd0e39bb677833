"""The CSV files of benchmarks: rows are appended, and later runs compared with them."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

from colorseg.benchmark.case import Case, Result

TOLERANCE = 0.15  # by which a ratio may fall; two quiet runs differ by less than 0.1
Row = dict[str, str]


def append(path: Path, row: dict[str, object]) -> None:
    """Write a row, behind a line of titles if the file is new."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()})


def require_columns(path: Path, columns: Iterable[str]) -> None:
    """Raise ValueError if ``path`` cannot take rows of these columns."""
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"cannot write to {path}: name a file in a folder that exists")
    if path.exists() and path.read_text().split("\n")[0] != ",".join(columns):
        raise ValueError(f"{path} has other columns than this version writes; name a new file")


def read(path: Path, needed: Sequence[str] = ()) -> list[Row]:
    """All rows of a file.

    Raises:
        ValueError: the file cannot be read, or lacks a column that is needed.
    """
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise ValueError(f"cannot read {path}: {reason}") from None
    lacking = [name for name in needed if not rows or rows[0].get(name) is None]
    if lacking:
        raise ValueError(f"{path} is no benchmark's CSV file: it lacks {', '.join(lacking)}")
    return rows


class Baseline:
    """The committed ratios of a file, those of ``threads`` threads; the last row of a case counts.

    Raises:
        ValueError: the file is no benchmark's.
    """

    def __init__(self, path: Path, threads: int) -> None:
        self.path, self.threads = path, threads
        labels = ("op", "name", "shape", "dtype", "direction")
        rows = read(path, [*labels, "threads", "peer", "ratio"])
        try:
            self._rows = {
                " ".join(row[label] for label in labels): (row["peer"], float(row["ratio"]))
                for row in rows
                if int(row["threads"]) == threads
            }
        except (TypeError, ValueError):
            raise ValueError(f"{path} has a row whose threads or ratio is no number") from None

    def lacks(self, case: Case) -> str | None:
        """A line for a case that the file does not have, else None."""
        if str(case) in self._rows:
            return None
        return f"not compared: {self.path} has no {case} with {self.threads} threads"

    def fall(self, result: Result) -> str | None:
        """A line if the ratio fell by more than TOLERANCE, else None.

        Compared is the ratio to the peer that was best then, where it runs now too, so that a
        missing peer hides nothing.
        """
        if str(result.case) not in self._rows:
            return None
        peer, before = self._rows[str(result.case)]
        peer = peer if peer in result.peers else result.best
        now = result.ratio(peer)
        if now >= before * (1 - TOLERANCE):
            return None
        change = f"from {before:.2f} to {now:.2f}, by more than {TOLERANCE:.0%}"
        return f"slower than in {self.path}: {result.case}, ratio to {peer} fell {change}"
