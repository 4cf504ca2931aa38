"""Steps 5 and 6: rows that say the same. Of those near each other the one of highest quality x difficulty stays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from alignloop.pruning.embeddings import centred
from alignloop.pruning.items import Item
from alignloop.pruning.steps import StepResult, Tools, lacking, left, skipped
from alignloop.records import PreferenceRow
from alignloop.selection.quality import places

PEOPLE_FIRST = 2.0
"""Above any product of two numbers in (0, 1]."""


def near_duplicates_step(items: Sequence[Item], tools: Tools) -> StepResult:
    """Drop rows whose prompt says (nearly) the same words as a better row's."""
    from alignloop.selection.near_duplicates import near_duplicates

    config = tools.config.near_duplicates
    if not config.enabled:
        return skipped(items, "prune.near_duplicates.enabled is false")
    verdict = near_duplicates(
        [item.id for item in items],
        texts=[item.text if compares_row(item, config.of) else item.prompt for item in items],
        jaccard=config.jaccard,
        num_perm=config.num_perm,
        priorities=priorities(items, tools),
    )
    return left(items, verdict)


def compares_row(item: Item, of: str) -> bool:
    """Whether a row's completions are compared along with its prompt."""
    return of == "row" or (of == "auto" and isinstance(item.row, PreferenceRow) and not item.as_target)


def semantic_dedup_step(items: Sequence[Item], tools: Tools) -> StepResult:
    """Drop dialogs that mean the same as a better one of their cluster."""
    config = tools.config.semantic_dedup
    if not config.enabled:
        return skipped(items, "prune.semantic_dedup.enabled is false")
    if tools.embedding is None:
        why = "nothing embeds the rows: name an embedder, or give embeddings"
        return lacking(items, tools, step="semantic_dedup", why=why)
    from alignloop.selection.semantic_dedup import semantic_dedup

    vectors = tools.embedding.dialogs(items)
    found = semantic_dedup(
        centred(vectors) if tools.embedding.centred else vectors,
        priorities=priorities(items, tools),
        threshold=config.threshold,
        rows_per_cluster=config.rows_per_cluster,
        compare_to=config.compare_to,
        num_nearest=config.nearest_clusters,
        seed=tools.seed,
    )
    clustered = [item.with_(cluster=int(label)) for item, label in zip(items, found.clusters.tolist(), strict=True)]
    result = left(clustered, found.verdicts([item.id for item in items]))
    cosines = {items[twin.dropped].id: twin.cosine for twin in found.twins}
    drops = tuple(replace(drop, cosine=cosines[drop.id]) for drop in result.dropped)
    return replace(result, dropped=drops)


def priorities(items: Sequence[Item], tools: Tools) -> list[float]:
    """Quality x difficulty (section 4.2.3), both in (0, 1]; people's rows come before all.

    Raw rewards have no zero, so quality enters as the share of rows whose reward is not higher; where the judge was
    asked, too, its share of the maximum counts where it is more. What nothing is known of counts as 1.
    """
    by = tools.config.quality.by
    place = places(item.reward for item in items if item.reward is not None)
    result = []
    for item in items:
        if item.from_people:
            result.append(PEOPLE_FIRST)
            continue
        scores = [place[item.reward]] if item.reward is not None and by != "judge" else []
        scores += [item.best_rating] if item.best_rating is not None else []
        difficulty = 1.0 if item.priority_difficulty is None else item.priority_difficulty
        result.append(max(scores, default=1.0) * difficulty)
    return result
