"""A comparison as it is written to comparison.json; terminal and page show this and nothing else.

Pairing ─► rewards of all candidates, of the best of K ─► summary, tests, histogram ─► Comparison
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from alignloop.chat.reasoning import has_answer
from alignloop.comparison import statistics
from alignloop.comparison.sides import (
    Pairing,
    PromptCandidates,
    Side,
    common_num_candidates,
    num_candidates_text,
    pair_up,
)
from alignloop.comparison.verdict import Finding, verdict
from alignloop.errors import DataError
from alignloop.sampling.best_of_k import pick_best

COMPARISON_VERSION = 1
NUM_BINS = 16


class Part(BaseModel):
    """Base of all parts of the file."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class Distribution(Part):
    """Rewards of one side."""

    n: int
    mean: float
    std: float | None
    """With n - 1; null for one value."""
    quantiles: dict[str, float]
    """`0.05` -> reward."""


class Difference(Part):
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


class Histogram(Part):
    """Shares of rewards in common bins; what lies outside is in the first and the last."""

    edges: list[float]
    a: list[float]
    b: list[float]


class Rewards(Part):
    """One kind of rewards, side by side."""

    a: Distribution
    b: Distribution
    difference: Difference
    histogram: Histogram


class Completions(Part):
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


class SideFacts(Part):
    """One side."""

    name: str
    file: str
    num_prompts: int
    num_candidates: str
    settings: dict[str, Any]
    reward_model: str | None
    completions: Completions


class Comparison(Part):
    """The whole file."""

    comparison_version: int = COMPARISON_VERSION
    a: SideFacts
    b: SideFacts
    num_common: int
    only_in_a: int
    only_in_b: int
    best_of: str
    """K of the best of K: the candidates a prompt has in both."""
    all: Rewards
    """Rewards of all candidates of the common prompts."""
    best: Rewards
    """Rewards of the best of K of the common prompts."""
    same_rewards: bool
    differing_settings: dict[str, tuple[Any, Any]]
    verdict: list[str]
    notes: list[str]


def compare(a: Side, b: Side, *, seed: int = 0) -> Comparison:
    """Compare two sides on the prompts they have in common.

    Args:
        seed: of the exchanges of the swap test.

    Raises:
        DataError: no common prompt, or rewards of different reward models.
    """
    if a.reward_model and b.reward_model and a.reward_model != b.reward_model:
        raise DataError(
            f"{a.name} and {b.name} were scored by different reward models ({a.reward_model[:19]}... and "
            f"{b.reward_model[:19]}...): their rewards are of different scales. Score both with one: alignloop score"
        )
    if a.reward_functions is not None and b.reward_functions is not None and a.reward_functions != b.reward_functions:
        raise DataError(
            f"{a.name} and {b.name} were scored with different reward functions ({_functions(a)}; {_functions(b)}): "
            "score both with the same"
        )
    paired = pair_up(a, b)
    equal = common_num_candidates(paired)
    everything = _rewards([p.rewards for p in paired.a], [p.rewards for p in paired.b], seed=seed)
    best = _rewards([_best(p) for p in equal.a], [_best(p) for p in equal.b], seed=seed)
    same = [p.rewards for p in paired.a] == [p.rewards for p in paired.b]
    differing = differing_settings(a.settings, b.settings) if a.settings and b.settings else {}
    best_of = num_candidates_text(equal.a)
    return Comparison(
        a=_facts(a, paired.a),
        b=_facts(b, paired.b),
        num_common=len(paired.a),
        only_in_a=paired.only_in_a,
        only_in_b=paired.only_in_b,
        best_of=best_of,
        all=everything,
        best=best,
        same_rewards=same,
        differing_settings=differing,
        verdict=verdict(
            _finding(everything), _finding(best), num_prompts=len(paired.a), best_of=best_of, same_rewards=same
        ),
        notes=_notes(a, b, paired, best_of=best_of),
    )


def differing_settings(a: dict[str, Any], b: dict[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """`section.field` -> (A's value, B's value), where they differ."""
    found: dict[str, tuple[Any, Any]] = {}
    for key in sorted({*a, *b}):
        old, new = a.get(key), b.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found |= differing_settings(old, new, f"{prefix}{key}.")
        elif old != new:
            found[f"{prefix}{key}"] = (old, new)
    return found


def _best(prompt: PromptCandidates) -> tuple[float, ...]:
    empty = [not has_answer(text) for text in prompt.texts]
    return (prompt.rewards[pick_best(prompt.rewards, truncated=prompt.truncated, empty=empty)],)


def _functions(side: Side) -> str:
    return ", ".join(f"{name}={weight:g}" for name, weight in side.reward_functions or ()) or "none"


def _rewards(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]], *, seed: int) -> Rewards:
    """Args: a, b: N prompts of some rewards each."""
    flat_a, flat_b = list(chain(*a)), list(chain(*b))
    paired = statistics.paired_difference([sum(p) / len(p) for p in a], [sum(p) / len(p) for p in b])
    ks, ks_pvalue = statistics.ks_test(flat_a, flat_b)
    swap_pvalue, num_swaps = statistics.swap_test(a, b, seed=seed)
    edges = statistics.bin_edges([*flat_a, *flat_b], num_bins=NUM_BINS)
    return Rewards(
        a=_distribution(flat_a),
        b=_distribution(flat_b),
        difference=Difference(
            mean=paired.mean,
            stderr=paired.stderr,
            mean_pvalue=paired.pvalue,
            ks=ks,
            ks_pvalue=ks_pvalue,
            swap_pvalue=swap_pvalue,
            num_swaps=num_swaps,
        ),
        histogram=Histogram(
            edges=edges, a=statistics.bin_shares(flat_a, edges), b=statistics.bin_shares(flat_b, edges)
        ),
    )


def _distribution(values: Sequence[float]) -> Distribution:
    found = statistics.summary(values)
    return Distribution(n=found.n, mean=found.mean, std=found.std, quantiles=found.quantiles)


def _finding(rewards: Rewards) -> Finding:
    difference = rewards.difference
    return Finding(
        mean=difference.mean,
        stderr=difference.stderr,
        mean_pvalue=difference.mean_pvalue,
        swap_pvalue=difference.swap_pvalue,
        std=rewards.a.std,
    )


def _facts(side: Side, prompts: Sequence[PromptCandidates]) -> SideFacts:
    return SideFacts(
        name=side.name,
        file=str(side.file),
        num_prompts=len(side.rows),
        num_candidates=num_candidates_text(prompts),
        settings=side.settings,
        reward_model=side.reward_model,
        completions=_completions(prompts),
    )


def _completions(prompts: Sequence[PromptCandidates]) -> Completions:
    texts = [text for prompt in prompts for text in prompt.texts]
    truncated = [flag for prompt in prompts for flag in prompt.truncated]
    tokens = np.asarray([count for prompt in prompts for count in prompt.num_tokens], dtype=np.float64)
    return Completions(
        truncated=sum(truncated) / len(truncated),
        mean_tokens=float(tokens.mean()),
        p95_tokens=float(np.quantile(tokens, 0.95)),
        mean_characters=sum(map(len, texts)) / len(texts),
        empty=sum(not has_answer(text) for text in texts) / len(texts),
        distinct=sum(len(set(prompt.texts)) / len(prompt.texts) for prompt in prompts) / len(prompts),
    )


def _notes(a: Side, b: Side, pairing: Pairing, *, best_of: str) -> list[str]:
    notes = [f"{letter}: {note}" for letter, side in (("A", a), ("B", b)) for note in side.notes]
    if pairing.only_in_a or pairing.only_in_b:
        notes.append(f"not compared: {pairing.only_in_a} prompts only in A, {pairing.only_in_b} only in B")
    counts_a, counts_b = num_candidates_text(pairing.a), num_candidates_text(pairing.b)
    if [len(p.rewards) for p in pairing.a] != [len(p.rewards) for p in pairing.b]:
        notes.append(
            f"A has {counts_a} candidates a prompt and B {counts_b}: the best is taken of the first {best_of} in both"
        )
    if not (a.reward_model and b.reward_model):
        unknown = " and ".join(name for name, side in (("A", a), ("B", b)) if not side.reward_model)
        notes.append(f"which reward model scored {unknown} is not known: rewards of two models cannot be compared")
    return notes
