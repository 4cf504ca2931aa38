"""Rows on disk -> prompt groups."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from alignloop.chat.format import ChatFormat
from alignloop.chat.sampled import completion_tokens, sampled_tokens
from alignloop.chat.tokens import CompletionTokens
from alignloop.packing.groups import PromptGroup
from alignloop.records import CandidateRow, PairRow, PreferenceRow, SftRow, Strength, by_prompt

TrainOn = Literal["last_assistant", "all_assistant"]


def ranked_groups(rows: Iterable[PreferenceRow | PairRow], chat: ChatFormat) -> list[PromptGroup]:
    """The completions of each row, best first: edited > chosen > rejected (section 4.1.2), or chosen and rejected.

    Raises:
        DataError: a row's ids are not those of its text.
    """
    groups = []
    for row in rows:
        ranked = [completion_tokens(completion, chat, row=row.id) for completion in row.ranked]
        gap = row.reward_gap if isinstance(row, PairRow) else None
        groups.append(_group(row.id, chat.prompt_ids(row.messages), ranked, strength=row.strength, reward_gap=gap))
    return groups


def sft_groups(rows: Iterable[SftRow], chat: ChatFormat, *, train_on: TrainOn) -> list[PromptGroup]:
    """One completion a group; earlier assistant turns carry loss only with `all_assistant`.

    Raises:
        DataError: as `ranked_groups`.
    """
    groups = []
    for row in rows:
        prompt_ids = chat.prompt_ids(row.messages[:-1])
        mask = None
        if train_on == "all_assistant":
            spans = [span for span in chat.dialog(row.messages).assistant_spans if span[1] <= len(prompt_ids)]
            mask = tuple(any(start <= i < end for start, end in spans) for i in range(len(prompt_ids)))
        target = completion_tokens(row.target, chat, row=row.id)
        groups.append(PromptGroup(row.id, prompt_ids, (target,), (0,), mask))
    return groups


def candidate_groups(rows: Sequence[CandidateRow], chat: ChatFormat) -> list[PromptGroup]:
    """The K candidates of each prompt as one group, with their ids as sampled; rows of a prompt must be adjacent."""
    return [
        _group(
            prompt_id,
            chat.prompt_ids(candidates[0].messages),
            [sampled_tokens(row.completion_ids, row.finish_reason, chat) for row in candidates],
        )
        for prompt_id, candidates in by_prompt(rows).items()
    ]


def _group(
    row_id: str,
    prompt_ids: tuple[int, ...],
    completions: Sequence[CompletionTokens],
    *,
    strength: Strength | None = None,
    reward_gap: float | None = None,
) -> PromptGroup:
    ranks = tuple(range(len(completions)))
    return PromptGroup(row_id, prompt_ids, tuple(completions), ranks, strength=strength, reward_gap=reward_gap)
