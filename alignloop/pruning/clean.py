"""Step 1: rules."""

from __future__ import annotations

from collections.abc import Sequence

from alignloop.pruning.items import Item
from alignloop.pruning.steps import StepResult, Tools, left, skipped
from alignloop.selection.cleaning import CleanRow, clean, matching


def clean_step(items: Sequence[Item], tools: Tools) -> StepResult:
    """Drop what breaks a rule, and the excess of over-used patterns."""
    config = tools.config.clean
    if not config.enabled:
        return skipped(items, "prune.clean.enabled is false")
    rows = [CleanRow(item.id, item.completion, item.truncated, item.reward, item.asked) for item in items]
    verdict = clean(
        rows,
        max_apology_share=config.max_apology_share,
        max_exclamations_per_100_words=config.max_exclamations_per_100_words,
        max_emojis_per_100_words=config.max_emojis_per_100_words,
        max_repeated_ngram_share=config.max_repeated_ngram_share,
        drop_truncated=config.drop_truncated,
        language=config.language_mismatch,
        balance=[matching(pattern.name, pattern.regex, pattern.max_share) for pattern in config.balance],
    )
    return left(items, verdict)
