"""What the benchmarks do not show."""

from __future__ import annotations

from alignloop.config.base import PositiveInt, Section


class MeasureConfig(Section):
    """Measures on held-out preferences, round over round (docs/measures.md)."""

    enabled: bool = True
    num_prompts: PositiveInt = 64
    """Held-out prompts that are answered, the same in every round; fewer where fewer are held out."""
    num_candidates: PositiveInt = 4
    """Completions sampled for each beside the greedy one: the best of them, a random one, and the divergence from the
    base come from these."""
    max_tokens: PositiveInt | None = None
    """Longest answer; None: `sample.max_tokens`."""
    judge: bool = True
    """Whether the recipe's judge, where it has one, compares the answers with those of the last round and the base."""
