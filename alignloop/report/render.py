"""Content as HTML, by the templates beside this module: nothing in a text acts, nothing in it hides.

Markup is escaped; characters that are not seen or turn the reading order are shown by their code points.
"""

from __future__ import annotations

import base64
import hashlib
import re
from datetime import UTC, datetime
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from alignloop.report.content import Page
from alignloop.report.plots.theme import STYLE

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


def render(page: Page) -> str:
    """A whole page: style and script inside it, and a policy that forbids every request."""
    environment = _environment()
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    script = environment.get_template("search.js").render()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    template = environment.get_template("page.html.jinja")
    return template.render(page=page, chart_style=Markup(STYLE), script_digest=digest, made=made)


def bytes_left(page: Page) -> int:
    """What may be added to a page."""
    return max(0, MOST_BYTES - len(render(page).encode()))


def render_part(template: str, **values: Any) -> Markup:
    """A piece of a page by its own template."""
    return Markup(_environment().get_template(template).render(values))  # escaped by the template


def visible(text: str) -> str:
    """The text with every character that is not seen as `⟦U+202E⟧`; not escaped."""
    return _UNSEEN.sub(lambda found: f"⟦U+{ord(found[0]):04X}⟧", text)


def marked(text: str) -> Markup:
    """As HTML, with the code points set apart from what was written."""
    escaped = str(escape(visible(text)))
    return Markup(re.sub(r"⟦U\+[0-9A-F]{4,6}⟧", lambda found: f"<i>{found[0]}</i>", escaped))


def cut(text: str, *, num_characters: int) -> str:
    """The beginning of a long text, and how much is left out."""
    if len(text) <= num_characters:
        return text
    return f"{text[:num_characters]}… [{len(text) - num_characters:,} more characters]"


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
    environment.filters["marked"] = marked
    return environment
