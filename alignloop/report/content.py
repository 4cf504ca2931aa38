"""What a page is made of, and its HTML by the templates beside this module.

Nothing in a text acts, nothing in it hides: markup is escaped; characters that are not seen or turn the reading order
are shown by their code points.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, cached_property
from typing import Any, NamedTuple, Self

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from alignloop.report.drawing import STYLE, Spec, draw
from alignloop.report.facts import Number
from alignloop.report.rounds import MISSING

MOST_ALT_CHARACTERS = 900
MOST_BYTES = 4_900_000
"""Of a page with all that is in it."""
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters but tab and line feed
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200e\u200f"  # soft hyphen, marks of direction, fillers
    "\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff0-\ufffb"  # embedding, override and isolation of direction
    "\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff"  # halves of pairs and what is no character
    "\U000e0000-\U000e0fff]"  # tags: letters that no screen shows
)
"""Zero-width joiners stay: scripts and emoji are written with them."""


class Cell(NamedTuple):
    """What a table shows, and the whole number behind it, which the page carries as `data-value`."""

    text: str
    value: float | None = None


class FigureUnit(NamedTuple):
    """How a figure is shown.

    Attributes:
        scale: what a value is multiplied with.
        least, most: what the scaled value cannot go beyond.
    """

    axis: str = ""
    scale: float = 1.0
    digits: int = 3
    least: float | None = None
    most: float | None = None

    def cell(self, value: Number | float | None) -> Cell:
        """`41.5`, or with its standard error `41.5 ± 3.0`."""
        if value is None:
            return Cell(MISSING)
        number = value if isinstance(value, Number) else Number(value)
        error = "" if number.stderr is None else f" ± {self.scale * number.stderr:.{self.digits}f}"
        return Cell(f"{self.scale * number.value:,.{self.digits}f}{error}", number.value)


PERCENT = FigureUnit("%", scale=100.0, digits=1, least=0.0, most=100.0)
COUNT = FigureUnit(digits=0)


@dataclass(frozen=True)
class Table:
    """Columns of cells under their heads; the first column names the row. The page carries `name` as `data-table`."""

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


class Details(NamedTuple):
    """A part that opens: a table, or text as it stands."""

    summary: str
    body: Table | str


class Dialogs(NamedTuple):
    """Prompts with their answers, each rendered: as many as the page has bytes for."""

    title: str
    note: str
    articles: tuple[Markup, ...]


@dataclass(frozen=True)
class PageSection:
    """A section of the page, its parts in the order in which they are shown; `name` is its id, `label` stands in the
    contents."""

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
    """A whole page: the page carries `kind` as `data-report`; empty `sections` are not shown; a tile is a value and
    what it is; `warnings` are what a reader has to look at, `notes` what could not be read."""

    kind: str
    title: str
    heading: str
    sections: tuple[PageSection, ...]
    state: str = ""
    tiles: tuple[tuple[str, str], ...] = ()
    table: Table | None = None
    sentences: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def html(self) -> str:
        """The whole page: style and script inside it, and a policy that forbids every request."""
        environment = _environment()
        script = environment.get_template("search.js").render()
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        template = environment.get_template("page.html.jinja")
        return template.render(page=self, chart_style=Markup(STYLE), script_digest=digest, made=made)

    def bytes_left(self) -> int:
        """What may be added to it."""
        return max(0, MOST_BYTES - len(self.html().encode()))


def rendered_dialog(dialog: object) -> Markup:
    """One prompt with its answers, by itself, so that its size is known."""
    template = _environment().get_template("dialog.html.jinja")
    return Markup(template.render(dialog=dialog))  # escaped by the template


def visible(text: str) -> str:
    """The text with every character that is not seen as `⟦U+202E⟧`; not escaped."""
    return _UNSEEN.sub(lambda found: f"⟦U+{ord(found[0]):04X}⟧", text)


def cut(text: str, *, num_characters: int) -> str:
    """The beginning of a long text, and how much is left out."""
    if len(text) <= num_characters:
        return text
    return f"{text[:num_characters]}… [{len(text) - num_characters:,} more characters]"


def _marked(text: str) -> Markup:
    """As HTML, with the code points set apart from what was written."""
    escaped = str(escape(visible(text)))
    return Markup(re.sub(r"⟦U\+[0-9A-F]{4,6}⟧", lambda found: f"<i>{found[0]}</i>", escaped))


def _shown(value: Any) -> Any:
    """Of whatever a template shows: text without what hides, markup as it is."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("alignloop.report", "templates"),
        autoescape=True,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["marked"] = _marked
    return environment
