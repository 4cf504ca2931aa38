"""Text for the terminal, which names, paths and values of others do not steer: every verb prints through `say`,
`say_json` or a `Progress`, and what they print is `printable`."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable

WIDTH = 80
_LINES = "\n\t"
_HARMLESS = _LINES + "\u00a0\u202f\u3000\u200c\u200d"
"""Blanks of other widths, and the joiners that scripts and emoji are written with."""


def printable(text: str, *, keep: str = _HARMLESS) -> str:
    """The text with control characters, ANSI and bidi marks escaped (`\\x1b`), apart from those in `keep`: by default
    line breaks, without which a name within a line is better printed."""
    return _escaped(text, keep, lambda letter: letter.encode("unicode_escape").decode())


def say(text: str, *, err: bool = False) -> None:
    import typer

    typer.echo(printable(text), err=err)


def say_json(text: str) -> None:
    """Print JSON, escaped so that it is still the same JSON."""
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
