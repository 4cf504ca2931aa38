"""A life as lines of at most 80 columns, or as JSON."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

from alignloop.look.life import CandidateLine, Life, Step, TwinPair

WIDTH = 80
_LABEL = 16
_DIGEST = 19
_MOST_LINES = 12
"""Of one text: a life is to be read at a glance."""


def lives_json(lives: Sequence[Life]) -> str:
    """One object: `rows`, each with what the text tells and more."""
    rows = []
    for life in lives:
        row = asdict(life) | {"trained": list(life.trained)}
        row["messages"] = [message.model_dump() for message in life.messages]
        rows.append(row)
    return json.dumps({"rows": rows}, indent=1, ensure_ascii=False)


def lives_text(lives: Sequence[Life]) -> str:
    """For the screen."""
    return f"\n\n{'=' * WIDTH}\n\n".join("\n".join(_life_lines(life)) for life in lives)


def _life_lines(life: Life) -> list[str]:
    lines = [*_wrapped(f"{life.kind} {life.id}", "", "  ")]
    for name, value in life.facts.items():
        if value not in (None, ""):
            lines += _labelled(name, _fact(name, value))
    for message in life.messages:
        lines += _quoted(message.role, message.content)
    for name, text in life.texts.items():
        lines += _quoted(name, text)
    for number, members in groupby(life.candidates, key=lambda line: line.round):
        lines += ["", *_candidate_lines(number, list(members))]
    for rounds, steps in _alike(life.steps):
        lines += ["", rounds, *(line for step in steps for line in _step_lines(step))]
    for twin in life.twins:
        lines += ["", *_twin_lines(twin)]
    return [*lines, "", *_end(life)]


def _end(life: Life) -> list[str]:
    if life.kind == "rejected row":
        return ["The row could not be read, and is in no round."]
    if not life.steps:
        return ["The run's files tell nothing of it beyond this."]
    if not life.trained:
        return ["Nothing trained on it."]
    rounds: dict[str, list[int]] = {}
    for step in life.steps:
        if step.verdict == "trained":
            role = f" as {step.facts['role']}" if step.facts.get("role") else ""
            rounds.setdefault(step.stage + role, []).append(step.round)
    told = [f"{what}, round{'s' if len(of) > 1 else ''} {_ranges(of)}" for what, of in rounds.items()]
    return [line for text in told for line in _wrapped(text, "trained in    ", " " * 14)]


def _alike(steps: Sequence[Step]) -> list[tuple[str, list[Step]]]:
    """(`round 2` or `rounds 3 to 6`, steps): neighbouring rounds that made the same of the row are told once."""
    told: list[tuple[list[int], list[Step]]] = []
    for number, members in groupby(steps, key=lambda step: step.round):
        found = list(members)
        words = [(step.stage, step.verdict, step.text) for step in found]
        if told and words == [(step.stage, step.verdict, step.text) for step in told[-1][1]]:
            told[-1][0].append(number)
        else:
            told.append(([number], found))
    return [(f"round{'s' if len(of) > 1 else ''} {_ranges(of)}", found) for of, found in told]


def _ranges(numbers: Sequence[int]) -> str:
    """`2`, `3 to 6`, `1, 4 to 6`."""
    spans: list[list[int]] = []
    for number in sorted(set(numbers)):
        if spans and number == spans[-1][-1] + 1:
            spans[-1].append(number)
        else:
            spans.append([number])
    return ", ".join(f"{span[0]} to {span[-1]}" if len(span) > 1 else str(span[0]) for span in spans)


def _fact(name: str, value: Any) -> str:
    if name == "policy":
        return str(value)[:_DIGEST]
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _labelled(label: str, text: str) -> list[str]:
    return _wrapped(text, f"  {label:<{_LABEL - 3}} ", " " * _LABEL)


def _quoted(label: str, text: str) -> list[str]:
    """A text under its label, its own line breaks kept; a long one is cut, and says so."""
    room = WIDTH - _LABEL
    parts = text.strip().split("\n")
    lines = [line for part in parts for line in (textwrap.wrap(part, room, break_on_hyphens=False) or [""])]
    if len(lines) > _MOST_LINES:
        lines = [*lines[:_MOST_LINES], f"... ({len(lines) - _MOST_LINES:,} more lines; --json has all)"]
    first = f"  {label:<{_LABEL - 3}} "
    return [(f"{first if at == 0 else ' ' * _LABEL}{line}").rstrip() for at, line in enumerate(lines)]


def _candidate_lines(number: int, lines: list[CandidateLine]) -> list[str]:
    """A table; `>` is the row asked for."""
    ranked = sorted(lines, key=lambda line: (line.reward is None, -(line.reward or 0.0)))
    room = WIDTH - 41
    table = [f"round {number}, the {len(lines)} candidates", f"     {'k':>3} {'reward':>9}  {'ends':<8}{'':<14}text"]
    for line in ranked:
        reward = "-" if line.reward is None else f"{line.reward:.4f}"
        ends = {"stop": "itself", "length": "cut off"}.get(line.finish_reason, line.finish_reason)
        text = " ".join(line.completion.split())
        text = text if len(text) <= room else text[: room - 3] + "..."
        k = line.id.rpartition("/")[2]
        table.append(f"   {'>' if line.asked else ' '} {k:>3} {reward:>9}  {ends:<8}{line.mark:<14}{text}".rstrip())
    return table


def _step_lines(step: Step) -> list[str]:
    return _wrapped(step.text, f"  {step.stage:<16} {step.verdict:<11} ", " " * 31)


def _twin_lines(twin: TwinPair) -> list[str]:
    """The two texts side by side."""
    cosine = "" if twin.cosine is None else f", cosine {twin.cosine:.4f}"
    lines = _wrapped(f"round {twin.round} {twin.stage}: lost to {twin.twin}{cosine}", "", "  ")
    if not twin.twin_text:
        return [*lines, "  (the text of that one is not in the run's files)"]
    half = (WIDTH - 3) // 2
    left, right = _column(twin.text, half), _column(twin.twin_text, half)
    lines += [f"{'dropped':<{half}} | kept or seen before it", f"{'-' * half}-+-{'-' * half}"]
    for at in range(max(len(left), len(right))):
        one = left[at] if at < len(left) else ""
        other = right[at] if at < len(right) else ""
        lines.append(f"{one:<{half}} | {other}".rstrip())
    return lines


def _column(text: str, width: int) -> list[str]:
    lines = [line for part in text.split("\n") for line in (textwrap.wrap(part, width) or [""])]
    return lines if len(lines) <= _MOST_LINES else [*lines[:_MOST_LINES], "..."]


def _wrapped(text: str, first: str, rest: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )
