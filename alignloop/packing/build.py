"""Rows on disk -> prompt groups."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from alignloop.chat.format import ChatFormat
from alignloop.chat.tokens import CompletionTokens
from alignloop.packing.groups import PromptGroup
from alignloop.records import CandidateRow, PairRow, PreferenceRow, SftRow

TrainOn = Literal["last_assistant", "all_assistant"]


def preference_groups(rows: Iterable[PreferenceRow], chat: ChatFormat) -> list[PromptGroup]:
    """Two or three ranked completions a group: edited > chosen > rejected (section 4.1.2)."""
    groups = []
    for row in rows:
        ranked = [text for text in (row.edited, row.chosen, row.rejected) if text is not None]
        groups.append(_group(row.id, chat.prompt_ids(row.messages), [chat.completion(text) for text in ranked]))
    return groups


def pair_groups(rows: Iterable[PairRow], chat: ChatFormat) -> list[PromptGroup]:
    """Chosen, then rejected."""
    return [
        _group(row.id, chat.prompt_ids(row.messages), [chat.completion(row.chosen), chat.completion(row.rejected)])
        for row in rows
    ]


def sft_groups(rows: Iterable[SftRow], chat: ChatFormat, *, train_on: TrainOn) -> list[PromptGroup]:
    """One completion a group; earlier assistant turns carry loss only with `all_assistant`."""
    groups = []
    for row in rows:
        prompt, target = row.messages[:-1], row.messages[-1]
        prompt_ids = chat.prompt_ids(prompt)
        mask = None
        if train_on == "all_assistant":
            spans = [span for span in chat.dialog(row.messages).assistant_spans if span[1] <= len(prompt_ids)]
            mask = tuple(any(start <= i < end for start, end in spans) for i in range(len(prompt_ids)))
        groups.append(PromptGroup(row.id, prompt_ids, (chat.completion(target.content),), (0,), mask))
    return groups


def candidate_groups(rows: Sequence[CandidateRow], chat: ChatFormat) -> list[PromptGroup]:
    """The K candidates of each prompt as one group, with their ids as sampled; rows of a prompt are adjacent."""
    by_prompt: dict[str, list[CandidateRow]] = {}
    for row in rows:
        by_prompt.setdefault(row.prompt_id, []).append(row)
    return [
        _group(
            prompt_id,
            chat.prompt_ids(candidates[0].messages),
            [chat.sampled_completion(row.completion_ids) for row in candidates],
        )
        for prompt_id, candidates in by_prompt.items()
    ]


def _group(row_id: str, prompt_ids: tuple[int, ...], completions: Sequence[CompletionTokens]) -> PromptGroup:
    return PromptGroup(row_id, prompt_ids, tuple(completions), tuple(range(len(completions))))
