"""Step 8: the mix of topics or sources, by share or by epochs."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import PurePath

from alignloop.config.pruning import MixConfig, TopicConfig
from alignloop.errors import DataError
from alignloop.pruning.items import Item
from alignloop.pruning.steps import StepResult, Tools, skipped
from alignloop.records import SelectedRow
from alignloop.selection.mix import copy_id, mix_by_epochs, mix_by_share

SAMPLED, ANNOTATED = "sampled", "annotated"
_ROUND = re.compile(r"round-\d+")


def mix_step(items: Sequence[Item], tools: Tools) -> StepResult:
    """Draw or repeat rows so that topics or sources stand as the recipe wants them."""
    config = tools.config.mix
    if not config.wanted:
        return skipped(items, "prune.mix names no shares and no epochs")
    groups = [group_of(item, config) for item in items]
    if tools.lenient:  # in a run, preflight has looked through all rounds' rows: this one may lack a topic
        check_groups(config, tools.config.topic, found={group for group in groups if group is not None})
    ids = [item.id for item in items]
    if config.shares:
        mixed = mix_by_share(ids, groups=groups, shares=config.shares, seed=tools.seed)
    else:
        mixed = mix_by_epochs(ids, groups=groups, epochs=config.epochs, seed=tools.seed)
    taken = set(ids)
    kept: list[Item] = []
    for index in mixed.pruned.kept:
        item, times = items[index], mixed.copies.get(index, 1)
        kept.append(item)
        kept += [item.with_(id=copy_id(item.id, number, taken)) for number in range(2, times + 1)]
    notes = tuple(f"mix: no row is of {config.by} {group!r}, which the recipe names" for group in mixed.absent)
    repeated = len(kept) - len(mixed.pruned.kept)
    return StepResult(kept, mixed.pruned.dropped, mixed.pruned.metrics, notes=notes, repeated=repeated)


def group_of(item: Item, config: MixConfig) -> str | None:
    """The group of a row: its topic, or the name of the file it comes from.

    Rows that the loop made come from no file: `sampled` ones, and those `annotated` in a round.
    """
    if config.by == "source":
        if isinstance(item.row, SelectedRow):
            return SAMPLED
        return ANNOTATED if _ROUND.fullmatch(item.source.file) else PurePath(item.source.file).name
    return item.topic if config.by == "topic" else item.fine_topic


def check_groups(config: MixConfig, topic: TopicConfig, *, found: set[str]) -> None:
    """Every group that the recipe names is one that can be.

    Args:
        found: groups that rows have.

    Raises:
        DataError: an unknown one, with those that are known.
    """
    known = set(found)
    if config.by == "topic" and topic.by == "judge":
        known |= set(topic.labels)
    if config.by == "source":
        known |= {SAMPLED, ANNOTATED}
    unknown = sorted({*config.shares, *config.epochs} - known)
    if unknown:
        near = difflib.get_close_matches(unknown[0], sorted(known), n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        listed = ", ".join(sorted(known)[:20]) or "none"
        raise DataError(f"prune.mix: no row is of {config.by} {unknown[0]!r}; {hint}known: {listed}")
