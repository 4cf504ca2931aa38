"""Pieces of the page: tables, figures, notes. What goes in is plain text and is escaped here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alignloop.report.html.text import html
from alignloop.report.plots.drawing import draw

MISSING = "-"


@dataclass(frozen=True)
class Cell:
    """What a table shows, and the whole number behind it, which the page carries as `data-value`."""

    text: str
    value: float | None = None


@dataclass(frozen=True)
class Table:
    """Columns of cells under their heads; the first column names the row."""

    heads: tuple[str, ...]
    rows: tuple[tuple[str | Cell, ...], ...]


def percent(value: float | None, *, digits: int = 1) -> Cell:
    """A share in percent, without the sign."""
    return Cell(MISSING) if value is None else Cell(f"{100 * value:.{digits}f}", value)


def number(value: float | None, *, digits: int = 3) -> Cell:
    """A number with a fixed number of decimals."""
    return Cell(MISSING) if value is None else Cell(f"{value:,.{digits}f}", value)


def count(value: float | None) -> Cell:
    """A whole number."""
    return Cell(MISSING) if value is None else Cell(f"{value:,.0f}", value)


def with_error(value: float | None, stderr: float | None, *, scale: float = 100.0, digits: int = 1) -> Cell:
    """A value and its standard error."""
    if value is None:
        return Cell(MISSING)
    error = "" if stderr is None else f" ± {scale * stderr:.{digits}f}"
    return Cell(f"{scale * value:.{digits}f}{error}", value)


def table(found: Table, *, caption: str = "", name: str = "") -> str:
    """A table that scrolls by itself where it is wider than the screen.

    Args:
        name: found in the page as `data-table`.
    """
    head = "".join(f'<th scope="col">{html(cell)}</th>' for cell in found.heads)
    body = "".join(f"<tr>{_cells(row)}</tr>" for row in found.rows)
    about = f"<caption>{html(caption)}</caption>" if caption else ""
    mark = f' data-table="{html(name)}"' if name else ""
    return (
        f'<div class="scroll" tabindex="0"><table{mark}>{about}<thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def figure(title: str, spec: Mapping[str, Any], *, numbers: Table, note: str = "", name: str = "") -> str:
    """A chart under its title, and its numbers as a table that opens."""
    svg = draw(spec, alt=f"{title}. {in_words(numbers)}")
    about = f'<p class="note">{html(note)}</p>' if note else ""
    return (
        f'<figure class="chart"><figcaption>{html(title)}</figcaption>{svg}{about}'
        f"<details><summary>Numbers</summary>{table(numbers, name=name)}</details></figure>"
    )


def in_words(found: Table, *, num_characters: int = 900) -> str:
    """A table as text for those who do not see the chart."""
    lines = []
    for row in found.rows:
        first, *rest = [cell.text if isinstance(cell, Cell) else cell for cell in row]
        values = ", ".join(f"{head} {cell}" for head, cell in zip(found.heads[1:], rest, strict=True))
        lines.append(f"{found.heads[0]} {first}: {values}")
    text = "; ".join(lines)
    return text if len(text) <= num_characters else f"{text[:num_characters]}… (all in the table)"


def paragraph(text: str, *, kind: str = "") -> str:
    """A paragraph of plain text."""
    return f'<p class="{kind}">{html(text)}</p>' if kind else f"<p>{html(text)}</p>"


def bullets(lines: Iterable[str], *, kind: str = "") -> str:
    """A list of plain texts; nothing where there are none."""
    items = "".join(f"<li>{html(line)}</li>" for line in lines)
    return f'<ul class="{kind}">{items}</ul>' if items else ""


def section(title: str, parts: Sequence[str], *, name: str) -> str:
    """A section of the page; nothing where it has no parts."""
    body = "\n".join(part for part in parts if part)
    return f'<section id="{name}"><h2>{html(title)}</h2>\n{body}\n</section>' if body else ""


def grid(figures: Iterable[str]) -> str:
    """Figures side by side, as many as the screen is wide."""
    found = [figure for figure in figures if figure]
    return f'<div class="grid">{"".join(found)}</div>' if found else ""


def details(summary: str, body: str, *, is_open: bool = False) -> str:
    """A part that opens; `body` is HTML."""
    return f"<details{' open' if is_open else ''}><summary>{html(summary)}</summary>{body}</details>"


def _cells(row: Sequence[str | Cell]) -> str:
    parts = []
    for index, cell in enumerate(row):
        if index == 0:
            parts.append(f'<th scope="row">{html(cell.text if isinstance(cell, Cell) else cell)}</th>')
        elif isinstance(cell, Cell) and cell.value is not None:
            parts.append(f'<td data-value="{cell.value!r}">{html(cell.text)}</td>')
        else:
            parts.append(f"<td>{html(cell.text if isinstance(cell, Cell) else cell)}</td>")
    return "".join(parts)
