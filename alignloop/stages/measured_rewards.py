"""Rewards of held-out preferences, and of several models' answers to held-out prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alignloop.chat.sampled import completion_tokens
from alignloop.config.sampling import Ensemble
from alignloop.evaluation.measures import (
    Figures,
    add_win_rate,
    by_reward,
    calibration_error,
    confidence,
    is_right,
    pair_loss,
    reliability,
)
from alignloop.evaluation.standard_error import clustered, mean
from alignloop.progress import Progress
from alignloop.records import STRENGTHS, PreferenceRow, Strength
from alignloop.sampling.best_of_k import eligible, pick_best
from alignloop.sampling.ensemble import combined
from alignloop.stages.measured_answers import HeldoutAnswers, Ids, key_of, no_control
from alignloop.stages.reward_models import RewardModel, rewards_by_member
from alignloop.stages.train_reward import of_strengths

if TYPE_CHECKING:
    from alignloop.chat.format import ChatFormat
    from alignloop.packing.groups import PromptGroup

Rivals = Mapping[str, Mapping[int, Ids]]
"""Whose answers are compared with, such as `previous`; theirs by the prompt's key, as reward models read them."""


@dataclass(frozen=True)
class HeldoutRewards:
    """Rewards by one reward model, raw, or by an ensemble: `margins` are r_chosen - r_rejected of each held-out
    preference; `of` has those of each prompt's completions by their ids, so that equal answers of several models have
    one."""

    margins: list[float]
    of: list[dict[Ids, float]]

    def greedy(self, answers: Sequence[HeldoutAnswers]) -> list[float]:
        return [of[answer.greedy.read] for answer, of in zip(answers, self.of, strict=True)]

    def sampled(self, answers: Sequence[HeldoutAnswers]) -> list[list[float]]:
        return [[of[one.read] for one in answer.sampled] for answer, of in zip(answers, self.of, strict=True)]

    def best_picks(self, answers: Sequence[HeldoutAnswers]) -> list[int]:
        """Of each prompt's sampled completions the one that `select` would pick."""
        return [pick_best(own, **answer.endings) for answer, own in zip(answers, self.sampled(answers), strict=True)]


def rewards_by(
    reward_model: RewardModel,
    rows: Sequence[PreferenceRow],
    answers: Sequence[HeldoutAnswers],
    rivals: Rivals,
    *,
    chat: ChatFormat,
    ensemble: Ensemble,
    penalty: float,
    **forward: Any,
) -> HeldoutRewards:
    """The rewards of the preferences' two completions each, and of each prompt's different answers; `forward` as for
    `rewards_by_member`, `ensemble` and `penalty` as in `score`. Raises ModelError where a reward model returns anything
    but finite numbers."""
    different = [_different(answer, rivals) for answer in answers]
    groups = _groups(rows, answers, different, chat=chat)
    found = [
        [combined(rewards, by=ensemble, penalty=penalty) for rewards in of_group]
        for of_group in rewards_by_member(groups, reward_model, **forward)
    ]
    return HeldoutRewards(
        margins=[chosen - rejected for chosen, rejected in found[: len(rows)]],
        of=[dict(zip(ids, rewards, strict=True)) for ids, rewards in zip(different, found[len(rows) :], strict=True)],
    )


def _different(answer: HeldoutAnswers, rivals: Rivals) -> list[Ids]:
    """The answers to a prompt, each once, in a fixed order."""
    theirs = [of_key[answer.key] for of_key in rivals.values() if answer.key in of_key]
    return list(dict.fromkeys([answer.greedy.read, *(one.read for one in answer.sampled), *theirs]))


def _groups(
    rows: Sequence[PreferenceRow],
    answers: Sequence[HeldoutAnswers],
    different: Sequence[Sequence[Ids]],
    *,
    chat: ChatFormat,
) -> list[PromptGroup]:
    from alignloop.chat.tokens import CompletionTokens
    from alignloop.packing.groups import PromptGroup

    groups = []
    for row in rows:
        two = tuple(completion_tokens(text, chat, row=row.id) for text in row.ranked[-2:])
        groups.append(PromptGroup(row.id, chat.prompt_ids(row.messages), two, (0, 1)))
    for answer, read in zip(answers, different, strict=True):
        tokens = tuple(CompletionTokens(ids, (False,) * len(ids)) for ids in read)
        groups.append(PromptGroup(answer.row.id, answer.prompt_ids, tokens, tuple(range(len(tokens)))))
    return groups


def add_preferences(
    figures: Figures, margins: Sequence[float], *, rows: Sequence[PreferenceRow], strengths: Sequence[Strength]
) -> None:
    """Accuracy and calibration on held-out preferences of the strengths that train; accuracy of every strength."""
    by_row = {id(row): margin for row, margin in zip(rows, margins, strict=True)}
    kept = of_strengths(rows, strengths)
    if kept:
        kept_margins = [by_row[id(row)] for row in kept]
        prompts = [key_of(row) for row in kept]
        bins = reliability(kept_margins)
        right = [is_right(margin) for margin in kept_margins]
        figures.add("heldout/accuracy", clustered(right, clusters=prompts))
        figures.values["heldout/calibration_error"] = calibration_error(bins)
        excess = [confidence(margin) - one for margin, one in zip(kept_margins, right, strict=True)]
        figures.add("heldout/overconfidence", clustered(excess, clusters=prompts))
        figures.add("heldout/loss", clustered([pair_loss(margin) for margin in kept_margins], clusters=prompts))
        figures.details["heldout/pairs"] = float(len(kept))
        for each in bins:
            name = f"heldout/reliability/{each.low:.2f}-{each.high:.2f}"
            figures.details[f"{name}/confidence"] = each.confidence
            figures.details[f"{name}/accuracy"] = each.accuracy
            figures.details[f"{name}/count"] = float(each.count)
    for strength in STRENGTHS:
        own = [by_row[id(row)] for row in rows if row.strength == strength]
        if own:
            figures.details[f"heldout/accuracy/{strength}"] = mean([is_right(margin) for margin in own]).value
            figures.details[f"heldout/pairs/{strength}"] = float(len(own))


def add_answers(
    figures: Figures,
    rewards: HeldoutRewards,
    answers: Sequence[HeldoutAnswers],
    rivals: Rivals,
    *,
    picks: Sequence[int],
    prefix: str,
    progress: Progress,
) -> None:
    """Rewards of this model's greedy answers, of the best and of a random one of the sampled, and of the rivals'.
    `picks` has the index of each prompt's best sampled one by the round's own reward model; `prefix` is empty for that
    model, `first_` for the first round's."""
    ours = rewards.greedy(answers)
    for name, theirs in rivals.items():
        pairs = [
            (mine, of[theirs[answer.key]])
            for answer, mine, of in zip(answers, ours, rewards.of, strict=True)
            if answer.key in theirs
        ]
        if not pairs:
            continue
        longer = [
            float(len(answer.greedy.read) - len(theirs[answer.key])) for answer in answers if answer.key in theirs
        ]
        outcomes = [by_reward(*pair) for pair in pairs]
        why = add_win_rate(figures, f"{prefix}win_rate/{name}", outcomes, lengths=longer)
        if why is not None:
            progress.say(no_control(f"{prefix}win_rate/{name}", why))
        figures.add(f"{prefix}reward/gain_over_{name}", mean([a - b for a, b in pairs]))
        figures.add(f"{prefix}reward/{name}_heldout", mean([reward for _, reward in pairs]))
    figures.add(f"{prefix}reward/policy_heldout", mean(ours))
    sampled = rewards.sampled(answers)
    best = [own[pick] for own, pick in zip(sampled, picks, strict=True)]
    chances = [eligible(**answer.endings) for answer in answers]
    anyone = [sum(own[k] for k in some) / len(some) for own, some in zip(sampled, chances, strict=True)]
    figures.add(f"{prefix}reward/best_of_k", mean(best))
    figures.add(f"{prefix}reward/random", mean(anyone))
    figures.add(f"{prefix}reward/best_over_random", mean([a - b for a, b in zip(best, anyone, strict=True)]))
