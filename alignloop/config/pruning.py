"""Data pruning (4.2.3)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from alignloop.config.base import Fraction, NonNegativeFloat, PositiveInt, Section


class CleanConfig(Section):
    """Rule-based cleaning (4.2.3, data cleaning)."""

    enabled: bool = True
    max_apology_share: Fraction = 0.05
    """At most this share of rows opens with an apology; the excess is dropped, lowest reward first."""
    max_exclamations_per_100_words: NonNegativeFloat = 10.0
    max_emojis_per_100_words: NonNegativeFloat = 10.0
    max_repeated_ngram_share: Fraction = 0.5
    """Drop where repeats of 4-word sequences make up more than this share of all of them."""
    drop_truncated: bool = True


class QualityConfig(Section):
    """Quality scoring (4.2.3): keep the top quartile by reward."""

    enabled: bool = True
    top_fraction: Fraction = 0.25
    """Share of rows kept, by reward over the whole round."""


class DifficultyConfig(Section):
    """Difficulty by pass rate: prompts every candidate solves teach little, those none solves are noise."""

    enabled: bool = True
    min_pass_rate: Fraction = 0.0
    max_pass_rate: Fraction = 1.0
    """Rows outside [min, max] are dropped."""


class SemanticDedupConfig(Section):
    """Semantic deduplication (4.2.3; SemDeDup)."""

    enabled: bool = True
    embedder: Literal["policy"] = "policy"
    """`policy`: mean-pooled last hidden states of the policy that sampled."""
    threshold: Annotated[float, Field(ge=-1.0, le=1.0)] = 0.95
    """Drop a row whose cosine to an earlier row of its cluster reaches this. Not given in the paper."""
    rows_per_cluster: PositiveInt = 256
    """Sets the number of k-means clusters. Not given in the paper."""
    compare_to: Literal["seen", "kept"] = "seen"
    """Earlier rows of a cluster to compare with: all `seen` (the paper) or only those `kept`."""


class PruneConfig(Section):
    """Data pruning, in this order; every drop has a reason. Its result is the round's SFT data."""

    human_rows: Annotated[int, Field(ge=-1)] = -1
    """How many of the round's chosen/edited completions join the best-of-K rows; -1: all. They are cleaned,
    but carry no reward and so pass the reward-based steps."""
    clean: CleanConfig = CleanConfig()
    quality: QualityConfig = QualityConfig()
    difficulty: DifficultyConfig = DifficultyConfig()
    semantic_dedup: SemanticDedupConfig = SemanticDedupConfig()
