"""What the model of each round answers to the same prompts, side by side."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from markupsafe import Markup

from alignloop.report.content import Dialogs, PageSection, cut, rendered_dialog
from alignloop.report.facts import RoundRecord, RunRecord, evenly, json_rows

MOST_PROMPTS = 200
MOST_LINES = 200_000
MOST_ROUNDS = 12
PROMPT_CHARACTERS, COMPLETION_CHARACTERS = 1_000, 2_000
MOST_BYTES = 2_500_000
ONE_SCALE = "Rewards are by the run's first reward model: one scale for all its rounds."
OWN_SCALES = "Rewards are by each run's own first reward model: their scales differ between runs."
Columns = Sequence[tuple[str, RoundRecord]]
"""A round under its label: that of the round, or of its run."""


class ShownAnswer(NamedTuple):
    """A completion, labelled by its round or by what else it is; `passed` is None where nothing checks it."""

    label: str
    text: str
    passed: bool | None = None
    reward: float | None = None
    truncated: bool = False


@dataclass(frozen=True)
class AnsweredPrompt:
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


class AnswerSource(NamedTuple):
    """Where answers lie in a round. `read` returns what tells a row's prompt from others, the prompt, and the answer
    under a label; None where the row has no answer."""

    title: str
    where: str
    stage: str
    output: str
    read: Callable[[dict[str, Any], str], tuple[Hashable, AnsweredPrompt, ShownAnswer] | None]

    def prompts(self, columns: Columns) -> tuple[list[AnsweredPrompt], bool]:
        """The first prompts with their answers, one under each label; whether there are more prompts."""
        found: dict[Hashable, AnsweredPrompt] = {}
        is_cut = False
        for label, entry in columns:
            seen: set[Hashable] = set()
            for row in json_rows(entry.stage(self.stage), self.output, most=MOST_LINES):
                parts = self.read(row, label)
                if parts is None or parts[0] in seen:  # a second filter of the same answer
                    continue
                key, prompt, answer = parts
                if key not in found and len(found) == MOST_PROMPTS:
                    is_cut = True
                    if len(seen) == MOST_PROMPTS:
                        break
                    continue
                seen.add(key)
                found.setdefault(key, prompt).answers.append(answer)
        return list(found.values()), is_cut


def completions(run: RunRecord, *, budget_bytes: int) -> PageSection:
    """Held-out prompts first, then the benchmarks' own; what does not fit the page's bytes is left out, and the page
    says so."""
    rounds = evenly(run.finished or run.rounds, most=MOST_ROUNDS)
    columns = [(entry.label, entry) for entry in rounds]
    note = f"{len(run.finished) - len(rounds)} rounds between are left out." if len(run.finished) > len(rounds) else ""
    title = "The same prompts, round by round"
    return side_by_side(columns, budget_bytes=budget_bytes, note=note, title=title, scale=ONE_SCALE)


def side_by_side(
    columns: Columns, *, budget_bytes: int, title: str, scale: str, note: str = ""
) -> PageSection:  # fmt: skip
    """Answers of rounds, each under its label; `scale` names what the rewards of held-out answers are by."""
    budget_bytes = min(budget_bytes, MOST_BYTES)
    sources = [(source, *source.prompts(columns)) for source in (HELDOUT, BENCHMARK)]
    found = []
    for source, prompts, is_cut in sources:
        # The first source may leave something over for the second.
        share = budget_bytes * 2 // 3 if source is HELDOUT and sources[-1][1] else budget_bytes
        articles = fitting(prompts, budget_bytes=share)
        budget_bytes -= sum(len(article.encode()) for article in articles)
        remark = f" Greedy answers. {scale}" if source is HELDOUT else ""
        num_left, left = len(prompts) - len(articles), ""
        if num_left or is_cut:
            more = "more are" if is_cut else f"{num_left:,} more {'is' if num_left == 1 else 'are'}"
            left = f" To keep the page small, {more} left out: {source.where}."
        if prompts:
            found.append(Dialogs(source.title, f"{len(articles):,} prompts.{left}{remark}", articles))
    return PageSection("completions", "Completions", title, note=note, dialogs=tuple(found))


def fitting(prompts: Sequence[AnsweredPrompt], *, budget_bytes: int) -> tuple[Markup, ...]:
    """The first prompts, rendered: as many as the budget holds."""
    articles = []
    for prompt in prompts:
        article = rendered_dialog(prompt)
        budget_bytes -= len(article.encode())
        if budget_bytes < 0:
            break
        articles.append(article)
    return tuple(articles)


def _heldout(row: dict[str, Any], label: str) -> tuple[Hashable, AnsweredPrompt, ShownAnswer]:
    key, reward = str(row.get("id", "")), row.get("first_reward")
    chosen = cut(str(row.get("chosen") or ""), num_characters=COMPLETION_CHARACTERS)
    answer = _answer(row, "completion", label, reward=float(reward) if isinstance(reward, int | float) else None)
    return key, AnsweredPrompt(key, cut(_prompt(row), num_characters=PROMPT_CHARACTERS), chosen=chosen), answer


def _benchmark(row: dict[str, Any], label: str) -> tuple[Hashable, AnsweredPrompt, ShownAnswer] | None:
    if row.get("response") is None:
        return None
    # With its prompt: runs may have asked other data under the same name.
    key = str(row.get("task", "")), str(row.get("index", 0)), str(row.get("prompt", ""))
    asks = tuple(str(name) for name in row.get("instruction_ids") or ())
    prompt = AnsweredPrompt(f"{key[0]} {key[1]}", cut(key[2], num_characters=PROMPT_CHARACTERS), asks)
    return key, prompt, _answer(row, "response", label, passed=_passed(row))


HELDOUT = AnswerSource(
    "Held-out prompts", "measure/completions.jsonl of each round", "measure", "completions", _heldout
)
BENCHMARK = AnswerSource("Benchmark prompts", "evaluate/samples.jsonl of each round", "evaluate", "samples", _benchmark)


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
