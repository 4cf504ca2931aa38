"""What the model of each round answers to the same prompts, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from alignloop.report.html import elements
from alignloop.report.html.climb import evenly
from alignloop.report.html.facts import RoundFacts, RunFacts, json_rows
from alignloop.report.html.text import cut, html, marked

MOST_PROMPTS = 200
MOST_LINES = 200_000
MOST_ROUNDS = 12
PROMPT_CHARACTERS, COMPLETION_CHARACTERS = 1_000, 2_000
BUDGET_BYTES = 2_500_000
SUMMARY_CHARACTERS = 150
PRINTED = 10
"""Prompts a source on paper, as report.css has it."""
ROUNDS = "The same prompts, round by round"
ONE_SCALE = "Rewards are by the run's first reward model: one scale for all its rounds."
OWN_SCALES = "Rewards are by each run's own first reward model: their scales differ between runs."


@dataclass(frozen=True)
class Answer:
    """A completion.

    Attributes:
        passed: None where nothing checks it.
    """

    label: str
    text: str
    passed: bool | None = None
    reward: float | None = None
    truncated: bool = False


@dataclass
class Dialog:
    """A prompt and its answers, one a round (or a run).

    Attributes:
        asks: what the answer is checked for.
        chosen: the better completion of the preference it comes from; empty where it comes from none.
    """

    key: str
    prompt: str
    asks: tuple[str, ...] = ()
    chosen: str = ""
    answers: list[Answer] = field(default_factory=list)


@dataclass(frozen=True)
class Found:
    """Dialogs of one source.

    Attributes:
        where: the files they come from.
        is_cut: there are more prompts than were read.
    """

    title: str
    where: str
    dialogs: tuple[Dialog, ...]
    is_cut: bool
    note: str = ""


def completions(run: RunFacts, *, budget_bytes: int = BUDGET_BYTES) -> str:
    """The section with its search; held-out prompts first, then the benchmarks' own.

    Args:
        budget_bytes: of the page; what does not fit is left out, and said to be.
    """
    rounds = evenly(run.finished or run.rounds, most=MOST_ROUNDS)
    columns = [(entry.label, entry) for entry in rounds]
    note = f"{len(run.finished) - len(rounds)} rounds between are left out." if len(run.finished) > len(rounds) else ""
    return side_by_side(columns, budget_bytes=budget_bytes, note=note)


def side_by_side(
    columns: Sequence[tuple[str, RoundFacts]],
    *,
    budget_bytes: int,
    note: str = "",
    title: str = ROUNDS,
    scale: str = ONE_SCALE,
) -> str:
    """Answers of given rounds, each under its label.

    Args:
        scale: what the rewards of held-out answers are by.
    """
    found = [source for source in (heldout(columns, scale=scale), benchmark(columns)) if source is not None]
    if not found:
        return ""
    parts = [elements.paragraph(note, kind="note") if note else "", SEARCH]
    for index, source in enumerate(found):
        # The first source may leave something over for the second.
        share = budget_bytes if index == len(found) - 1 else budget_bytes * 2 // 3
        articles, num_bytes = _articles(source.dialogs, budget_bytes=share)
        budget_bytes -= num_bytes
        parts.append(_source(source, articles))
    return elements.section(title, parts, name="completions")


SEARCH = (
    '<form class="search" role="search" hidden><label>Search <input type="search" placeholder="in prompts and answers" '
    'autocomplete="off"></label> <label><input type="checkbox" name="changed"> only where the verdict changes</label> '
    '<output aria-live="polite"></output></form>'
)
"""Hidden until the script that serves it runs; without it the whole list is there."""


def heldout(columns: Sequence[tuple[str, RoundFacts]], *, scale: str = ONE_SCALE) -> Found | None:
    """Greedy answers to held-out prompts, from the stage `measure`; None where no round has them."""
    dialogs: dict[str, Dialog] = {}
    stages = [(label, entry.stage("measure")) for label, entry in columns]
    is_cut = False
    for label, stage in stages:
        for row in json_rows(stage, "completions", most=MOST_LINES):
            key = str(row.get("id", ""))
            if key not in dialogs:
                if len(dialogs) == MOST_PROMPTS:
                    is_cut = True
                    continue
                dialogs[key] = Dialog(key, _prompt(row), chosen=str(row.get("chosen") or ""))
            reward = row.get("first_reward")
            dialogs[key].answers.append(
                Answer(
                    label,
                    str(row.get("completion", "")),
                    reward=float(reward) if isinstance(reward, int | float) else None,
                    truncated=row.get("finish_reason") == "length",
                )
            )
    if not dialogs:
        return None
    return Found(
        "Held-out prompts",
        "measure/completions.jsonl of each round",
        tuple(dialogs.values()),
        is_cut,
        note=f"Greedy answers. {scale}",
    )


def benchmark(columns: Sequence[tuple[str, RoundFacts]]) -> Found | None:
    """Answers to a benchmark's questions, from the stage `evaluate`; None where none was generated."""
    dialogs: dict[tuple[str, str, str], Dialog] = {}
    is_cut = False
    for label, entry in columns:
        seen: set[tuple[str, str, str]] = set()
        for row in json_rows(entry.stage("evaluate"), "samples", most=MOST_LINES):
            # With its prompt: runs may have asked other data under the same name.
            key = str(row.get("task", "")), str(row.get("index", 0)), str(row.get("prompt", ""))
            if row.get("response") is None or key in seen:  # a second filter of the same answer
                continue
            if key not in dialogs:
                if len(dialogs) == MOST_PROMPTS:
                    is_cut = True
                    break
                dialogs[key] = Dialog(f"{key[0]} {key[1]}", key[2], _asks(row))
            seen.add(key)
            dialogs[key].answers.append(
                Answer(label, str(row["response"]), _passed(row), truncated=row.get("finish_reason") == "length")
            )
    if not dialogs:
        return None
    return Found("Benchmark prompts", "evaluate/samples.jsonl of each round", tuple(dialogs.values()), is_cut)


def _prompt(row: dict[str, Any]) -> str:
    if isinstance(row.get("prompt"), str):
        return str(row["prompt"])
    messages = row.get("prompt") or row.get("messages")
    turns = [m for m in messages if isinstance(m, dict)] if isinstance(messages, list) else []
    if len(turns) == 1:
        return str(turns[0].get("content", ""))
    return "\n\n".join(f"{turn.get('role', '?')}: {turn.get('content', '')}" for turn in turns)


def _asks(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(name) for name in row.get("instruction_ids") or ())


def _passed(row: dict[str, Any]) -> bool | None:
    """By the strict verdict of IFEval, or the first verdict that is yes or no."""
    verdicts = row.get("verdicts") or {}
    for value in (verdicts.get("prompt_level_strict_acc"), *verdicts.values()):
        if isinstance(value, int | float) and value in (0, 1):
            return bool(value)
    return None


def _source(source: Found, articles: Sequence[str]) -> str:
    left = len(source.dialogs) - len(articles)
    said = [f"{len(articles):,} prompts."]
    if left or source.is_cut:
        more = "more are" if source.is_cut else f"{left:,} more {'is' if left == 1 else 'are'}"
        said.append(f"To keep the page small, {more} left out: {source.where}.")
    said.append(source.note)
    paper = f"On paper the first {PRINTED}; the page has all {len(articles):,}." if len(articles) > PRINTED else ""
    return "\n".join(
        [
            f"<h3>{html(source.title)}</h3>",
            elements.paragraph(" ".join(part for part in said if part), kind="note"),
            *([elements.paragraph(paper, kind="note printed")] if paper else []),
            '<div class="dialogs">',
            *articles,
            "</div>",
        ]
    )


def _articles(dialogs: Sequence[Dialog], *, budget_bytes: int) -> tuple[list[str], int]:
    """As many dialogs as the budget holds, in order, and the bytes they take."""
    articles: list[str] = []
    total = 0
    for dialog in dialogs:
        text = _article(dialog)
        size = len(text.encode())
        if total + size > budget_bytes:
            break
        total += size
        articles.append(text)
    return articles, total


def _article(dialog: Dialog) -> str:
    prompt = cut(dialog.prompt, num_characters=PROMPT_CHARACTERS)
    verdicts = [answer.passed for answer in dialog.answers if answer.passed is not None]
    changed = " data-changed" if len(set(verdicts)) > 1 else ""
    marks = "".join(_mark(answer) for answer in dialog.answers if answer.passed is not None)
    shown = " ".join(prompt.split())
    title = shown if len(shown) <= SUMMARY_CHARACTERS else f"{shown[:SUMMARY_CHARACTERS]}…"
    asks = f'<p class="note">asks for {html(", ".join(dialog.asks))}</p>' if dialog.asks else ""
    answers = "".join(_answer(answer) for answer in dialog.answers)
    if dialog.chosen:
        answers += _answer(Answer("chosen in the preference", dialog.chosen))
    return (
        f'<details class="dialog"{changed}><summary><bdi>{html(title)}</bdi>{marks and " "}'
        f'<span class="marks">{marks}</span></summary><p class="note">{html(dialog.key)}</p>'
        f'<pre dir="auto" class="prompt">{marked(prompt)}</pre>{asks}<div class="answers">{answers}</div></details>'
    )


def _mark(answer: Answer) -> str:
    sign, kind, word = ("✓", "good", "passed") if answer.passed else ("✗", "bad", "failed")
    return f'<span class="{kind}" title="{html(answer.label)}: {word}">{sign}</span>'


def _answer(answer: Answer) -> str:
    facts = [answer.label if answer.label == "base" or not answer.label.isdigit() else f"round {answer.label}"]
    if answer.passed is not None:
        facts.append("passed" if answer.passed else "failed")
    if answer.reward is not None:
        facts.append(f"reward {answer.reward:.2f}")
    if answer.truncated:
        facts.append("cut at the token limit")
    kind = "" if answer.passed is None else " good" if answer.passed else " bad"
    text = cut(answer.text, num_characters=COMPLETION_CHARACTERS)
    body = f'<pre dir="auto">{marked(text)}</pre>' if answer.text else '<p class="note">(empty)</p>'
    return f'<div class="answer{kind}"><h4>{html(", ".join(facts))}</h4>{body}</div>'
