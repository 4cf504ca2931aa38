"""A comparison as it is written to comparison.json, and what its numbers say in plain words and do not say."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from alignloop.sampling.reward_statistics import Summary

COMPARISON_VERSION = 1
NUM_TESTS = 4
"""Means and distributions, of all candidates and of the best of K: one of four small p-values is no small p-value."""
SURE = 0.01 / NUM_TESTS
HINT = 0.05 / NUM_TESTS
FEW_PROMPTS = 30
UNSEEN_ERRORS = 2.8
"""A shift of this many standard errors is found in four of five cases (1.96 + 0.84, normal approximation)."""


class RewardDifference(BaseModel, frozen=True):
    """B against A."""

    mean: float
    """Mean over prompts of B's mean reward minus A's."""
    stderr: float | None
    """Of that mean; null for one prompt."""
    mean_pvalue: float | None
    """Of that mean, by a paired t-test over prompts."""
    ks: float
    """Kolmogorov-Smirnov statistic: the largest distance of the two cumulative distributions."""
    ks_pvalue: float
    """Takes every candidate as independent of the others."""
    swap_pvalue: float
    """Of the same statistic, by exchanging A and B prompt by prompt: candidates of a prompt may hang together."""
    num_swaps: int


class Histogram(BaseModel, frozen=True):
    """Shares of rewards in common bins; what lies outside is in the first and the last."""

    edges: list[float]
    a: list[float]
    b: list[float]


class ComparedRewards(BaseModel, frozen=True):
    """One kind of rewards, side by side."""

    a: Summary
    b: Summary
    difference: RewardDifference
    histogram: Histogram


class Completions(BaseModel, frozen=True):
    """What one side's completions look like."""

    truncated: float
    """Share that reached the token limit."""
    mean_tokens: float
    p95_tokens: float
    mean_characters: float
    empty: float
    """Share without text."""
    distinct: float
    """Mean share of a prompt's candidates that differ from all before them."""


class ComparedSide(BaseModel, frozen=True):
    name: str
    file: str
    num_prompts: int
    num_candidates: str
    settings: dict[str, Any]
    reward_model: str | None
    completions: Completions


class SamplingComparison(BaseModel, frozen=True):
    """The whole file; terminal and page show this and nothing else."""

    comparison_version: int = COMPARISON_VERSION
    a: ComparedSide
    b: ComparedSide
    num_common: int
    only_in_a: int
    only_in_b: int
    best_of: str
    """K of the best of K: the candidates a prompt has in both."""
    all: ComparedRewards
    """Rewards of all candidates of the common prompts."""
    best: ComparedRewards
    """Rewards of the best of K of the common prompts."""
    same_rewards: bool
    differing_settings: dict[str, tuple[Any, Any]]
    verdict: list[str]
    notes: list[str]


def verdict(
    everything: ComparedRewards, best: ComparedRewards, *, num_prompts: int, best_of: str, same_rewards: bool
) -> list[str]:
    """Sentences: one on the outcome, then how far it can be trusted. `everything` is of all candidates, `best` of the
    best of K."""
    if same_rewards:
        return ["A and B have the same rewards, candidate by candidate: on these prompts they sample the same."]
    if num_prompts < 2:
        return ["One common prompt: nothing can be said about the two."]
    lines = [_outcome(everything, best, best_of=best_of)]
    stderr = everything.difference.stderr
    if stderr and not (_shifted(everything, SURE) or _spread(everything, SURE)):
        unseen = UNSEEN_ERRORS * stderr
        lines.append(
            f"That is no proof that they are alike: a shift of the mean reward below about {unseen:.3g}"
            f"{_in_std(unseen, everything)} could well go unseen here."
        )
    if num_prompts < FEW_PROMPTS:
        lines.append(f"With {num_prompts} prompts even the standard errors are rough: take more.")
    lines.append("It holds for these prompts and this reward model, which may not see what a reader would.")
    return lines


def _outcome(everything: ComparedRewards, best: ComparedRewards, *, best_of: str) -> str:
    kinds = (("all candidates", everything), (f"the best of {best_of}", best))
    for level, word in ((SURE, "differ"), (HINT, "may differ, but chance is not ruled out")):
        shifted = [_shift(name, rewards) for name, rewards in kinds if _shifted(rewards, level)]
        if shifted:
            return f"A and B {word}: " + "; ".join(shifted) + "."
        spread = [name for name, rewards in kinds if _spread(rewards, level)]
        if spread:
            return (
                f"A and B {word}: not in their mean rewards, but in how those of {' and of '.join(spread)} are spread; "
                "look at the quantiles."
            )
    return (
        f"No difference was found: B's mean reward is {everything.difference.mean:+.3g} +- {_error(everything)} from "
        f"A's over all candidates, {best.difference.mean:+.3g} +- {_error(best)} for the best of {best_of}."
    )


def _shift(name: str, rewards: ComparedRewards) -> str:
    mean = rewards.difference.mean
    way = "higher" if mean > 0 else "lower"
    size = _in_std(abs(mean), rewards)
    return f"B's mean reward of {name} is {way} by {abs(mean):.3g} +- {_error(rewards)}{size}"


def _shifted(rewards: ComparedRewards, level: float) -> bool:
    pvalue = rewards.difference.mean_pvalue
    return pvalue is not None and pvalue < level


def _spread(rewards: ComparedRewards, level: float) -> bool:
    return rewards.difference.swap_pvalue < level


def _error(rewards: ComparedRewards) -> str:
    stderr = rewards.difference.stderr
    return "?" if stderr is None else f"{stderr:.2g}"


def _in_std(size: float, rewards: ComparedRewards) -> str:
    """A size by the yardstick of A's rewards."""
    return f" ({size / rewards.a.std:.2g} of A's standard deviation)" if rewards.a.std else ""
