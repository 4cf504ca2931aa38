"""Text on its way to the terminal: names, paths and values of others do not steer it.

Every verb prints through `say`, `say_json` or a `Progress`; what they print is `printable`.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable

WIDTH = 80
_LINES = "\n\t"
_HARMLESS = _LINES + "\u00a0\u202f\u3000\u200c\u200d"
"""Blanks of other widths, and the joiners that scripts and emoji are written with."""


def printable(text: str, *, keep: str = _HARMLESS) -> str:
    """The text with what steers a terminal or is not seen (control characters, ANSI, bidi) as its escape: `\\x1b`.

    Args:
        keep: characters that stay although they are not printable. Line breaks are the caller's own by default; a
            name in the middle of a line is better printed without.
    """
    return _escaped(text, keep, lambda letter: letter.encode("unicode_escape").decode())


def say(text: str, *, err: bool = False) -> None:
    """Print lines, to stderr where `err`."""
    import typer

    typer.echo(printable(text), err=err)


def say_json(text: str) -> None:
    """Print JSON: still the same JSON."""
    import typer

    typer.echo(_escaped(text, _HARMLESS, lambda letter: json.dumps(letter)[1:-1]))


def wrapped(text: str, first: str = "", rest: str = "  ") -> list[str]:
    """Lines of at most `WIDTH` columns behind these indents; words, paths and ids stay whole."""
    return textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )


def _escaped(text: str, keep: str, escape: Callable[[str], str]) -> str:
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() or letter in keep else escape(letter) for letter in text)
