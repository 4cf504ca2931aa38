"""Views on the screen: in colour on a terminal, with brackets elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.cells import cell_len, chop_cells
from rich.console import Console
from rich.text import Text

from alignloop.chat.template_defaults import in_yaml
from alignloop.look.rows import FoundRow
from alignloop.look.setting import Setting
from alignloop.look.views import Token, Use, View
from alignloop.terminal import printable

WIDTH = 80
INDENT = "  "
BETWEEN = "·"
NEWLINE = "↵"
UNFINISHED = "…"
"""Shown for a token that is the first part of a character."""
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
USES: dict[Use, str] = {
    "trained": "trained",
    "masked": "masked",
    "formatting": "formatting",
    "reward": "reward",
}


@dataclass(frozen=True)
class _Span:
    """A stretch of a line: shown text and what it is; `use` None for what is not a token's."""

    text: str
    use: Use | None = None
    shade: int = 0


def print_views(
    found: FoundRow, views: Sequence[View], *, setting: Setting, ids: bool, console: Console | None = None
) -> None:
    """Print a row under its objectives.

    Args:
        ids: also a table of every token: index, id, position, segment, what it is.
        console: where to; None: the terminal, or plain lines of 80 columns where there is none.
    """
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
    _write(console, [[_Span("marks    "), *_legend(used, colour=colour)]], colour=colour)
    for view in views:
        console.print()
        _say(console, view.objective, view.about)
        if view.dropped is not None:
            _say(console, "", f"LEFT OUT of training: {view.dropped}")
        for part in view.parts:
            _say(console, f"  {part.name}", part.facts, width=13)
            _write(console, _token_lines(part.tokens, width=console.width, colour=colour), colour=colour)
        if ids:
            _write(console, _table(view.layout, width=console.width), colour=colour)


def _say(console: Console, label: str, value: str, *, width: int = 9) -> None:
    """A label and words, wrapped under each other; paths and ids stay whole."""
    room = max(20, console.width - width)
    lines = [""]
    for word in _visible(value).split(" "):
        fits = cell_len(lines[-1]) + cell_len(word) + 1 <= room
        lines = [*lines[:-1], f"{lines[-1]} {word}".lstrip()] if fits or not lines[-1] else [*lines, word]
    for number, line in enumerate(lines):
        console.print(
            Text(f"{label if number == 0 else '':<{width}}{line}"), no_wrap=True, overflow="ignore", crop=False
        )


def _legend(used: Iterable[Use], *, colour: bool) -> list[_Span]:
    spans: list[_Span] = []
    for use, words in USES.items():
        if use in used:
            opening, closing = ("", "") if colour else BRACKETS[use]
            spans += [_Span(f"{opening}{words}{closing}", use), _Span("  ")]
    tokens = "shades: tokens" if colour else f"{BETWEEN} between tokens"
    return [*spans, _Span(f"{tokens}  {NEWLINE} newline")]


def _token_lines(tokens: Sequence[Token], *, width: int, colour: bool) -> list[list[_Span]]:
    """Tokens in lines of at most `width` cells, broken between tokens, after newlines, and within long tokens."""
    lines: list[list[_Span]] = []
    line: list[_Span] = []
    room = width - cell_len(INDENT) - (0 if colour else 2)

    def flush() -> None:
        if line:
            lines.append([_Span(INDENT), *(list(line) if colour else _bracketed(line))])
            line.clear()

    for number, token in enumerate(tokens):
        text = _visible(token.text) if token.text else UNFINISHED
        for chunk in chop_cells(text, max(1, room - 2)):
            if line and _cells(line, colour=colour) + cell_len(chunk) + (0 if colour else 3) > room:
                flush()
            line.append(_Span(chunk, token.use, number % 2))
        if token.text.endswith("\n"):
            flush()
    flush()
    return lines


def _cells(line: Sequence[_Span], *, colour: bool) -> int:
    return sum(cell_len(span.text) for span in (line if colour else _bracketed(line)))


def _bracketed(line: Sequence[_Span]) -> list[_Span]:
    """Runs of one use in their brackets, with a mark between tokens."""
    spans: list[_Span] = []
    before: Use | None = None
    for number, span in enumerate(line):
        assert span.use is not None, "only tokens are bracketed"
        if span.use != before:
            spans += [_Span(BRACKETS[before][1] if before else "")]
            spans += [_Span(BETWEEN if number and "masked" in (span.use, before) else "")]
            spans += [_Span(BRACKETS[span.use][0])]
        elif number:
            spans += [_Span(BETWEEN)]
        spans.append(span)
        before = span.use
    return [*spans, _Span(BRACKETS[before][1] if before else "")]


def _table(layout: Sequence[tuple[str, Token]], *, width: int) -> list[list[_Span]]:
    """Every token of the packed row in its order."""
    lines = [[_Span(f"{INDENT}{'index':>6}{'id':>8}{'position':>10}{'segment':>9}  {'what':<22}token")]]
    for name, token in layout:
        text = _visible(token.text) if token.text else UNFINISHED
        what = f"{name}, {'copy' if token.copy else USES[token.use]}"
        head = f"{INDENT}{token.index:>6}{token.token_id:>8}{token.position:>10}{token.segment:>9}  {what:<22}"
        room = max(4, width - cell_len(head))
        lines.append([_Span(head), _Span(chop_cells(text, room)[0], token.use, token.index % 2)])
    return lines


def _write(console: Console, lines: Sequence[Sequence[_Span]], *, colour: bool) -> None:
    for line in lines:
        text = Text()
        for span in line:
            text.append(span.text, STYLES[span.use][span.shade] if colour and span.use else None)
        console.print(text, no_wrap=True, overflow="ignore", crop=False)


def _visible(text: str) -> str:
    """Newlines as `↵`, tabs as `⇥`, what would steer the terminal as its escape."""
    text = text.replace("\r\n", f"\\r{NEWLINE}").replace("\n", NEWLINE).replace("\t", "⇥")
    return printable(text, keep="")
