"""Whether the rows can be trained on: answers that can stand behind the generation prompt, and lengths that fit."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from alignloop.chat.format import ChatFormat
from alignloop.chat.reasoning import THINK_START, split_reasoning
from alignloop.config import Recipe
from alignloop.config.training import OptimizerConfig
from alignloop.data.turns import untrained_turn
from alignloop.errors import ModelError
from alignloop.records import PreferenceRow, PromptRow, Source
from alignloop.stages.facts import Facts, Findings
from alignloop.stages.sample.check import check_room

T = TypeVar("T", PreferenceRow, PromptRow)
NUM_SAMPLED = 200
"""Rows tokenised: enough for a mean, and done in well under a second."""


def check_answers(facts: Facts, *, chat: ChatFormat) -> None:
    """Every text that training may take as an answer, against what the chat template can put behind its prompt."""
    rows, findings = [*facts.rows.train, *facts.rows.heldout], facts.findings
    answers = [(row.source, text) for row in rows for text in _answers(row)]
    for reason, found in _by_reason((source, chat.refusal(text)) for source, text in answers):
        findings.problems.append(
            f"preferences: {len(found)} of {len(answers)} answers cannot be trained (first: {found[0].file}, line "
            f"{found[0].line}): {reason}"
        )
    _note_reasoning([text for _, text in answers], chat=chat, findings=findings)
    if facts.recipe.sft.train_on == "all_assistant":
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


@dataclass(frozen=True)
class Lengths:
    """In tokens, over the sampled rows.

    Attributes:
        prompt: mean length of a prompt to sample for.
        completion: mean length of a preference's longer completion.
        preferences: (prompt, longer completion) of each preference looked at.
    """

    prompt: float
    completion: float
    preferences: tuple[tuple[int, int], ...]

    def of_training(self, *, num_completions: int, max_length: int) -> float:
        """Mean tokens of a row that trains with so many completions; rows over `max_length` are left out, as 0."""
        kept = [p + num_completions * c for p, c in self.preferences if p + c <= max_length]
        return sum(kept) / len(self.preferences) if kept else 0.0


def measure_lengths(facts: Facts, *, chat: ChatFormat) -> Lengths:
    """Tokenise a sample, and hold it against what the model and the recipe have room for."""
    rows, recipe, findings, positions = facts.rows, facts.recipe, facts.findings, facts.base.max_positions
    prompts = _tokenised(rows.prompts, lambda row: (len(chat.prompt_ids(row.messages)), 0), recipe, findings)
    preferences = _tokenised(rows.train, lambda row: _pair_length(row, chat), recipe, findings)
    _check_engine(recipe, positions, findings)
    check_room(facts, [prompt for prompt, _ in prompts])
    groups = [prompt + completion for prompt, completion in preferences]
    for name in ("reward", "sft", "dpo"):
        _check_training(name, groups, recipe, positions, findings)
    return Lengths(
        prompt=_mean([prompt for prompt, _ in prompts]),
        completion=_mean([completion for _, completion in preferences]),
        preferences=tuple(preferences),
    )


def _pair_length(row: PreferenceRow, chat: ChatFormat) -> tuple[int, int]:
    # Whether they can be trained is `check_answers`'s to say.
    texts = [text for text in (row.best, row.rejected) if chat.refusal(text) is None]
    longest = max((len(chat.completion(text).token_ids) for text in texts), default=0)
    return len(chat.prompt_ids(row.messages)), longest


def _tokenised(
    rows: Sequence[T], length: Callable[[T], tuple[int, int]], recipe: Recipe, findings: Findings
) -> list[tuple[int, int]]:
    sampled = random.Random(recipe.seed).sample(list(rows), min(NUM_SAMPLED, len(rows)))
    found = []
    for row in sampled:
        try:
            found.append(length(row))
        except ModelError as error:
            findings.problems.append(f"{row.source.file}, line {row.source.line}: {error}")
            break
    return found


def _check_engine(recipe: Recipe, positions: int | None, findings: Findings) -> None:
    if positions is not None and recipe.engine.max_model_len > positions:
        findings.problems.append(
            f"engine.max_model_len: {recipe.engine.max_model_len} tokens, but the base has {positions} positions - "
            f"set it to at most {positions}, and sample.max_tokens below it"
        )


def _check_training(
    name: str, lengths: Sequence[int], recipe: Recipe, positions: int | None, findings: Findings
) -> None:
    config: OptimizerConfig = getattr(recipe, name)
    longest = max(lengths, default=0)
    if positions is not None and min(longest, config.max_length) > positions:
        findings.problems.append(
            f"{name}.max_length: {config.max_length} lets rows of {longest} tokens through, but the base has only "
            f"{positions} positions - set it to at most {positions}; longer rows are then left out and counted"
        )
    num_long = sum(length > config.max_length for length in lengths)
    if num_long and num_long == len(lengths):
        findings.problems.append(
            f"{name}.max_length: all {num_long} rows looked at are longer than {config.max_length} tokens (longest "
            f"{longest}): nothing would be left to train on - raise it"
        )
    elif num_long:
        share = num_long / len(lengths)
        findings.notes.append(f"{name}.max_length {config.max_length}: {share:.0%} of the rows are longer and left out")


def _mean(values: Sequence[int]) -> float:
    return sum(values) / len(values) if values else 0.0
