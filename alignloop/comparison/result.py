"""A comparison as it is written to comparison.json; terminal and page show this and nothing else."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from alignloop.sampling.reward_statistics import Summary

COMPARISON_VERSION = 1


class Part(BaseModel):
    """Base of all parts of the file."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


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

    a: Summary
    b: Summary
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
