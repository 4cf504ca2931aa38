"""A row's life: every step a run's files tell of it, in order; as lines of at most 80 columns, or as JSON."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby, zip_longest
from pathlib import Path
from typing import Any

from alignloop.look.candidate_life import candidate_life
from alignloop.look.find import RowKey, find
from alignloop.look.life import CandidateLine, Life, Step, TwinPair
from alignloop.look.preference_life import preference_life, verdict_life
from alignloop.look.prompt_life import pair_life, prompt_life
from alignloop.records import Source, split_candidate_id
from alignloop.run_dir.layout import stage_folder
from alignloop.run_dir.reader import RunReader
from alignloop.terminal import WIDTH, wrapped

_LABEL = 16
_DIGEST = 19
_MOST_LINES = 12
"""Of one text: a life is to be read at a glance."""
_TELL = {
    "prompt": prompt_life,
    "candidate": candidate_life,
    "pair": pair_life,
    "preference": preference_life,
    "verdict": verdict_life,
}


def lives_of(row_id: str, run_dir: Path) -> list[Life]:
    """The life of the row that `row_id` names; several where one id or one line stands for several rows.

    Args:
        row_id: id of a prompt, candidate, preference, pair or verdict, or the beginning of one that no other has; or
            FILE:LINE of an input file.

    Raises:
        UserError: no such row, or several begin so; no run lies in `run_dir`.
    """
    run = RunReader(run_dir)
    return [_life(found, run) for found in find(row_id, run)]


def _life(found: RowKey, run: RunReader) -> Life:
    row = found.rejected
    if row is None:
        return _TELL[found.kind](found.id, run)
    where = f"field {row.field}: " if row.field else ""
    facts = {"field": row.field, "reason": row.reason}
    step = Step(0, stage_folder(1, "ingest"), "rejected", f"{where}{row.reason}", facts)
    source = str(Source(file=row.file, line=row.line))
    texts = {"as found": row.text} if row.text else {}
    return Life(found.id, "rejected row", {"source": source}, texts=texts, steps=(step,))


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
    lines = wrapped(f"{life.kind} {life.id}")
    for name, value in life.facts.items():
        if value not in (None, ""):
            lines += wrapped(_fact(name, value), _label(name), " " * _LABEL)
    for message in life.messages:
        lines += _quoted(message.role, message.content)
    for name, text in life.texts.items():
        lines += _quoted(name, text)
    for number, members in groupby(life.candidates, key=lambda line: line.round):
        lines += ["", *_candidate_lines(number, list(members))]
    for rounds, steps in _alike(life.steps):
        lines += ["", rounds]
        for step in steps:
            lines += wrapped(step.text, f"  {step.stage:<16} {step.verdict:<11} ", " " * 31)
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
    lines = (wrapped(f"{what}, {_rounds(of)}", "trained in    ", " " * 14) for what, of in rounds.items())
    return [line for part in lines for line in part]


def _alike(steps: Sequence[Step]) -> list[tuple[str, list[Step]]]:
    """(`round 2` or `rounds 3 to 6`, steps): neighbouring rounds that made the same of the row go together."""
    alike: list[tuple[list[int], list[Step]]] = []
    words: list[tuple[str, ...]] = []
    for number, members in groupby(steps, key=lambda step: step.round):
        before, found = words, list(members)
        words = [(step.stage, step.verdict, step.text) for step in found]
        if words == before:
            alike[-1][0].append(number)
        else:
            alike.append(([number], found))
    return [(_rounds(numbers), found) for numbers, found in alike]


def _rounds(numbers: Sequence[int]) -> str:
    """`round 2`, `rounds 3 to 6`, `rounds 1, 4 to 6`."""
    spans: list[list[int]] = []
    for number in sorted(set(numbers)):
        if spans and number == spans[-1][-1] + 1:
            spans[-1].append(number)
        else:
            spans.append([number])
    ranges = ", ".join(f"{span[0]} to {span[-1]}" if len(span) > 1 else str(span[0]) for span in spans)
    return f"round{'s' if len(numbers) > 1 else ''} {ranges}"


def _label(name: str) -> str:
    return f"  {name:<{_LABEL - 3}} "


def _fact(name: str, value: Any) -> str:
    if name == "policy":
        return str(value)[:_DIGEST]
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _quoted(label: str, text: str) -> list[str]:
    """A text under its label, its own line breaks kept; a long one is cut, and says so."""
    lines = _column(text.strip(), WIDTH - _LABEL, break_on_hyphens=False)
    if len(lines) > _MOST_LINES:
        lines = [*lines[:_MOST_LINES], f"... ({len(lines) - _MOST_LINES:,} more lines; --json has all)"]
    return [f"{_label(label) if at == 0 else ' ' * _LABEL}{line}".rstrip() for at, line in enumerate(lines)]


def _column(text: str, width: int, *, break_on_hyphens: bool = True) -> list[str]:
    parts = (textwrap.wrap(part, width, break_on_hyphens=break_on_hyphens) or [""] for part in text.split("\n"))
    return [line for part in parts for line in part]


def _candidate_lines(number: int, lines: list[CandidateLine]) -> list[str]:
    """A table; `>` is the row asked for."""
    ranked = sorted(lines, key=lambda line: (line.reward is None, -(line.reward or 0.0)))
    width = WIDTH - 41
    table = [f"round {number}, the {len(lines)} candidates", f"     {'k':>3} {'reward':>9}  {'ends':<8}{'':<14}text"]
    for line in ranked:
        reward = "-" if line.reward is None else f"{line.reward:.4f}"
        ends = {"stop": "itself", "length": "cut off"}.get(line.finish_reason, line.finish_reason)
        text = " ".join(line.completion.split())
        text = text if len(text) <= width else text[: width - 3] + "..."
        k = split_candidate_id(line.id)[1]
        table.append(f"   {'>' if line.asked else ' '} {k:>3} {reward:>9}  {ends:<8}{line.mark:<14}{text}".rstrip())
    return table


def _twin_lines(twin: TwinPair) -> list[str]:
    """The two texts side by side."""
    cosine = "" if twin.cosine is None else f", cosine {twin.cosine:.4f}"
    lines = wrapped(f"round {twin.round} {twin.stage}: lost to {twin.twin}{cosine}")
    if not twin.twin_text:
        return [*lines, "  (the text of that one is not in the run's files)"]
    half = (WIDTH - 3) // 2
    lines += [f"{'dropped':<{half}} | kept or seen before it", f"{'-' * half}-+-{'-' * half}"]
    columns = [_column(text, half) for text in (twin.text, twin.twin_text)]
    cut = [column if len(column) <= _MOST_LINES else [*column[:_MOST_LINES], "..."] for column in columns]
    return lines + [f"{one:<{half}} | {other}".rstrip() for one, other in zip_longest(*cut, fillvalue="")]
