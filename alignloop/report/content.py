"""What a page is made of: tables, figures and sections of plain text, which `page.html.jinja` turns into HTML."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Self

from markupsafe import Markup

from alignloop.report.facts import Estimate
from alignloop.report.plots.charts import Spec
from alignloop.report.plots.drawing import draw

MISSING = "-"
MOST_ALT_CHARACTERS = 900


@dataclass(frozen=True)
class Cell:
    """What a table shows, and the whole number behind it, which the page carries as `data-value`."""

    text: str
    value: float | None = None


@dataclass(frozen=True)
class Unit:
    """How a figure is shown.

    Attributes:
        axis: the title of its axis.
        scale: what a value is multiplied with.
        least, most: what the scaled value cannot go beyond.
    """

    axis: str = ""
    scale: float = 1.0
    digits: int = 3
    least: float | None = None
    most: float | None = None

    def cell(self, value: Estimate | float | None) -> Cell:
        """`41.5`, or with its standard error `41.5 ± 3.0`."""
        found = value if isinstance(value, Estimate) or value is None else Estimate(value)
        if found is None:
            return Cell(MISSING)
        error = "" if found.stderr is None else f" ± {self.scale * found.stderr:.{self.digits}f}"
        return Cell(f"{self.scale * found.value:,.{self.digits}f}{error}", found.value)


PERCENT = Unit("%", scale=100.0, digits=1, least=0.0, most=100.0)
POINTS = Unit("points", scale=100.0, digits=1)
COUNT = Unit(digits=0)


@dataclass(frozen=True)
class Table:
    """Columns of cells under their heads; the first column names the row.

    Attributes:
        name: found in the page as `data-table`.
    """

    heads: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    name: str = ""

    @classmethod
    def of(cls, heads: Iterable[str], rows: Iterable[Iterable[object]], *, name: str = "") -> Self:
        cells = (tuple(cell if isinstance(cell, Cell) else Cell(str(cell)) for cell in row) for row in rows)
        return cls(tuple(heads), tuple(cells), name)

    def in_words(self) -> str:
        """For those who do not see the chart."""
        rows = []
        for first, *rest in self.rows:
            values = ", ".join(f"{head} {cell.text}" for head, cell in zip(self.heads[1:], rest, strict=True))
            rows.append(f"{self.heads[0]} {first.text}: {values}")
        text = "; ".join(rows)
        return text if len(text) <= MOST_ALT_CHARACTERS else f"{text[:MOST_ALT_CHARACTERS]}… (all in the table)"


@dataclass(frozen=True)
class Figure:
    """A chart under its title, and its numbers as a table that opens."""

    title: str
    chart: Spec
    numbers: Table
    note: str = ""

    @cached_property
    def svg(self) -> Markup:
        return Markup(draw(self.chart, alt=f"{self.title}. {self.numbers.in_words()}"))  # Vega escapes


@dataclass(frozen=True)
class Details:
    """A part that opens: a table, or text as it stands."""

    summary: str
    table: Table | None = None
    text: str = ""


@dataclass(frozen=True)
class Dialogs:
    """Prompts with their answers, each rendered: as many as the page has room for.

    Attributes:
        num_printed: how many of them stand on paper.
    """

    title: str
    note: str
    articles: tuple[Markup, ...]
    num_printed: int


@dataclass(frozen=True)
class Section:
    """A section of the page, its parts in the order in which they are shown.

    Attributes:
        name: its id.
        label: in the contents.
        figures: side by side, as many as the screen is wide.
    """

    name: str
    label: str
    title: str
    lead: str = ""
    note: str = ""
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    details: tuple[Details, ...] = ()
    remark: str = ""
    warnings: tuple[str, ...] = ()
    dialogs: tuple[Dialogs, ...] = ()

    def __bool__(self) -> bool:
        """Whether it shows anything but words about what it would show."""
        return bool(self.lead or self.tables or self.figures or self.details or self.warnings or self.dialogs)


@dataclass(frozen=True)
class Page:
    """A whole page.

    Attributes:
        sections: those that are empty are not shown.
        kind: found in the page as `data-report`.
        tiles: a value and what it is.
        warnings: what a reader has to look at; `notes`: what could not be read.
    """

    kind: str
    title: str
    heading: str
    sections: tuple[Section, ...]
    state: str = ""
    tiles: tuple[tuple[str, str], ...] = ()
    table: Table | None = None
    sentences: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def present(figures: Iterable[Figure | None]) -> tuple[Figure, ...]:
    """Those that there is something to show of."""
    return tuple(figure for figure in figures if figure is not None)
