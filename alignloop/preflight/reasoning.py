"""Answers that cannot stand behind the generation prompt, counted by what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from alignloop.chat.format import ChatFormat
from alignloop.chat.reasoning import THINK_START, split_reasoning
from alignloop.config import Recipe
from alignloop.data.turns import untrained_turn
from alignloop.preflight.findings import Findings
from alignloop.records import PreferenceRow, Source


def check_answers(rows: Sequence[PreferenceRow], *, chat: ChatFormat, recipe: Recipe, findings: Findings) -> None:
    """Every text that training may take as an answer, against what the chat template can put behind its prompt."""
    answers = [(row.source, text) for row in rows for text in _answers(row)]
    for reason, found in _by_reason((source, chat.refusal(text)) for source, text in answers):
        findings.problems.append(
            f"preferences: {len(found)} of {len(answers)} answers cannot be trained (first: {found[0].file}, line "
            f"{found[0].line}): {reason}"
        )
    _note_reasoning([text for _, text in answers], chat=chat, findings=findings)
    if recipe.sft.train_on == "all_assistant":
        _check_earlier(rows, chat=chat, findings=findings)


def can_train(row: PreferenceRow, chat: ChatFormat) -> bool:
    """Whether none of its answers is refused."""
    return all(chat.refusal(text) is None for text in _answers(row))


def _note_reasoning(texts: Sequence[str], *, chat: ChatFormat, findings: Findings) -> None:
    num_reasoned = sum(split_reasoning(text)[0] is not None for text in texts)
    if num_reasoned and not chat.takes_reasoning:
        findings.notes.append(
            f"{num_reasoned} of {len(texts)} answers begin with {THINK_START}: the chat template takes no reasoning, "
            "so it is trained as text"
        )
    elif chat.trains_reasoning and THINK_START in chat.plain_opening and num_reasoned < len(texts):
        findings.notes.append(
            f"{len(texts) - num_reasoned} of {len(texts)} answers hold no reasoning: they teach the template's empty "
            "thinking block"
        )


def _check_earlier(rows: Sequence[PreferenceRow], *, chat: ChatFormat, findings: Findings) -> None:
    """`all_assistant` trains every answer of a dialog: earlier ones must stand as sampling asks, too."""
    marked = [(row.source, mark) for row in rows if (mark := untrained_turn(row.meta))]
    if marked:
        source, mark = marked[0]
        findings.problems.append(
            f"sft.train_on: all_assistant: {len(marked)} of {len(rows)} rows hold turns that are marked as not to be "
            f"trained on (first: {source.file}, line {source.line}, {mark}) - set sft.train_on: last_assistant, or "
            "take the rows out"
        )
    earlier = [(row.source, m.content) for row in rows for m in row.messages if m.role == "assistant"]
    for reason, found in _by_reason((source, chat.earlier_refusal(text)) for source, text in earlier):
        findings.problems.append(
            f"sft.train_on: all_assistant: {len(found)} of {len(earlier)} earlier answers cannot be trained (first: "
            f"{found[0].file}, line {found[0].line}): {reason} - set sft.train_on: last_assistant, or chat_template to "
            "one that writes all answers alike (docs/templates.md)"
        )


def _answers(row: PreferenceRow) -> Iterator[str]:
    """Those whose ids are the template's to make: sampled ones are behind the generation prompt as they are."""
    return (completion.text for completion in row.ranked if completion.token_ids is None)


def _by_reason(found: Iterable[tuple[Source, str | None]]) -> Iterable[tuple[str, list[Source]]]:
    reasons: dict[str, list[Source]] = {}
    for source, reason in found:
        if reason is not None:
            reasons.setdefault(reason, []).append(source)
    return reasons.items()
