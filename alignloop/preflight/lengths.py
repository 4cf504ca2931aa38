"""Token lengths of a sample of the rows, against what the model and the recipe have room for."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from alignloop.chat.format import ChatFormat
from alignloop.config import Recipe
from alignloop.config.training import OptimizerConfig
from alignloop.errors import ModelError
from alignloop.preflight.findings import Findings
from alignloop.preflight.rows import Rows
from alignloop.records import PreferenceRow, PromptRow

T = TypeVar("T", PreferenceRow, PromptRow)
NUM_SAMPLED = 200
"""Rows tokenised: enough for a mean, and done in well under a second."""


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


def measure(rows: Rows, *, chat: ChatFormat, recipe: Recipe, positions: int | None, findings: Findings) -> Lengths:
    """Tokenise a sample; what leaves no room goes to `findings`.

    Args:
        positions: longest sequence of the model; None where it does not say.
    """
    prompts = _tokenised(rows.prompts, lambda row: (len(chat.prompt_ids(row.messages)), 0), recipe, findings)
    preferences = _tokenised(rows.train, lambda row: _pair_length(row, chat), recipe, findings)
    _check_engine(recipe, positions, findings)
    _check_prompts([prompt for prompt, _ in prompts], recipe, findings)
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


def _check_prompts(lengths: Sequence[int], recipe: Recipe, findings: Findings) -> None:
    room = recipe.engine.max_model_len - recipe.sample.max_tokens
    num_long = sum(length > room for length in lengths)
    if not num_long:
        return
    what = (
        f"{num_long} of {len(lengths)} prompts looked at exceed {room} tokens, which is what engine.max_model_len "
        f"({recipe.engine.max_model_len}) leaves beside sample.max_tokens ({recipe.sample.max_tokens})"
    )
    if num_long == len(lengths):
        findings.problems.append(f"sample: {what} - raise the first or lower the second")
    else:
        findings.notes.append(f"{what}: they are left out and counted")


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
