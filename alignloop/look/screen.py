"""Views on the screen: in colour on a terminal, with brackets elsewhere."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import groupby
from typing import NamedTuple

from rich.cells import cell_len, chop_cells
from rich.console import Console
from rich.text import Text

from alignloop.chat.template_defaults import in_yaml
from alignloop.look.rows import FoundRow
from alignloop.look.setting import Setting
from alignloop.look.views import Token, Use, View
from alignloop.terminal import WIDTH, printable

INDENT = "  "
BETWEEN = "·"
NEWLINE = "↵"
UNFINISHED = "…"
"""Shown for a token that is the first part of a character."""
LEGEND: tuple[Use, ...] = ("trained", "masked", "formatting", "reward")
BRACKETS: dict[Use, tuple[str, str]] = {
    "masked": ("", ""),
    "trained": ("[", "]"),
    "formatting": ("{", "}"),
    "reward": ("«", "»"),
}
STYLES: dict[Use, tuple[str, str]] = {
    "masked": ("white on grey23", "white on grey35"),
    "trained": ("black on green3", "black on pale_green3"),
    "formatting": ("black on gold3", "black on khaki1"),
    "reward": ("bold white on magenta", "bold white on magenta"),
}
"""Two shades each, token by token, so that their bounds are seen."""


class _Chunk(NamedTuple):
    """What of a token stands in one line."""

    text: str
    use: Use
    shade: int

    @property
    def styled(self) -> tuple[str, str]:
        return self.text, STYLES[self.use][self.shade]


def print_views(
    found: FoundRow, views: Sequence[View], *, setting: Setting, ids: bool, console: Console | None = None
) -> None:
    """Print a row under its objectives; with `ids` also a table of every token. A console of None is the terminal, or
    plain lines of 80 columns where there is none."""
    console = console or Console(width=None if Console().is_terminal else WIDTH, highlight=False)
    colour = console.is_terminal and not console.no_color and not console.is_dumb_terminal
    for label, value in (
        ("row", f"{found.file}:{found.line}"),
        ("", f"{found.kind}, id {found.row.id}"),
        ("base", setting.base),
        *([("template", in_yaml(kwargs))] if (kwargs := setting.chat.template_kwargs) else []),
        *(("note", note) for note in setting.notes),
    ):
        _say(console, label, value)
    used = {token.use for view in views for part in view.parts for token in part.tokens}
    _print(console, *_legend(used, colour=colour))
    for view in views:
        console.print()
        _say(console, view.objective, view.about)
        if view.dropped is not None:
            _say(console, "", f"LEFT OUT of training: {view.dropped}")
        for part in view.parts:
            _say(console, f"  {part.name}", part.facts, width=13)
            for chunks in _lines(part.tokens, width=console.width, colour=colour):
                _print(console, INDENT, *([chunk.styled for chunk in chunks] if colour else [_bracketed(chunks)]))
        if ids:
            _print_table(console, view.layout, colour=colour)


def _print(console: Console, *parts: str | tuple[str, str]) -> None:
    console.print(Text.assemble(*parts), no_wrap=True, overflow="ignore", crop=False)


def _say(console: Console, label: str, value: str, *, width: int = 9) -> None:
    """A label and words, wrapped under each other; paths and ids stay whole."""
    most = max(20, console.width - width)
    lines = [""]
    for word in _visible(value).split(" "):
        fits = cell_len(lines[-1]) + cell_len(word) + 1 <= most
        lines = [*lines[:-1], f"{lines[-1]} {word}".lstrip()] if fits or not lines[-1] else [*lines, word]
    for number, line in enumerate(lines):
        _print(console, f"{label if number == 0 else '':<{width}}{line}")


def _legend(used: Collection[Use], *, colour: bool) -> list[str | tuple[str, str]]:
    parts: list[str | tuple[str, str]] = ["marks    "]
    for use in LEGEND:
        if use in used:
            parts += [_Chunk(use, use, 0).styled if colour else _in_brackets(use, use), "  "]
    tokens = "shades: tokens" if colour else f"{BETWEEN} between tokens"
    return [*parts, f"{tokens}  {NEWLINE} newline"]


def _lines(tokens: Sequence[Token], *, width: int, colour: bool) -> list[list[_Chunk]]:
    """Tokens in lines of at most `width` cells, broken between tokens, after newlines, and within long tokens."""
    lines: list[list[_Chunk]] = [[]]
    most = width - cell_len(INDENT) - (0 if colour else 2)
    for number, token in enumerate(tokens):
        for text in chop_cells(_token_text(token), max(1, most - 2)):
            shown = "".join(chunk.text for chunk in lines[-1]) if colour else _bracketed(lines[-1])
            if lines[-1] and cell_len(shown) + cell_len(text) + (0 if colour else 3) > most:
                lines.append([])
            lines[-1].append(_Chunk(text, token.use, number % 2))
        if token.text.endswith("\n"):
            lines.append([])
    return [line for line in lines if line]


def _bracketed(chunks: Sequence[_Chunk]) -> str:
    """Runs of one use in their brackets, with a mark between tokens."""
    text, before = "", ""
    for number, (use, members) in enumerate(groupby(chunks, key=lambda chunk: chunk.use)):
        # Brackets part two runs; beside a masked one, which has none, a mark does.
        text += BETWEEN if number and "masked" in (use, before) else ""
        text += _in_brackets(BETWEEN.join(chunk.text for chunk in members), use)
        before = use
    return text


def _in_brackets(text: str, use: Use) -> str:
    opening, closing = BRACKETS[use]
    return f"{opening}{text}{closing}"


def _print_table(console: Console, layout: Sequence[tuple[str, Token]], *, colour: bool) -> None:
    _print(console, f"{INDENT}{'index':>6}{'id':>8}{'position':>10}{'segment':>9}  {'what':<22}token")
    for name, token in layout:
        what = f"{name}, {'copy' if token.is_copy else token.use}"
        head = f"{INDENT}{token.index:>6}{token.token_id:>8}{token.position:>10}{token.segment:>9}  {what:<22}"
        text = chop_cells(_token_text(token), max(4, console.width - cell_len(head)))[0]
        _print(console, head, _Chunk(text, token.use, token.index % 2).styled if colour else text)


def _token_text(token: Token) -> str:
    return _visible(token.text) if token.text else UNFINISHED


def _visible(text: str) -> str:
    """Newlines as `↵`, tabs as `⇥`, what would steer the terminal as its escape."""
    text = text.replace("\r\n", f"\\r{NEWLINE}").replace("\n", NEWLINE).replace("\t", "⇥")
    return printable(text, keep="")
