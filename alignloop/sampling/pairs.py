"""On-policy pairs for DPO: the best of a prompt's candidates against another, where gap and rejected keep the limits.

K candidates --pairing, again on what is left--> pairs --quarters of the round's gaps--> strength
                                                   |
                                                   +--limits, numbers or quantiles of the round--> kept, or dropped by

Three of the limits are RIP's (Rejecting Instruction Preferences, arXiv 2501.18578): where the rejected completion has a
low reward or is short, or lies far below the chosen one, the prompt itself is poor. Gates stand above rewards, as in
`best_of_k`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import Literal

import numpy as np

from alignloop.chat.reasoning import has_answer
from alignloop.records import STRENGTHS, Strength
from alignloop.sampling.best_of_k import check_finite, comparable

Pairing = Literal["best_worst", "best_random", "gap", "best_mean_minus_2_sigma"]
Limit = Literal["min_gap", "max_gap", "min_rejected_reward", "min_rejected_length", "max_on_policy"]
"""Limits by the recipe's names, in the order in which they are looked at: the first that a pair breaks drops it."""


@dataclass(frozen=True)
class ScoredCandidates:
    """A prompt's K candidates; `truncated`: each hit its token limit; `num_tokens`: the length of each, the stop token
    counted; `seed` is the prompt's own; `failed`: the gates that each fails, () where there is no gate."""

    prompt_id: str
    texts: tuple[str, ...]
    rewards: tuple[float, ...]
    truncated: tuple[bool, ...]
    num_tokens: tuple[int, ...]
    seed: int = 0
    failed: tuple[int, ...] = ()

    @property
    def order(self) -> list[tuple[int, float]]:
        """Of each candidate, higher is better: by gates, then by reward."""
        failed = self.failed or [0] * len(self.rewards)
        return [(-num, reward) for num, reward in zip(failed, self.rewards, strict=True)]


@dataclass(frozen=True, kw_only=True)
class PairLimits:
    """What a pair keeps to train. A limit that is a number and its quantile hold both; a quantile (linear
    interpolation) is of the same value of all the round's pairs, before any is dropped. By default all are kept."""

    min_gap: float = 0.0
    min_gap_quantile: float = 0.0
    max_gap: float = math.inf
    max_gap_quantile: float = 1.0
    min_rejected_reward: float = -math.inf
    min_rejected_reward_quantile: float = 0.0
    min_rejected_length: int = 0
    """Tokens."""
    min_rejected_length_quantile: float = 0.0


@dataclass(frozen=True)
class OnPolicyPair:
    """A pair by candidate index; `gap` = reward of `chosen` minus that of `rejected`, above 0; None where a gate tells
    the two apart, whatever their rewards. `place` is 0 for the prompt's first pair."""

    prompt_id: str
    chosen: int
    rejected: int
    gap: float | None
    strength: Strength
    place: int = 0


@dataclass(frozen=True)
class DroppedPair:
    """A pair that a limit dropped, or, by the rule `pairs`, a prompt that gives none: `pair` is None."""

    prompt_id: str
    rule: Limit | Literal["pairs"]
    reason: str
    pair: OnPolicyPair | None = None


@dataclass(frozen=True)
class PairsResult:
    """What the prompts gave, in input order: each pair is kept or dropped, each prompt without one is dropped."""

    pairs: tuple[OnPolicyPair, ...]
    dropped: tuple[DroppedPair, ...]
    metrics: dict[str, float]


def best_and_lower(candidates: ScoredCandidates, *, taken: Collection[str] = ()) -> tuple[int, tuple[int, ...]] | str:
    """The best candidate and all that may be rejected for it, or the reason why there is none.

    The best is the highest reward among finished candidates with text that pass every gate; ties go to the first.
    Rejected is what fails a gate or has a lower reward, truncated ones excepted: they have low rewards because they
    break off, and pairs against them teach little but length. Texts that are the same but for surrounding whitespace
    never pair; `taken` ones are left out. Where no candidate passes there is no pair: none of them is what a policy
    should say.

    Raises:
        ValueError: a reward that is not finite.
    """
    check_finite(candidates.rewards, name=f"{candidates.prompt_id}: rewards")
    order, texts = candidates.order, [text.strip() for text in candidates.texts]
    finished = [k for k in _finished(candidates) if texts[k] not in taken]
    if not finished:
        return "no candidate is finished and non-empty"
    best = max(finished, key=order.__getitem__)
    if num_failed := -order[best][0]:
        return f"no candidate passes every gate: the best fails {num_failed}"
    others = [k for k in finished if texts[k] != texts[best]]
    if not others:
        return "no second candidate that is finished and differs from the best"
    lower = tuple(k for k in others if order[k] < order[best])
    return (best, lower) if lower else f"no gap: best and worst have the same reward {order[best][1]:.4g}"


def _finished(candidates: ScoredCandidates) -> list[int]:
    return comparable(truncated=candidates.truncated, empty=[not has_answer(text) for text in candidates.texts])


def build_pairs(
    prompts: Sequence[ScoredCandidates],
    *,
    limits: PairLimits,
    pairing: Pairing = "best_worst",
    target_gap_quantile: float = 0.5,
    pairs_per_prompt: int = 1,
    max_pairs: int = -1,
) -> PairsResult:
    """Pairs of each prompt's candidates that keep the limits.

    Strength is the quarter of the round's gaps a pair's gap lies in, before any is dropped: top quarter
    `significantly_better`, then `better`, `slightly_better`, `marginally_better`; a gap on a border belongs to the
    stronger quarter. A pair whose rejected one fails a gate is `significantly_better` and has no gap: it is neither
    too narrow nor too wide, and counts as the widest.

    Args:
        pairing: the best is paired with: `best_worst` what fails the most gates, and of these the lowest reward;
            `best_random` any lower one, drawn evenly with the prompt's seed; `gap` the one whose reward gap to the best
            comes nearest the target; `best_mean_minus_2_sigma` the one whose reward comes nearest mean - 2 standard
            deviations (over n) of the prompt's finished candidates with text (arXiv 2502.16825). Ties: the first.
        target_gap_quantile: with `gap`: the target is this quantile of the prompts' widest gaps.
        pairs_per_prompt: after the first pair the pairing goes on with what is left of the prompt's candidates, the
            second best and so on; no text stands in two pairs.
        max_pairs: at most this many of those that keep the limits, widest gap first (ties: first prompt first); -1:
            all.
    """
    choices = [best_and_lower(prompt) for prompt in prompts]
    paired = [(n, choice) for n, choice in enumerate(choices) if not isinstance(choice, str)]
    if not paired:
        return PairsResult((), tuple(_without(prompts, choices)), {"num_in": float(len(prompts)), "num_pairs": 0.0})
    widest = [prompts[n].rewards[best] - min(prompts[n].rewards[k] for k in lower) for n, (best, lower) in paired]
    target = float(np.quantile(np.array(widest, dtype=np.float64), target_gap_quantile))
    found = {n: _pairs_of(prompts[n], pairing=pairing, target_gap=target, most=pairs_per_prompt) for n, _ in paired}
    pairs = _with_strengths([(prompts[n], place, two) for n, twos in found.items() for place, two in enumerate(twos)])
    of = {prompt.prompt_id: prompt for prompt in prompts}
    broken, bounds = _broken(pairs, of, limits)
    widths = [-math.inf if n in broken else width(pair.gap) for n, pair in enumerate(pairs)]
    for index in not_widest(widths, most=max_pairs):
        reason = f"{gap_text(pairs[index].gap)} is not among the {max_pairs} widest"
        broken.setdefault(index, ("max_on_policy", reason))
    kept = tuple(pair for n, pair in enumerate(pairs) if n not in broken)
    metrics = {"num_in": float(len(prompts)), "num_pairs": float(len(kept)), **bounds}
    metrics["mean_gap"] = mean_gap([pair.gap for pair in kept])
    drops = [DroppedPair(pairs[n].prompt_id, *why, pairs[n]) for n, why in broken.items()]
    order = {prompt.prompt_id: n for n, prompt in enumerate(prompts)}
    dropped = sorted(
        [*drops, *_without(prompts, choices)], key=lambda d: (order[d.prompt_id], d.pair.place if d.pair else 0)
    )
    return PairsResult(kept, tuple(dropped), metrics)


def _without(
    prompts: Sequence[ScoredCandidates], choices: Sequence[tuple[int, tuple[int, ...]] | str]
) -> list[DroppedPair]:
    return [
        DroppedPair(prompt.prompt_id, "pairs", choice)
        for prompt, choice in zip(prompts, choices, strict=True)
        if isinstance(choice, str)
    ]


def _pairs_of(candidates: ScoredCandidates, *, pairing: Pairing, target_gap: float, most: int) -> list[tuple[int, int]]:
    """(chosen, rejected) of a prompt's pairs, at least one."""
    draw, rewards = random.Random(candidates.seed), candidates.rewards
    finished = [rewards[k] for k in _finished(candidates)]
    low = fmean(finished) - 2.0 * pstdev(finished)
    pairs: list[tuple[int, int]] = []
    taken: set[str] = set()
    while len(pairs) < most and not isinstance(choice := best_and_lower(candidates, taken=taken), str):
        best, lower = choice
        if pairing == "best_worst":
            other = min(lower, key=candidates.order.__getitem__)
        elif pairing == "best_random":
            other = draw.choice(lower)
        else:
            other = _nearest(rewards, lower, best=best, low=None if pairing == "gap" else low, target_gap=target_gap)
        pairs.append((best, other))
        taken |= {candidates.texts[k].strip() for k in (best, other)}
    return pairs


def _nearest(rewards: Sequence[float], lower: Sequence[int], *, best: int, low: float | None, target_gap: float) -> int:
    """Of `lower` the one whose reward comes nearest `low`, or, where that is None, whose gap to the best the target."""
    distances = [abs(rewards[best] - rewards[k] - target_gap) if low is None else abs(rewards[k] - low) for k in lower]
    return lower[distances.index(min(distances))]


def _with_strengths(found: Sequence[tuple[ScoredCandidates, int, tuple[int, int]]]) -> list[OnPolicyPair]:
    gaps = [_gap(prompt, *two) for prompt, _, two in found]
    known = np.array([gap for gap in gaps if gap is not None], dtype=np.float64)
    borders = np.quantile(known, (0.75, 0.5, 0.25)) if known.size else known
    return [
        OnPolicyPair(prompt.prompt_id, *two, gap, STRENGTHS[0 if gap is None else int(np.sum(gap < borders))], place)
        for (prompt, place, two), gap in zip(found, gaps, strict=True)
    ]


def _gap(candidates: ScoredCandidates, chosen: int, rejected: int) -> float | None:
    order = candidates.order
    by_gate = order[rejected][0] < order[chosen][0]
    return None if by_gate else candidates.rewards[chosen] - candidates.rewards[rejected]


def width(gap: float | None) -> float:
    """By which pairs are ranked: what a gate tells apart is the widest."""
    return math.inf if gap is None else gap


def gap_text(gap: float | None) -> str:
    return "the pair that a gate tells apart" if gap is None else f"gap {gap:.4g}"


def mean_gap(gaps: Sequence[float | None]) -> float:
    """Of those that have one; 0 where none has."""
    known = [gap for gap in gaps if gap is not None]
    return fmean(known) if known else 0.0


def _broken(
    pairs: Sequence[OnPolicyPair], of: Mapping[str, ScoredCandidates], limits: PairLimits
) -> tuple[dict[int, tuple[Limit, str]], dict[str, float]]:
    """(index of a pair -> the first limit it breaks, with the reason; the bounds that hold)."""
    gaps = [pair.gap for pair in pairs if pair.gap is not None]
    rewards = [of[pair.prompt_id].rewards[pair.rejected] for pair in pairs]
    lengths = [float(of[pair.prompt_id].num_tokens[pair.rejected]) for pair in pairs]
    least_gap = max(limits.min_gap, _quantile(gaps, limits.min_gap_quantile)) if gaps else limits.min_gap
    widest_gap = min(limits.max_gap, _quantile(gaps, limits.max_gap_quantile)) if gaps else limits.max_gap
    least_reward = max(limits.min_rejected_reward, _quantile(rewards, limits.min_rejected_reward_quantile))
    least_length = max(limits.min_rejected_length, _quantile(lengths, limits.min_rejected_length_quantile))
    broken: dict[int, tuple[Limit, str]] = {}
    for index, (pair, reward, length) in enumerate(zip(pairs, rewards, lengths, strict=True)):
        if pair.gap is not None and pair.gap < least_gap:
            broken[index] = "min_gap", f"gap {pair.gap:.4g} is under the least gap {least_gap:.4g}"
        elif pair.gap is not None and pair.gap > widest_gap:
            broken[index] = "max_gap", f"gap {pair.gap:.4g} is over the widest gap {widest_gap:.4g}"
        elif reward < least_reward:
            why = f"the rejected has the reward {reward:.4g}, under the least {least_reward:.4g}"
            broken[index] = "min_rejected_reward", why
        elif length < least_length:
            why = f"the rejected has {length:.0f} tokens, under the least {least_length:.4g}"
            broken[index] = "min_rejected_length", why
    bounds = {"least_gap": least_gap}
    if widest_gap < math.inf and (limits.max_gap < math.inf or limits.max_gap_quantile < 1.0):
        bounds["widest_gap"] = widest_gap
    if limits.min_rejected_reward > -math.inf or limits.min_rejected_reward_quantile > 0.0:
        bounds["least_rejected_reward"] = least_reward
    if limits.min_rejected_length or limits.min_rejected_length_quantile > 0.0:
        bounds["least_rejected_length"] = least_length
    return broken, bounds


def _quantile(values: Sequence[float], quantile: float) -> float:
    return float(np.quantile(np.array(values, dtype=np.float64), quantile))


def not_widest(gaps: Sequence[float], *, most: int) -> list[int]:
    """Indexes of the gaps that are not among the `most` widest (ties: the first are); -1: all are."""
    ranked = sorted(range(len(gaps)), key=lambda index: (-gaps[index], index))
    return sorted(ranked[most:]) if most >= 0 else []


def of_share(num_on_policy: int, num_preferences: int, *, share: float) -> tuple[int, int]:
    """(on-policy pairs, pairs of preferences) to keep so that at most `share`, in (0, 1), are on-policy where there are
    too many of these, and at least `share` where there are too few: all of the scarcer side, and of the other as many
    as go with it, at least one. Where a side has none the share gives way: the other stays as it is."""
    if not num_on_policy or not num_preferences:
        return num_on_policy, num_preferences
    # The rounding keeps whole numbers whole: 30 * 0.4 / 0.6 is 20.000000000000004.
    most_on_policy = max(1, math.floor(round(num_preferences * share / (1.0 - share), 9)))
    most_preferences = max(1, math.floor(round(num_on_policy * (1.0 - share) / share, 9)))
    return min(num_on_policy, most_on_policy), min(num_preferences, most_preferences)
