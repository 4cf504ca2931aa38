"""Held-out prompts as a model answers them: once greedily, and a few times drawn at temperature 1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from alignloop.artifacts import derive_seed
from alignloop.chat.reasoning import has_answer
from alignloop.chat.sampled import completion_tokens
from alignloop.chat.tokens import CompletionTokens
from alignloop.data.split import prompt_key
from alignloop.engines.base import Completion, Engine, GenerateRequest
from alignloop.evaluation.measures.divergence import divergence
from alignloop.evaluation.measures.figures import Figures
from alignloop.evaluation.measures.texts import Ending, add_texts
from alignloop.evaluation.standard_error import ratio
from alignloop.records import DroppedRow, MeasuredRow, PreferenceRow

if TYPE_CHECKING:
    from alignloop.chat.format import ChatFormat
    from alignloop.packing.groups import PromptGroup
    from alignloop.stages.measure import Settings


@dataclass(frozen=True)
class Heldout:
    """The held-out preferences.

    Attributes:
        rows: those that fit the engine.
        prompts: of these at most `num_prompts`, each with a prompt of its own: what is answered.
        dropped: those that do not fit.
    """

    rows: list[PreferenceRow]
    prompts: list[PreferenceRow]
    dropped: list[DroppedRow]


@dataclass(frozen=True)
class Answer:
    """A held-out prompt, answered.

    Attributes:
        greedy: the most likely answer, token by token.
        sampled: drawn at temperature 1; empty for the base.
    """

    row: PreferenceRow
    prompt_ids: tuple[int, ...]
    greedy: Completion
    sampled: tuple[Completion, ...]

    @property
    def key(self) -> int:
        """Of the prompt, the same in every round."""
        return key_of(self.row)


def key_of(row: PreferenceRow | MeasuredRow) -> int:
    """What a held-out prompt is known by."""
    return prompt_key(row.messages, seed=0)


def heldout_of(rows: Sequence[PreferenceRow], *, chat: ChatFormat, config: Settings) -> Heldout:
    """What is measured on: a function of the held-out rows, so the same in every round."""
    kept, dropped = [], []
    for row in rows:
        compared = [completion_tokens(text, chat, row=row.id) for text in row.ranked[-2:]]
        needed = max(config.max_tokens, *(len(tokens.token_ids) for tokens in compared))
        size = len(chat.prompt_ids(row.messages))
        if size + needed <= config.max_model_len:
            kept.append(row)
            continue
        reason = f"{size} prompt tokens and {needed} for a completion exceed {config.max_model_len}"
        dropped.append(DroppedRow(id=row.id, stage="measure", rule="length", reason=reason))
    first = {key_of(row): row for row in reversed(kept)}
    # Lowest hashes first: a draw that new rows and another file order do not change.
    wanted = {id(first[key]) for key in sorted(first)[: config.num_prompts]}
    return Heldout(kept, [row for row in kept if id(row) in wanted], dropped)


def answer(
    rows: Sequence[PreferenceRow], *, chat: ChatFormat, engine: Engine, config: Settings, sampled: bool
) -> list[Answer]:
    """What the served model says, in one call of the engine.

    Args:
        sampled: whether `num_candidates` completions are drawn beside the greedy one.
    """
    prompts = [chat.prompt_ids(row.messages) for row in rows]
    greedy = [_request(ids, chat=chat, config=config, num_candidates=1, temperature=0.0, seed=0) for ids in prompts]
    drawn = [
        _request(
            ids,
            chat=chat,
            config=config,
            num_candidates=config.num_candidates,
            temperature=1.0,
            # Of the prompt alone: rounds draw with the same noise, and differ by what their models have learnt.
            seed=derive_seed(0, "measure", key_of(row)),
        )
        for row, ids in zip(rows, prompts, strict=True)
    ]
    answers = engine.generate([*greedy, *(drawn if sampled else [])])
    others = answers[len(rows) :] if sampled else [[] for _ in rows]
    return [
        Answer(row, ids, best, tuple(more))
        for row, ids, (best,), more in zip(rows, prompts, answers[: len(rows)], others, strict=True)
    ]


def endings(given: Answer, chat: ChatFormat) -> dict[str, list[bool]]:
    """Of the sampled completions which are truncated and which have no text, as picking the best of them goes by."""
    return {
        "truncated": [one.finish_reason == "length" for one in given.sampled],
        "empty": [not has_answer(chat.decode(one.token_ids)) for one in given.sampled],
    }


def measured_row(
    given: Answer, *, chat: ChatFormat, round: int, policy: str, reward: float | None, first_reward: float | None
) -> MeasuredRow:
    """The greedy answer as it is published."""
    return MeasuredRow(
        id=given.row.id,
        messages=given.row.messages,
        completion=chat.decode(given.greedy.token_ids),
        completion_ids=list(given.greedy.token_ids),
        finish_reason=given.greedy.finish_reason,
        chosen=given.row.chosen,
        round=round,
        policy=policy,
        reward=reward,
        first_reward=first_reward,
    )


def add_endings(figures: Figures, answers: Sequence[Answer], *, chat: ChatFormat) -> None:
    """Lengths, endings and repetitions of the greedy answers."""
    greedy = [given.greedy for given in answers]
    add_texts(
        figures,
        [Ending(chat.decode(one.token_ids), len(one.token_ids), one.finish_reason == "stop") for one in greedy],
    )


def logprob_groups(answers: Sequence[Answer], *, chat: ChatFormat) -> list[PromptGroup]:
    """Of each prompt the chosen completion, then those sampled, their ids as sampled."""
    from alignloop.packing.groups import PromptGroup

    groups = []
    for given in answers:
        drawn = [CompletionTokens(one.token_ids, (False,) * len(one.token_ids)) for one in given.sampled]
        completions = (completion_tokens(given.row.ranked[-2], chat, row=given.row.id), *drawn)
        groups.append(PromptGroup(given.row.id, given.prompt_ids, completions, tuple(range(len(completions)))))
    return groups


Logprobs = Sequence[Sequence[Sequence[float]]]
"""Of each group's completions, token by token."""


def add_logprobs(figures: Figures, groups: Sequence[PromptGroup], *, policy: Logprobs, base: Logprobs | None) -> None:
    """How likely the chosen completions are, and how far what the policy says is from what the base would say.

    Args:
        base: None where the policy is the base.
    """
    masks = [group.completions[0].formatting_mask for group in groups]
    counts = [float(mask.count(False)) for mask in masks]
    told = [place for place, count in enumerate(counts) if count]
    ours = [_unmasked(policy[place][0], masks[place]) for place in told]
    num_tokens = [counts[place] for place in told]
    if told:
        figures.add("chosen_logprob/policy", ratio(ours, num_tokens))
    if base is None:
        return
    if told:
        theirs = [_unmasked(base[place][0], masks[place]) for place in told]
        moved = [a - b for a, b in zip(ours, theirs, strict=True)]
        figures.add("chosen_logprob/reference", ratio(theirs, num_tokens))
        figures.add("chosen_logprob/drift", ratio(moved, num_tokens))
    found = divergence(
        [one for own in policy for one in own[1:]],
        [one for own in base for one in own[1:]],
        prompts=[place for place, own in enumerate(policy) for _ in own[1:]],
    )
    figures.add("kl_to_base", found.k1)
    figures.add("kl_to_base_k3", found.k3)
    figures.add("kl_to_base_completion", found.completion)


def _unmasked(logprobs: Sequence[float], mask: Sequence[bool]) -> float:
    return math.fsum(value for value, masked in zip(logprobs, mask, strict=True) if not masked)


def _request(
    ids: tuple[int, ...],
    *,
    chat: ChatFormat,
    config: Settings,
    num_candidates: int,
    temperature: float,
    seed: int,
) -> GenerateRequest:
    return GenerateRequest(
        prompt_ids=ids,
        max_tokens=config.max_tokens,
        num_candidates=num_candidates,
        temperature=temperature,
        seed=seed,
        stop_token_ids=chat.stop_token_ids,
    )
