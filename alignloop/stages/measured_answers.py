"""A model's answers to held-out prompts, and what follows from them alone: likelihood, the end of turn, drift from the
base, a judge's preference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alignloop.artifacts import derive_seed
from alignloop.chat.reasoning import has_answer
from alignloop.chat.sampled import completion_tokens
from alignloop.chat.tokens import CompletionTokens
from alignloop.data.split import prompt_key
from alignloop.engines.base import Completion, Engine, GenerateRequest
from alignloop.evaluation.measures import (
    LENGTH_CONTROLLED,
    LOSS,
    TIE,
    WIN,
    Figures,
    add_divergence,
    add_win_rate,
    without_asking,
)
from alignloop.evaluation.standard_error import mean, ratio
from alignloop.judging.verdicts import Judge, PairToCompare
from alignloop.progress import Progress
from alignloop.records import DroppedRow, MeasuredRow, PreferenceRow, VerdictRow

if TYPE_CHECKING:
    from alignloop.chat.format import ChatFormat
    from alignloop.packing.groups import PromptGroup
    from alignloop.stages.measure import Settings

Ids = tuple[int, ...]
_OUTCOME = {"first": WIN, "second": LOSS, "tie": TIE}


@dataclass(frozen=True)
class Heldout:
    """The held-out preferences: `rows` fit the engine, `dropped` do not; `prompts`, which are answered, are at most
    `num_prompts` of the rows, no two with the same prompt."""

    rows: list[PreferenceRow]
    prompts: list[PreferenceRow]
    dropped: list[DroppedRow]


@dataclass(frozen=True)
class GeneratedText:
    """A completion of the model: `ids` as generated, `read` for reward models, with the template's whole
    termination."""

    ids: Ids
    read: Ids
    text: str
    finished: bool

    @classmethod
    def of(cls, completion: Completion, chat: ChatFormat) -> GeneratedText:
        ids = tuple(completion.token_ids)
        read = chat.sampled_completion(ids).token_ids
        return cls(ids, read, chat.decode(ids), completion.finish_reason == "stop")


@dataclass(frozen=True)
class HeldoutAnswers:
    """A model's answers to a held-out prompt: `greedy` is the most likely, token by token; `sampled` are drawn at
    temperature 1, none for the base."""

    row: PreferenceRow
    prompt_ids: Ids
    greedy: GeneratedText
    sampled: tuple[GeneratedText, ...]

    @property
    def key(self) -> int:
        """Of the prompt, the same in every round."""
        return key_of(self.row)

    @property
    def endings(self) -> dict[str, list[bool]]:
        """Which of the sampled are truncated and which have no text: picking the best of them goes by it."""
        return {
            "truncated": [not one.finished for one in self.sampled],
            "empty": [not has_answer(one.text) for one in self.sampled],
        }


def key_of(row: PreferenceRow | MeasuredRow) -> int:
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


def answers_to(
    rows: Sequence[PreferenceRow], *, chat: ChatFormat, engine: Engine, config: Settings, sampled: bool
) -> list[HeldoutAnswers]:
    """The served model's answers, in one call of the engine; `sampled` adds `num_candidates` to the greedy one."""
    prompts = [chat.prompt_ids(row.messages) for row in rows]
    stop: dict[str, Any] = {"max_tokens": config.max_tokens, "stop_token_ids": chat.stop_token_ids}
    greedy = [GenerateRequest(prompt_ids=ids, num_candidates=1, temperature=0.0, seed=0, **stop) for ids in prompts]
    drawn = [
        GenerateRequest(
            prompt_ids=ids,
            num_candidates=config.num_candidates,
            temperature=1.0,
            # Of the prompt alone: rounds draw with the same noise, and differ by what their models have learnt.
            seed=derive_seed(0, "measure", key_of(row)),
            **stop,
        )
        for row, ids in zip(rows, prompts, strict=True)
    ]
    completions = engine.generate([*greedy, *(drawn if sampled else [])])
    others = completions[len(rows) :] if sampled else [[] for _ in rows]
    return [
        HeldoutAnswers(row, ids, GeneratedText.of(best, chat), tuple(GeneratedText.of(one, chat) for one in more))
        for row, ids, (best,), more in zip(rows, prompts, completions[: len(rows)], others, strict=True)
    ]


def logprob_groups(answers: Sequence[HeldoutAnswers], *, chat: ChatFormat) -> list[PromptGroup]:
    """Of each prompt the chosen and the rejected completion, then those sampled, their ids as sampled."""
    from alignloop.packing.groups import PromptGroup

    groups = []
    for answer in answers:
        drawn = [CompletionTokens(one.ids, (False,) * len(one.ids)) for one in answer.sampled]
        compared = [completion_tokens(text, chat, row=answer.row.id) for text in answer.row.ranked[-2:]]
        completions = (*compared, *drawn)
        groups.append(PromptGroup(answer.row.id, answer.prompt_ids, completions, tuple(range(len(completions)))))
    return groups


Logprobs = Sequence[Sequence[Sequence[float]]]
"""Of each group's completions, token by token."""


def add_logprobs(figures: Figures, groups: Sequence[PromptGroup], *, policy: Logprobs, base: Logprobs | None) -> None:
    """How likely the chosen completions are, how likely the policy is to end its turn where the two compared ones end,
    and how far its answers are from the base's; no `base` where it is the policy."""
    masks = [group.completions[0].formatting_mask for group in groups]
    counts = [float(mask.count(False)) for mask in masks]
    counted = [index for index, count in enumerate(counts) if count]
    ours = [_unmasked(policy[index][0], masks[index]) for index in counted]
    num_tokens = [counts[index] for index in counted]
    if counted:
        figures.add("chosen_logprob/policy", ratio(ours, num_tokens))
    for place, name in enumerate(("chosen", "rejected")):
        ends = [
            _end_of_turn(logprobs[place], group.completions[place].formatting_mask)
            for logprobs, group in zip(policy, groups, strict=True)
        ]
        if ended := [logprob for logprob in ends if logprob is not None]:
            figures.add(f"end_of_turn_logprob/{name}", mean(ended))
    if base is None:
        return
    if counted:
        theirs = [_unmasked(base[index][0], masks[index]) for index in counted]
        moved = [a - b for a, b in zip(ours, theirs, strict=True)]
        figures.add("chosen_logprob/reference", ratio(theirs, num_tokens))
        figures.add("chosen_logprob/drift", ratio(moved, num_tokens))
    add_divergence(
        figures,
        [one for own in policy for one in own[2:]],
        [one for own in base for one in own[2:]],
        prompts=[index for index, own in enumerate(policy) for _ in own[2:]],
    )


def _unmasked(logprobs: Sequence[float], mask: Sequence[bool]) -> float:
    return math.fsum(value for value, masked in zip(logprobs, mask, strict=True) if not masked)


def _end_of_turn(logprobs: Sequence[float], mask: Sequence[bool]) -> float | None:
    """Of a completion's first formatting token, behind all it says; None where it was cut and has none."""
    return logprobs[mask.index(True)] if True in mask else None


def add_judged(
    figures: Figures,
    ours: Sequence[MeasuredRow],
    theirs: Mapping[int, MeasuredRow],
    *,
    names: Sequence[str],
    judge: Judge,
    progress: Progress,
) -> list[VerdictRow]:
    """Adds `judge_win_rate/<name>` for each of `names`: this model's answers against another's (`theirs`, by the
    prompt's key). Unreadable verdicts are left out, their share reported. Returns every verdict asked for."""
    pairs = [(row, theirs[key_of(row)]) for row in ours if key_of(row) in theirs]
    if not pairs:
        return []
    known = [without_asking(mine.completion, rival.completion) for mine, rival in pairs]
    asked = [pair for pair, outcome in zip(pairs, known, strict=True) if outcome is None]
    rows, judged = _compared(asked, name=names[0], judge=judge)
    readable = [outcome for outcome in judged if outcome is not None]
    if judged and not readable:
        progress.say(
            f"  none of the judge's {len(judged)} answers about {' and '.join(names)} can be read, the first: "
            f"{rows[0].reason}"
        )
        return rows
    answered = iter(judged)
    told = [next(answered) if outcome is None else outcome for outcome in known]
    decided = [(outcome, *pair) for outcome, pair in zip(told, pairs, strict=True) if outcome is not None]
    outcomes = [outcome for outcome, _, _ in decided]
    longer = [float(len(mine.completion_ids) - len(rival.completion_ids)) for _, mine, rival in decided]
    for name in names:
        why = add_win_rate(figures, f"judge_win_rate/{name}", outcomes, lengths=longer)
        if why is not None:
            progress.say(no_control(f"judge_win_rate/{name}", why))
        figures.values[f"judge_win_rate/{name}_unreadable"] = judged.count(None) / len(pairs)
    return rows


def no_control(name: str, why: str) -> str:
    """The line for a win rate that is given without its length-controlled form."""
    return f"  {name}{LENGTH_CONTROLLED} is not estimated: {why}"


def _compared(
    pairs: Sequence[tuple[MeasuredRow, MeasuredRow]], *, name: str, judge: Judge
) -> tuple[list[VerdictRow], list[float | None]]:
    """The judge's verdicts on (ours, theirs), and the outcome of each for ours; None where it cannot be read."""
    # Which of the two comes first is drawn: a judge that leans to one side, asked in one order, must not decide.
    ours_first = [derive_seed(0, "measure", "order", key_of(ours)) % 2 == 0 for ours, _ in pairs]
    shown = [pair if is_first else pair[::-1] for pair, is_first in zip(pairs, ours_first, strict=True)]
    asked = [
        PairToCompare(f"{ours.id}/{name}", tuple(ours.messages), first.completion, second.completion)
        for (ours, _), (first, second) in zip(pairs, shown, strict=True)
    ]
    rows, outcomes = [], list[float | None]()
    for (first, second), is_first, verdict in zip(shown, ours_first, judge.compare(asked), strict=True):
        row = VerdictRow(
            id=verdict.id,
            first=f"{first.id}/{first.round}",
            second=f"{second.id}/{second.round}",
            winner=verdict.winner,
            strength=verdict.strength,
            reason=verdict.reason,
            answers=list(verdict.answers),
            judge=judge.name,
        )
        rows.append(row)
        outcome = _OUTCOME.get(verdict.winner)
        outcomes.append(outcome if outcome is None or is_first else 1.0 - outcome)
    return rows, outcomes
