"""What a row's life is made of, and its two forms: lines of at most 80 columns, or JSON."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby, zip_longest
from typing import Any, Literal

from alignloop.records import Message, split_candidate_id
from alignloop.terminal import WIDTH, wrapped

Kind = Literal["prompt", "candidate", "preference", "demonstration", "pair", "verdict", "rejected row"]
Outcome = Literal[
    "read", "rejected", "held out", "dropped", "sampled", "scored", "best", "not best", "picked", "not picked", "kept",
    "not drawn", "in batch", "compared", "pair", "no pair", "trained", "not trained",
]  # fmt: skip
_LABEL = 16
_DIGEST = 19
_MOST_LINES = 12
"""Of one text: a life is to be read at a glance."""


@dataclass(frozen=True)
class Step:
    """What a stage made of the row: `stage` is its folder's name (`07_prune`), `text` one sentence, `facts` the same
    for programs."""

    round: int
    stage: str
    verdict: Outcome
    text: str
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CandidateLine:
    """One of a prompt's K candidates. `mark` is what it was taken for (`best` or `picked`, `chosen`, `rejected`;
    several with commas); `asked` whether it is the row that the person asked for."""

    round: int
    id: str
    reward: float | None
    finish_reason: str
    completion: str
    mark: str = ""
    asked: bool = False


@dataclass(frozen=True)
class TwinPair:
    """A row that was dropped for its likeness to another, and that other; `twin_text` is empty where the run's files do
    not hold it."""

    round: int
    stage: str
    id: str
    text: str
    twin: str
    twin_text: str
    cosine: float | None
    reason: str


@dataclass(frozen=True)
class Life:
    """A row and what became of it: `facts` maps a label to what is known of the row itself, `texts` to text, in the
    order to read them."""

    id: str
    kind: Kind
    facts: dict[str, Any]
    messages: tuple[Message, ...] = ()
    texts: dict[str, str] = field(default_factory=dict)
    candidates: tuple[CandidateLine, ...] = ()
    steps: tuple[Step, ...] = ()
    twins: tuple[TwinPair, ...] = ()

    @property
    def trained(self) -> tuple[str, ...]:
        """Where it trained, and as what."""
        return tuple(
            f"round {step.round} {step.stage}{' as ' + step.facts['role'] if 'role' in step.facts else ''}"
            for step in self.steps
            if step.verdict == "trained"
        )


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
            text = str(value)[:_DIGEST] if name == "policy" else str(value)
            lines += wrapped(f"{value:.4g}" if isinstance(value, float) else text, _label(name), " " * _LABEL)
    for message in life.messages:
        lines += _quoted(message.role, message.content)
    for name, text in life.texts.items():
        lines += _quoted(name, text)
    for number, members in groupby(life.candidates, key=lambda line: line.round):
        lines += ["", *_candidate_table(number, list(members))]
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
    by_round = [(number, list(members)) for number, members in groupby(steps, key=lambda step: step.round)]
    alike = groupby(by_round, key=lambda of: [(step.stage, step.verdict, step.text) for step in of[1]])
    groups = [list(members) for _, members in alike]
    return [(_rounds([number for number, _ in group]), group[0][1]) for group in groups]


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


def _quoted(label: str, text: str) -> list[str]:
    """A text under its label, its own line breaks kept; a long one is cut, and says so."""
    lines = _column(text.strip(), WIDTH - _LABEL, break_on_hyphens=False)
    if len(lines) > _MOST_LINES:
        lines = [*lines[:_MOST_LINES], f"... ({len(lines) - _MOST_LINES:,} more lines; --json has all)"]
    return [f"{_label(label) if at == 0 else ' ' * _LABEL}{line}".rstrip() for at, line in enumerate(lines)]


def _column(text: str, width: int, *, break_on_hyphens: bool = True) -> list[str]:
    parts = (textwrap.wrap(part, width, break_on_hyphens=break_on_hyphens) or [""] for part in text.split("\n"))
    return [line for part in parts for line in part]


def _candidate_table(number: int, lines: Sequence[CandidateLine]) -> list[str]:
    """`>` is the row asked for."""
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
