"""A report as data: sections of text, tables and pictures, and the pages made of them."""

import base64
import csv
import html
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from colorseg._files import write_atomically

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0 }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #ddd; text-align: right }
th:first-child, td:first-child { text-align: left }
img { max-width: 100% }
figcaption, .note { color: #555; font-size: .9rem }
figure { margin: 1rem 0 }
.scroll { overflow-x: auto }
"""  # noqa: E501


@dataclass(frozen=True)
class Table:
    """A heading and rows of text."""

    name: str  # of the CSV file
    heading: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """A PNG file of the report's folder."""

    path: Path
    caption: str


@dataclass
class Section:
    """A part of the report: items are paragraphs, tables and pictures in their order."""

    title: str
    items: list[str | Table | Picture] = field(default_factory=list)


def save_pages(title: str, sections: Sequence[Section], folder: Path) -> None:
    """Write ``index.html``, which needs no other file, ``report.md`` and ``tables/*.csv``."""
    for section in sections:
        for item in section.items:
            if isinstance(item, Table):
                _save_csv(item, folder / "tables" / f"{item.name}.csv")
    write_atomically(folder / "report.md", "\n".join(_markdown(title, sections, folder)).encode())
    write_atomically(folder / "index.html", "\n".join(_html(title, sections)).encode())


def _save_csv(table: Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([table.heading, *table.rows])
    write_atomically(path, text.getvalue().encode())


def _markdown(title: str, sections: Sequence[Section], folder: Path) -> Iterator[str]:
    yield f"# {title}\n"
    for section in sections:
        yield f"## {section.title}\n"
        for item in section.items:
            if isinstance(item, Table):
                lines = [item.heading, ["---"] * len(item.heading), *item.rows]
                yield from (f"| {' | '.join(line)} |" for line in lines)
                yield ""
            elif isinstance(item, Picture):
                yield f"![{item.caption}]({item.path.relative_to(folder).as_posix()})\n"
            else:
                yield f"{item}\n"


def _html(title: str, sections: Sequence[Section]) -> Iterator[str]:
    yield "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
    yield f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>"
    yield f"<h1>{html.escape(title)}</h1>"
    for section in sections:
        yield f"<h2>{html.escape(section.title)}</h2>"
        for item in section.items:
            if isinstance(item, Table):
                yield "<div class='scroll'><table>"
                yield _row("th", item.heading)
                yield from (_row("td", row) for row in item.rows)
                yield "</table></div>"
            elif isinstance(item, Picture):
                image = base64.b64encode(item.path.read_bytes()).decode()
                caption = html.escape(item.caption)
                yield f"<figure><img alt='{caption}' src='data:image/png;base64,{image}'>"
                yield f"<figcaption>{caption}</figcaption></figure>"
            else:
                yield f"<p>{html.escape(item)}</p>"
    yield "</body></html>"


def _row(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"
