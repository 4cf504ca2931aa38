"""Data pruning (section 4.2.3): clean, quality, difficulty, semantic deduplication. Every drop has a reason.

best-of-K rows --clean--> --quality--> --difficulty--> --semantic_dedup--> SFT rows
chosen/edited rows --clean----------------------------------^
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from alignloop.artifacts import Artifact
from alignloop.config.pruning import CleanConfig, PruneConfig, SemanticDedupConfig
from alignloop.data.jsonl import dump_jsonl, load_jsonl
from alignloop.errors import DataError
from alignloop.records import DroppedRow, Message, PreferenceRow, SelectedRow, SftRow, Source
from alignloop.selection.cleaning import CleanRow, clean
from alignloop.selection.difficulty import pass_rate_window
from alignloop.selection.quality import top_fraction
from alignloop.selection.semantic_dedup import semantic_dedup
from alignloop.selection.verdicts import Drop
from alignloop.stage import Outputs as StageOutputs
from alignloop.stage import Stage, StageContext
from alignloop.stages.bootstrap import preferred

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RULES = ("clean", "quality", "difficulty", "semantic_dedup")
EMBED_BATCH_TOKENS = 16_384


@dataclass(frozen=True)
class Inputs:
    selected: Artifact
    preferences: Artifact
    """The round's batch: its chosen/edited completions join."""
    policy: Artifact
    """Embeds the dialogs."""


@dataclass(frozen=True, kw_only=True)
class Outputs(StageOutputs):
    rows: Artifact
    dropped: Artifact


@dataclass(frozen=True)
class Item:
    """A row on its way through the steps; people's rows carry no reward."""

    row: SftRow
    truncated: bool = False
    reward: float | None = None
    pass_rate: float | None = None


def run(config: PruneConfig, inputs: Inputs, ctx: StageContext) -> Outputs:
    items = [_item(row) for row in load_jsonl(inputs.selected.path, SelectedRow)]
    items += _human_items(inputs.preferences, num_rows=config.human_rows, seed=ctx.seed)
    num_in = len(items)
    dropped: list[tuple[str, Drop]] = []
    if config.clean.enabled:
        items, drops = clean_items(items, config.clean)
        dropped += [("clean", drop) for drop in drops]
    if config.quality.enabled:
        items, drops = best_quality(items, config.quality.top_fraction)
        dropped += [("quality", drop) for drop in drops]
    if config.difficulty.enabled:
        window = pass_rate_window(
            [item.row.id for item in items],
            pass_rates=[item.pass_rate for item in items],
            min_pass_rate=config.difficulty.min_pass_rate,
            max_pass_rate=config.difficulty.max_pass_rate,
        )
        items = [items[index] for index in window.kept]
        dropped += [("difficulty", drop) for drop in window.dropped]
    if config.semantic_dedup.enabled and items:
        with ctx.activity("embedding"):
            items, drops = _deduplicate(items, config.semantic_dedup, inputs.policy, ctx)
        dropped += [("semantic_dedup", drop) for drop in drops]
    if not items:
        raise DataError(f"prune dropped all {num_in} rows: {_tally(dropped)}; loosen the steps under `prune`")
    dump_jsonl(ctx.dir / "rows.jsonl", [item.row for item in items])
    dump_jsonl(ctx.dir / "dropped.jsonl", [_dropped_row(rule, drop) for rule, drop in dropped])
    return Outputs(
        rows=Artifact.of(ctx.dir / "rows.jsonl"),
        dropped=Artifact.of(ctx.dir / "dropped.jsonl"),
        counts={"in": num_in, "kept": len(items), "dropped": len(dropped), **_tally(dropped)},
    )


def _item(row: SelectedRow) -> Item:
    sft = SftRow.model_construct(  # an empty completion is `clean`'s to drop, with a reason
        id=row.id,
        messages=[*row.messages, Message(role="assistant", content=row.completion)],
        origin="best_of_k",
        quality_score=row.reward,
        difficulty_score=1.0 - row.pass_rate,
        source=Source(file=f"round-{row.round:02d}"),
        meta=row.meta,
    )
    return Item(sft, truncated=row.finish_reason == "length", reward=row.reward, pass_rate=row.pass_rate)


def _human_items(preferences: Artifact, *, num_rows: int, seed: int) -> list[Item]:
    rows = list(load_jsonl(preferences.path, PreferenceRow))
    if 0 <= num_rows < len(rows):
        rows = random.Random(seed).sample(rows, num_rows)
    return [Item(preferred(row)) for row in rows]


def clean_items(items: Sequence[Item], config: CleanConfig) -> tuple[list[Item], Sequence[Drop]]:
    """Rule-based cleaning of best-of-K and people's rows alike."""
    verdict = clean(
        [CleanRow(item.row.id, item.row.messages[-1].content, item.truncated, item.reward) for item in items],
        max_apology_share=config.max_apology_share,
        max_exclamations_per_100_words=config.max_exclamations_per_100_words,
        max_emojis_per_100_words=config.max_emojis_per_100_words,
        max_repeated_ngram_share=config.max_repeated_ngram_share,
        drop_truncated=config.drop_truncated,
    )
    return [items[index] for index in verdict.kept], verdict.dropped


def best_quality(items: Sequence[Item], fraction: float) -> tuple[list[Item], Sequence[Drop]]:
    """The top fraction by raw reward over the whole round; rows without a reward pass."""
    rewarded = [(index, item.reward) for index, item in enumerate(items) if item.reward is not None]
    verdict = top_fraction(
        [items[index].row.id for index, _ in rewarded],
        quality_scores=[reward for _, reward in rewarded],
        fraction=fraction,
    )
    lost = {index for index, _ in rewarded} - {rewarded[place][0] for place in verdict.kept}
    return [item for index, item in enumerate(items) if index not in lost], verdict.dropped


def _deduplicate(
    items: Sequence[Item], config: SemanticDedupConfig, policy: Artifact, ctx: StageContext
) -> tuple[list[Item], Sequence[Drop]]:
    from alignloop.chat.load import load_format
    from alignloop.engines.embedder import embed_dialogs

    chat = load_format(policy.path)
    ctx.engine.sleep()
    embeddings = embed_dialogs(
        [chat.dialog(item.row.messages).token_ids for item in items],
        checkpoint=policy.path,
        batch_tokens=EMBED_BATCH_TOKENS,
        progress=ctx.progress,
    )
    verdict = semantic_dedup(
        centred(embeddings),
        priorities=priorities(items),
        threshold=config.threshold,
        rows_per_cluster=config.rows_per_cluster,
        compare_to=config.compare_to,
        seed=ctx.seed,
    )
    answer = verdict.verdicts([item.row.id for item in items])
    return [items[index] for index in answer.kept], answer.dropped


def centred(embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    """Without their mean: a language model's mean-pooled states share one large direction that hides all else."""
    result: NDArray[np.float32] = embeddings - embeddings.mean(axis=0, keepdims=True)
    return result


def priorities(items: Sequence[Item]) -> list[float]:
    """Quality x difficulty (section 4.2.3), both in (0, 1]; people's rows come before all.

    Raw rewards have no zero, so quality enters as the share of rows whose reward is not higher.
    """
    rewards = sorted(item.reward for item in items if item.reward is not None)
    place = {reward: (index + 1) / len(rewards) for index, reward in enumerate(rewards)}
    result = []
    for item in items:
        if item.reward is None or item.pass_rate is None:
            result.append(2.0)
        else:
            result.append(place[item.reward] * max(1.0 - item.pass_rate, 1e-3))
    return result


def _tally(dropped: Sequence[tuple[str, Drop]]) -> dict[str, int]:
    names = [rule for rule, _ in dropped]
    return {f"dropped_by_{rule}": names.count(rule) for rule in RULES}


def _dropped_row(rule: str, drop: Drop) -> DroppedRow:
    return DroppedRow(id=drop.id, stage="prune", rule=rule, reason=drop.reason, twin=drop.twin)


STAGE = Stage("prune", Inputs, Outputs, run)
