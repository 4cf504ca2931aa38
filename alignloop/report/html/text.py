"""Text of models and people as HTML: nothing in it acts, nothing in it hides.

Markup is escaped; characters that are not seen or turn the reading order are shown by their code points.
"""

from __future__ import annotations

import re
from html import escape

_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters but tab and line feed
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200e\u200f"  # soft hyphen, marks of direction, fillers
    "\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff0-\ufffb"  # embedding, override and isolation of direction
    "\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff"  # halves of pairs and what is no character
    "\U000e0000-\U000e0fff]"  # tags: letters that no screen shows
)
"""Zero-width joiners stay: scripts and emoji are written with them."""
CUT = "…"


def visible(text: str) -> str:
    """The text with every character that is not seen as `⟦U+202E⟧`; not escaped."""
    return _UNSEEN.sub(lambda found: f"⟦U+{ord(found[0]):04X}⟧", text)


def html(text: object) -> str:
    """Any text, ready for an element or a quoted attribute."""
    return escape(visible(str(text)), quote=True)


def marked(text: str) -> str:
    """As `html`, with the code points set apart from what was written; for elements alone."""
    return re.sub(r"⟦U\+[0-9A-F]{4,6}⟧", lambda found: f"<i>{found[0]}</i>", html(text))


def cut(text: str, *, num_characters: int) -> str:
    """The beginning of a long text, and how much is left out."""
    if len(text) <= num_characters:
        return text
    return f"{text[:num_characters]}{CUT} [{len(text) - num_characters:,} more characters]"
