"""Best of K (The Llama 3 Herd of Models, 4.2.2): the reward model picks one of a prompt's candidates.

And on-policy pairs for DPO: the best of a prompt's candidates against another, where the gap says enough.

K candidates --pairing--> pair, gap --quantiles over the round--> strength; narrow gaps are dropped

Gates stand above rewards: of two candidates the one that fails fewer is the better, and the reward decides among those
that fail as many. `failed` is that number of each of K candidates; () where there is no gate.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from alignloop.chat.reasoning import has_answer
from alignloop.records import STRENGTHS, DroppedRow, Strength

Pairing = Literal["best_worst", "best_random", "gap"]


def check_finite(values: Sequence[float], *, name: str) -> None:
    """Raises ValueError where a value is NaN or infinite: a broken score must not be sorted silently."""
    for index, value in enumerate(values):
        if not math.isfinite(value):
            raise ValueError(f"{name}[{index}] is {value}: scores must be finite numbers")


def pick_best(
    rewards: Sequence[float], *, truncated: Sequence[bool], empty: Sequence[bool], failed: Sequence[int] = ()
) -> int:
    """Index of the candidate to keep; `truncated` says that it hit its token limit, `empty` that it has no text.

    A truncated candidate never wins over a finished one: a reward read in mid-sentence says little, and training on it
    teaches never to stop. Among finished ones (and among truncated ones, where none is finished) one without text never
    wins over one with text: there is nothing in it to train on. Among those the fewest failed gates decide, then the
    reward. Ties go to the first.

    Raises:
        ValueError: no candidate, or a reward that is not finite.
    """
    check_finite(rewards, name="rewards")
    if len(rewards) != len(truncated):
        raise ValueError(f"{len(rewards)} rewards for {len(truncated)} candidates")
    return max(eligible(truncated=truncated, empty=empty, failed=failed), key=rewards.__getitem__)


def pick_random(*, truncated: Sequence[bool], empty: Sequence[bool], seed: int, failed: Sequence[int] = ()) -> int:
    """As `pick_best`, drawn evenly with the prompt's own seed: the baseline to compare it with."""
    return random.Random(seed).choice(eligible(truncated=truncated, empty=empty, failed=failed))


def eligible(*, truncated: Sequence[bool], empty: Sequence[bool], failed: Sequence[int] = ()) -> list[int]:
    """Indexes of the candidates that may be picked, in order: the finished ones, or all where none is finished; of
    these the ones with text, or all where none has any; of these the ones that fail the fewest gates.

    Raises:
        ValueError: no candidate.
    """
    if not truncated:
        raise ValueError("no candidate to pick from")
    kinds = list(zip(truncated, empty, failed or [0] * len(truncated), strict=True))
    first = min(kinds)  # (False, False, 0) is finished, has text and passes every gate
    return [k for k, kind in enumerate(kinds) if kind == first]


def comparable(*, truncated: Sequence[bool], empty: Sequence[bool]) -> list[int]:
    """Indexes of the candidates that may be compared with each other: finished, with text.

    A truncated one, chosen, would teach to stop in mid-sentence; rejected, little but length.
    """
    return [k for k, kind in enumerate(zip(truncated, empty, strict=True)) if kind == (False, False)]


def pass_threshold(rewards: Sequence[float], *, quantile: float) -> float:
    """The reward a candidate must reach to pass: a quantile (linear interpolation) of all the round's raw rewards."""
    if not rewards:
        raise ValueError("no reward to take a quantile of")
    check_finite(rewards, name="rewards")
    return float(np.quantile(np.asarray(rewards, dtype=np.float64), quantile))


def pass_rate(rewards: Sequence[float], *, threshold: float, failed: Sequence[int] = ()) -> float:
    """Share of a prompt's K candidates whose reward reaches `threshold`; one that fails a gate does not pass."""
    if not rewards:
        raise ValueError("no candidate to rate")
    check_finite(rewards, name="rewards")
    gates = failed or [0] * len(rewards)
    return sum(reward >= threshold and not fails for reward, fails in zip(rewards, gates, strict=True)) / len(rewards)


@dataclass(frozen=True)
class ScoredCandidates:
    """A prompt's K candidates; `truncated`: each hit its token limit; `seed` is the prompt's own."""

    prompt_id: str
    texts: tuple[str, ...]
    rewards: tuple[float, ...]
    truncated: tuple[bool, ...]
    seed: int = 0
    failed: tuple[int, ...] = ()

    @property
    def order(self) -> list[tuple[int, float]]:
        """Of each candidate, higher is better: by gates, then by reward."""
        failed = self.failed or [0] * len(self.rewards)
        return [(-num, reward) for num, reward in zip(failed, self.rewards, strict=True)]


@dataclass(frozen=True)
class OnPolicyPair:
    """A pair by candidate index; `gap` = reward of `chosen` minus that of `rejected`, above 0; None where a gate tells
    the two apart, whatever their rewards."""

    prompt_id: str
    chosen: int
    rejected: int
    gap: float | None
    strength: Strength


@dataclass(frozen=True)
class PairsResult:
    """Pairs and drops, one or the other per prompt, both in input order."""

    pairs: tuple[OnPolicyPair, ...]
    dropped: tuple[DroppedRow, ...]
    metrics: dict[str, float]


def best_and_lower(candidates: ScoredCandidates) -> tuple[int, tuple[int, ...]] | str:
    """The best candidate and all that may be rejected for it, or the reason why there is none.

    The best is the highest reward among finished candidates with text that pass every gate; ties go to the first.
    Rejected is what fails a gate or has a lower reward, truncated ones excepted: they have low rewards because they
    break off, and pairs against them teach little but length. Texts that are the same but for surrounding whitespace
    never pair. Where no candidate passes there is no pair: none of them is what a policy should say.

    Raises:
        ValueError: a reward that is not finite.
    """
    check_finite(candidates.rewards, name=f"{candidates.prompt_id}: rewards")
    rewards, truncated, order = candidates.rewards, candidates.truncated, candidates.order
    empty = [not has_answer(text) for text in candidates.texts]
    finished = comparable(truncated=truncated, empty=empty)
    if not finished:
        return "no candidate is finished and non-empty"
    best = pick_best(rewards, truncated=truncated, empty=empty, failed=candidates.failed)
    if num_failed := -order[best][0]:
        return f"no candidate passes every gate: the best fails {num_failed}"
    others = [k for k in finished if candidates.texts[k].strip() != candidates.texts[best].strip()]
    if not others:
        return "no second candidate that is finished and differs from the best"
    lower = tuple(k for k in others if order[k] < order[best])
    return (best, lower) if lower else f"no gap: best and worst have the same reward {rewards[best]:.4g}"


def build_pairs(
    prompts: Sequence[ScoredCandidates],
    *,
    min_gap_quantile: float,
    min_gap: float = 0.0,
    pairing: Pairing = "best_worst",
    target_gap_quantile: float = 0.5,
    max_pairs: int = -1,
) -> PairsResult:
    """One pair a prompt, where its reward gap is wide enough among the round's.

    Strength is the quarter of the round's gaps a pair's gap lies in, before narrow ones are dropped: top quarter
    `significantly_better`, then `better`, `slightly_better`, `marginally_better`; a gap on a border belongs to the
    stronger quarter. A pair whose rejected one fails a gate is `significantly_better`, has no gap, is never too narrow,
    and counts as the widest.

    Args:
        min_gap_quantile: gaps under this quantile of all pairs' gaps are dropped; 0 keeps all.
        min_gap: gaps under this are dropped, too.
        pairing: the best is paired with: `best_worst` what fails the most gates, and of these the lowest reward;
            `best_random` any lower one, drawn evenly with the prompt's seed; `gap` the one whose reward gap to the best
            comes nearest the target (ties: the first).
        target_gap_quantile: with `gap`: the target is this quantile of the prompts' widest gaps.
        max_pairs: at most this many, widest gap first (ties: first prompt first); -1: all.
    """
    reasons: dict[int, str] = {}
    choices: dict[int, tuple[int, tuple[int, ...]]] = {}
    for index, prompt in enumerate(prompts):
        answer = best_and_lower(prompt)
        if isinstance(answer, str):
            reasons[index] = answer
        else:
            choices[index] = answer
    metrics, pairs = {"num_in": float(len(prompts)), "num_pairs": 0.0}, list[OnPolicyPair]()
    if choices:
        found = _paired(prompts, choices, pairing=pairing, target_gap_quantile=target_gap_quantile)
        gaps = np.array([gap for _, _, gap in found.values() if gap is not None], dtype=np.float64)
        least = max(min_gap, float(np.quantile(gaps, min_gap_quantile))) if gaps.size else min_gap
        reasons |= _too_narrow({i: gap for i, (_, _, gap) in found.items()}, least=least, max_pairs=max_pairs)
        borders = np.quantile(gaps, (0.75, 0.5, 0.25)) if gaps.size else gaps
        for index, (chosen, rejected, gap) in found.items():
            if index not in reasons:
                strength = STRENGTHS[0 if gap is None else int(np.sum(gap < borders))]
                pairs.append(OnPolicyPair(prompts[index].prompt_id, chosen, rejected, gap, strength))
        kept = [pair.gap for pair in pairs if pair.gap is not None]
        metrics |= {"num_pairs": float(len(pairs)), "least_gap": least}
        metrics["mean_gap"] = sum(kept) / len(kept) if kept else 0.0
    dropped = [
        DroppedRow(id=prompts[index].prompt_id, stage="build_pairs", rule="pairs", reason=reason)
        for index, reason in sorted(reasons.items())
    ]
    return PairsResult(tuple(pairs), tuple(dropped), metrics)


def _paired(
    prompts: Sequence[ScoredCandidates],
    choices: Mapping[int, tuple[int, tuple[int, ...]]],
    *,
    pairing: Pairing,
    target_gap_quantile: float,
) -> dict[int, tuple[int, int, float | None]]:
    """Prompt -> (chosen, rejected, gap as in `OnPolicyPair`)."""
    rewards = {index: prompts[index].rewards for index in choices}
    widest = [rewards[i][best] - min(rewards[i][k] for k in lower) for i, (best, lower) in choices.items()]
    target = float(np.quantile(np.array(widest, dtype=np.float64), target_gap_quantile))
    found: dict[int, tuple[int, int, float | None]] = {}
    for index, (best, lower) in choices.items():
        of, order = rewards[index], prompts[index].order
        if pairing == "best_worst":
            other = min(lower, key=order.__getitem__)
        elif pairing == "best_random":
            other = random.Random(prompts[index].seed).choice(lower)
        else:
            distances = [abs(of[best] - of[k] - target) for k in lower]
            other = lower[distances.index(min(distances))]
        found[index] = (best, other, None if order[other][0] < order[best][0] else of[best] - of[other])
    return found


def _too_narrow(gaps: Mapping[int, float | None], *, least: float, max_pairs: int) -> dict[int, str]:
    """Prompt -> why its pair is dropped."""
    reasons = {}
    wide = {index: math.inf if gap is None else gap for index, gap in gaps.items()}
    ranked = sorted(wide, key=lambda index: (-wide[index], index))
    for rank, index in enumerate(ranked):
        if wide[index] < least:
            reasons[index] = f"gap {wide[index]:.4g} is under the least gap {least:.4g}"
        elif 0 <= max_pairs <= rank:
            what = "the pair that a gate tells apart" if gaps[index] is None else f"gap {wide[index]:.4g}"
            reasons[index] = f"{what} is not among the {max_pairs} widest"
    return reasons
