"""What a reward model makes of held-out preferences, and of what several models answer to held-out prompts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from alignloop.chat.sampled import completion_tokens
from alignloop.errors import ModelError
from alignloop.evaluation.measures.calibration import calibration_error, confidence, is_right, pair_loss, reliability
from alignloop.evaluation.measures.figures import Figures, clustered
from alignloop.evaluation.measures.winning import by_reward, win_rate
from alignloop.evaluation.standard_error import mean
from alignloop.progress import Progress
from alignloop.records import STRENGTHS, MeasuredRow, PreferenceRow
from alignloop.sampling.best_of_k import eligible, pick_best
from alignloop.stages.measure.answers import Answer, endings, key_of
from alignloop.stages.train_reward import of_strengths

if TYPE_CHECKING:
    from alignloop.chat.format import ChatFormat
    from alignloop.packing.groups import PromptGroup
    from alignloop.stages.measure import Settings

Ids = tuple[int, ...]
Rivals = Mapping[str, Mapping[int, MeasuredRow]]
"""Whose answers are compared with, such as `previous`; theirs by the prompt's key."""


@dataclass(frozen=True)
class Rewards:
    """By one reward model, raw.

    Attributes:
        margins: r_chosen - r_rejected of each held-out preference.
        of: of each prompt's completions, by their ids: what several models say word for word has one reward.
    """

    margins: list[float]
    of: list[dict[Ids, float]]


@dataclass(frozen=True)
class Scored:
    """What is scored: the held-out preferences, the answers to their prompts, and what others answered."""

    rows: Sequence[PreferenceRow]
    answers: Sequence[Answer]
    rivals: Rivals
    chat: ChatFormat

    def ids(self, token_ids: Sequence[int]) -> Ids:
        """A sampled completion as reward models read it."""
        return self.chat.sampled_completion(token_ids).token_ids

    def groups(self) -> list[PromptGroup]:
        """The preferences' two completions each, then each prompt's different answers."""
        from alignloop.chat.tokens import CompletionTokens
        from alignloop.packing.groups import PromptGroup

        groups = []
        for row in self.rows:
            two = tuple(completion_tokens(text, self.chat, row=row.id) for text in row.ranked[-2:])
            groups.append(PromptGroup(row.id, self.chat.prompt_ids(row.messages), two, (0, 1)))
        for given in self.answers:
            different = self.different(given)
            read = tuple(CompletionTokens(ids, (False,) * len(ids)) for ids in different)
            groups.append(PromptGroup(given.row.id, given.prompt_ids, read, tuple(range(len(read)))))
        return groups

    def different(self, given: Answer) -> list[Ids]:
        """The answers to a prompt, each once, in a fixed order."""
        theirs = [rows[given.key].completion_ids for rows in self.rivals.values() if given.key in rows]
        said = [given.greedy.token_ids, *(one.token_ids for one in given.sampled), *theirs]
        return list(dict.fromkeys(self.ids(ids) for ids in said))


def rewards_by(reward_model: Path, *, scored: Scored, config: Settings, progress: Progress) -> Rewards:
    """Raises ModelError where the reward model gives something else than finite numbers."""
    from alignloop.training.scoring import score_groups

    found = score_groups(
        scored.groups(),
        reward_model=reward_model,
        rows_per_microbatch=config.rows_per_microbatch,
        dtype=config.dtype,
        progress=progress,
    )
    if not all(math.isfinite(reward) for rewards in found for reward in rewards):
        raise ModelError(f"{reward_model}: gives rewards that are no finite numbers: its training has diverged")
    num_pairs = len(scored.rows)
    answers = zip(scored.answers, found[num_pairs:], strict=True)
    return Rewards(
        margins=[chosen - rejected for chosen, rejected in found[:num_pairs]],
        of=[dict(zip(scored.different(given), rewards, strict=True)) for given, rewards in answers],
    )


def add_preferences(
    figures: Figures, margins: Sequence[float], *, rows: Sequence[PreferenceRow], config: Settings
) -> None:
    """Accuracy and calibration on held-out preferences of the strengths that train; accuracy of every strength."""
    by_row = {id(row): margin for row, margin in zip(rows, margins, strict=True)}
    kept = of_strengths(rows, config.strengths)
    if kept:
        given = [by_row[id(row)] for row in kept]
        prompts = [key_of(row) for row in kept]
        bins = reliability(given)
        right = [is_right(margin) for margin in given]
        figures.add("heldout/accuracy", clustered(right, clusters=prompts))
        figures.values["heldout/calibration_error"] = calibration_error(bins)
        excess = [confidence(margin) - one for margin, one in zip(given, right, strict=True)]
        figures.add("heldout/overconfidence", clustered(excess, clusters=prompts))
        figures.add("heldout/loss", clustered([pair_loss(margin) for margin in given], clusters=prompts))
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


def add_answers(figures: Figures, rewards: Rewards, *, scored: Scored, picks: Sequence[int], prefix: str) -> None:
    """Rewards of this model's greedy answers, of the best and of a random one of the sampled, and of the rivals'.

    Args:
        picks: of each prompt which of the sampled is the best, by the round's own reward model.
        prefix: `` for the round's reward model, `first_` for the first round's.
    """
    ours = [of[scored.ids(given.greedy.token_ids)] for given, of in zip(scored.answers, rewards.of, strict=True)]
    for name, theirs in scored.rivals.items():
        both = [place for place, given in enumerate(scored.answers) if given.key in theirs]
        if not both:
            continue
        keys = [scored.answers[place].key for place in both]
        rival = [rewards.of[p][scored.ids(theirs[key].completion_ids)] for p, key in zip(both, keys, strict=True)]
        pairs = [(ours[place], reward) for place, reward in zip(both, rival, strict=True)]
        won = win_rate([by_reward(*pair) for pair in pairs])
        figures.add(f"{prefix}win_rate/{name}", won.rate)
        figures.values[f"{prefix}win_rate/{name}_ties"] = won.ties
        figures.add(f"{prefix}reward/gain_over_{name}", mean([a - b for a, b in pairs]))
        figures.add(f"{prefix}reward/{name}_heldout", mean(rival))
    figures.add(f"{prefix}reward/policy_heldout", mean(ours))
    sampled = [
        [of[ids] for ids in _sampled(given, scored)] for given, of in zip(scored.answers, rewards.of, strict=True)
    ]
    best = [own[pick] for own, pick in zip(sampled, picks, strict=True)]
    anyone = [
        sum(own[place] for place in places) / len(places)
        for own, places in zip(
            sampled, (eligible(**endings(given, scored.chat)) for given in scored.answers), strict=True
        )
    ]
    figures.add(f"{prefix}reward/best_of_k", mean(best))
    figures.add(f"{prefix}reward/random", mean(anyone))
    figures.add(f"{prefix}reward/best_over_random", mean([a - b for a, b in zip(best, anyone, strict=True)]))


def best_picks(rewards: Rewards, *, scored: Scored) -> list[int]:
    """Of each prompt's sampled completions the one that `select` would pick."""
    return [
        pick_best([of[ids] for ids in _sampled(given, scored)], **endings(given, scored.chat))
        for given, of in zip(scored.answers, rewards.of, strict=True)
    ]


def _sampled(given: Answer, scored: Scored) -> list[Ids]:
    return [scored.ids(one.token_ids) for one in given.sampled]
