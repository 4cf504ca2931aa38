"""What the model of each round answers to the same prompts, side by side."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from alignloop.report.content import Dialogs, Section
from alignloop.report.facts import RoundRecord, RunRecord, evenly, json_rows
from alignloop.report.render import cut, render_part

MOST_PROMPTS = 200
MOST_LINES = 200_000
MOST_ROUNDS = 12
PROMPT_CHARACTERS, COMPLETION_CHARACTERS = 1_000, 2_000
MOST_BYTES = 2_500_000
SUMMARY_CHARACTERS = 150
PRINTED = 10
"""Prompts a source on paper, as report.css has it."""
ONE_SCALE = "Rewards are by the run's first reward model: one scale for all its rounds."
OWN_SCALES = "Rewards are by each run's own first reward model: their scales differ between runs."


@dataclass(frozen=True)
class ShownAnswer:
    """A completion.

    Attributes:
        label: of the round it is of, or what else it is.
        passed: None where nothing checks it.
    """

    label: str
    text: str
    passed: bool | None = None
    reward: float | None = None
    truncated: bool = False

    @property
    def heading(self) -> str:
        parts = [f"round {self.label}" if self.label.isdigit() else self.label]
        if self.passed is not None:
            parts.append("passed" if self.passed else "failed")
        if self.reward is not None:
            parts.append(f"reward {self.reward:.2f}")
        return ", ".join([*parts, "cut at the token limit"] if self.truncated else parts)


@dataclass(frozen=True)
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
    answers: list[ShownAnswer] = field(default_factory=list)

    @property
    def has_changed(self) -> bool:
        """Whether the verdict is another in one round than in another."""
        return {True, False} <= {answer.passed for answer in self.answers}

    @property
    def shown(self) -> list[ShownAnswer]:
        chosen = [ShownAnswer("chosen in the preference", self.chosen)] if self.chosen else []
        return [*self.answers, *chosen]

    @property
    def summary(self) -> str:
        words = " ".join(self.prompt.split())
        return words if len(words) <= SUMMARY_CHARACTERS else f"{words[:SUMMARY_CHARACTERS]}…"


@dataclass(frozen=True)
class DialogSource:
    """Where dialogs lie in a round.

    Attributes:
        where: for readers.
        read: a row's prompt, what tells it from other prompts, and the answer under a label; None where the row has
            no answer.
    """

    title: str
    where: str
    stage: str
    output: str
    read: Callable[[dict[str, Any], str], tuple[Hashable, Dialog, ShownAnswer] | None]

    def dialogs(self, columns: Sequence[tuple[str, RoundRecord]]) -> tuple[list[Dialog], bool]:
        """The first prompts with their answers, one under each label; whether there are more prompts."""
        found: dict[Hashable, Dialog] = {}
        is_cut = False
        for label, entry in columns:
            seen: set[Hashable] = set()
            for row in json_rows(entry.stage(self.stage), self.output, most=MOST_LINES):
                parts = self.read(row, label)
                if parts is None or parts[0] in seen:  # a second filter of the same answer
                    continue
                key, dialog, answer = parts
                if key not in found and len(found) == MOST_PROMPTS:
                    is_cut = True
                    if len(seen) == MOST_PROMPTS:
                        break
                    continue
                seen.add(key)
                found.setdefault(key, dialog).answers.append(answer)
        return list(found.values()), is_cut


def completions(run: RunRecord, *, budget_bytes: int) -> Section:
    """Held-out prompts first, then the benchmarks' own.

    Args:
        budget_bytes: of the page; what does not fit is left out, and the page says so.
    """
    rounds = evenly(run.finished or run.rounds, most=MOST_ROUNDS)
    columns = [(entry.label, entry) for entry in rounds]
    note = f"{len(run.finished) - len(rounds)} rounds between are left out." if len(run.finished) > len(rounds) else ""
    title = "The same prompts, round by round"
    return side_by_side(columns, budget_bytes=budget_bytes, note=note, title=title, scale=ONE_SCALE)


def side_by_side(
    columns: Sequence[tuple[str, RoundRecord]], *, budget_bytes: int, title: str, scale: str, note: str = ""
) -> Section:
    """Answers of rounds, each under its label.

    Args:
        scale: what the rewards of held-out answers are by.
    """
    budget_bytes = min(budget_bytes, MOST_BYTES)
    sources = [(source, *source.dialogs(columns)) for source in (HELDOUT, BENCHMARK)]
    found = []
    for source, dialogs, is_cut in sources:
        # The first source may leave something over for the second.
        share = budget_bytes * 2 // 3 if source is HELDOUT and sources[-1][1] else budget_bytes
        articles = fitting(dialogs, budget_bytes=share)
        budget_bytes -= sum(len(article.encode()) for article in articles)
        remark = f" Greedy answers. {scale}" if source is HELDOUT else ""
        left = _left_out(len(dialogs) - len(articles), is_cut, source)
        if dialogs:
            found.append(Dialogs(source.title, f"{len(articles):,} prompts.{left}{remark}", articles, PRINTED))
    return Section("completions", "Completions", title, note=note, dialogs=tuple(found))


def fitting(dialogs: Sequence[Dialog], *, budget_bytes: int) -> tuple[Markup, ...]:
    """As many dialogs as the budget holds, in order."""
    articles = []
    for dialog in dialogs:
        article = render_part("dialog.html.jinja", dialog=dialog)
        budget_bytes -= len(article.encode())
        if budget_bytes < 0:
            break
        articles.append(article)
    return tuple(articles)


def _left_out(num_left: int, is_cut: bool, source: DialogSource) -> str:
    if not num_left and not is_cut:
        return ""
    more = "more are" if is_cut else f"{num_left:,} more {'is' if num_left == 1 else 'are'}"
    return f" To keep the page small, {more} left out: {source.where}."


def _heldout(row: dict[str, Any], label: str) -> tuple[Hashable, Dialog, ShownAnswer]:
    key, reward = str(row.get("id", "")), row.get("first_reward")
    chosen = cut(str(row.get("chosen") or ""), num_characters=COMPLETION_CHARACTERS)
    answer = _answer(row, "completion", label, reward=float(reward) if isinstance(reward, int | float) else None)
    return key, Dialog(key, cut(_prompt(row), num_characters=PROMPT_CHARACTERS), chosen=chosen), answer


def _benchmark(row: dict[str, Any], label: str) -> tuple[Hashable, Dialog, ShownAnswer] | None:
    if row.get("response") is None:
        return None
    # With its prompt: runs may have asked other data under the same name.
    key = str(row.get("task", "")), str(row.get("index", 0)), str(row.get("prompt", ""))
    asks = tuple(str(name) for name in row.get("instruction_ids") or ())
    dialog = Dialog(f"{key[0]} {key[1]}", cut(key[2], num_characters=PROMPT_CHARACTERS), asks)
    return key, dialog, _answer(row, "response", label, passed=_passed(row))


HELDOUT = DialogSource(
    "Held-out prompts", "measure/completions.jsonl of each round", "measure", "completions", _heldout
)
BENCHMARK = DialogSource("Benchmark prompts", "evaluate/samples.jsonl of each round", "evaluate", "samples", _benchmark)


def _answer(row: dict[str, Any], column: str, label: str, **judged: Any) -> ShownAnswer:
    text = cut(str(row.get(column, "")), num_characters=COMPLETION_CHARACTERS)
    return ShownAnswer(label, text, truncated=row.get("finish_reason") == "length", **judged)


def _prompt(row: dict[str, Any]) -> str:
    if isinstance(row.get("prompt"), str):
        return str(row["prompt"])
    messages = row.get("prompt") or row.get("messages")
    turns = [m for m in messages if isinstance(m, dict)] if isinstance(messages, list) else []
    if len(turns) == 1:
        return str(turns[0].get("content", ""))
    return "\n\n".join(f"{turn.get('role', '?')}: {turn.get('content', '')}" for turn in turns)


def _passed(row: dict[str, Any]) -> bool | None:
    """By the strict verdict of IFEval, or the first verdict that is yes or no."""
    verdicts = row.get("verdicts") or {}
    for value in (verdicts.get("prompt_level_strict_acc"), *verdicts.values()):
        if isinstance(value, int | float) and value in (0, 1):
            return bool(value)
    return None
