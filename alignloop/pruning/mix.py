"""Step 8, the mix (4.2.2, table 7): topics or sources stand in the data by share of the rows, or by epochs."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePath

from alignloop.config.pruning import MixConfig, TopicConfig
from alignloop.errors import DataError, did_you_mean
from alignloop.pruning.items import Item
from alignloop.pruning.step import Pruned, StepResult, Tools, drop, pruned, skipped
from alignloop.records import SelectedRow

NONE = "(none)"
SAMPLED, ANNOTATED = "sampled", "annotated"
_ROUND = re.compile(r"round-\d+")


@dataclass(frozen=True)
class Mixed:
    """What a mix makes of N rows.

    Attributes:
        absent: groups that are asked for and have no row: the others' shares are kept among themselves.
        copies: index of a row that occurs more than once -> how often it occurs.
    """

    pruned: Pruned
    absent: tuple[str, ...]
    copies: dict[int, int] = field(default_factory=dict)


def mix_by_share(ids: Sequence[str], *, groups: Sequence[str | None], shares: Mapping[str, float], seed: int) -> Mixed:
    """The largest draw in which each named group has its share; the rest is for all other rows together.

    Rows are drawn from each group with the seed, whatever the other groups are. Where shares add up to 1, rows of other
    groups are dropped. Groups without rows are left out, and so is the rest where there are no other rows: what remains
    keeps its proportions. `groups` are N topics or sources, None where a row has none; each share is above 0, and
    together they are at most 1.
    """
    members = _members(groups)
    others = [index for group, rows in members.items() if group not in shares for index in rows]
    rest = 1.0 - sum(shares.values())
    wanted = {group: (share, members[group]) for group, share in shares.items() if group in members}
    if others and rest > 1e-9:
        wanted[""] = (rest, others)
    scale = sum(share for share, _ in wanted.values())
    total = min((len(rows) * scale / share for share, rows in wanted.values()), default=0.0)
    reasons: dict[int, str] = {}
    for group, (share, rows) in wanted.items():
        part = share / scale
        num_kept = math.floor(round(total * part, 6))
        label = f"{group!r}" if group else "all others"
        reason = f"{label} may be {part:.2%} of the rows: {num_kept:,} of its {len(rows):,} are drawn"
        reasons |= dict.fromkeys(set(rows) - _drawn(rows, num_kept, seed=seed, group=group), reason)
    if "" not in wanted:
        reasons |= {index: f"{groups[index] or NONE!r} has no share in the mix" for index in others}
    absent = tuple(group for group in shares if group not in members)
    return Mixed(_pruned(ids, reasons, num_absent_groups=len(absent)), absent)


def mix_by_epochs(ids: Sequence[str], *, groups: Sequence[str | None], epochs: Mapping[str, float], seed: int) -> Mixed:
    """Rows of a named group occur that often, others once: 2.5 is each twice, and half of them, drawn, a third time."""
    members = _members(groups)
    reasons: dict[int, str] = {}
    copies: dict[int, int] = {}
    for group, times in epochs.items():
        rows = members.get(group, [])
        whole = math.floor(times)
        more = _drawn(rows, math.floor(round((times - whole) * len(rows), 6)), seed=seed, group=group)
        reason = f"{group!r} occurs for {times:g} epochs: {len(more):,} of its {len(rows):,} rows are drawn"
        occurs = {index: whole + (index in more) for index in rows}
        reasons |= {index: reason for index, number in occurs.items() if number == 0}
        copies |= {index: number for index, number in occurs.items() if number > 1}
    absent = tuple(group for group in epochs if group not in members)
    num_repeated = sum(copies.values()) - len(copies)
    return Mixed(_pruned(ids, reasons, num_repeated=num_repeated, num_absent_groups=len(absent)), absent, copies)


def _members(groups: Sequence[str | None]) -> dict[str, list[int]]:
    """Group -> indexes of its rows, groups and rows in input order."""
    members: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(NONE if group is None else group, []).append(index)
    return members


def _drawn(rows: Sequence[int], number: int, *, seed: int, group: str) -> set[int]:
    """A draw that does not change where other groups do."""
    return set(random.Random(f"{seed}/{group}").sample(rows, number))


def _pruned(ids: Sequence[str], reasons: Mapping[int, str], **metrics: float) -> Pruned:
    drops = {index: drop(ids[index], "mix", reason) for index, reason in reasons.items()}
    return pruned(ids, drops, metrics={name: float(value) for name, value in metrics.items()})


def copy_id(row_id: str, number: int, taken: set[str]) -> str:
    """`<id>~2` for a row's second occurrence, or the next number not in `taken`, to which the new id is added."""
    while f"{row_id}~{number}" in taken:
        number += 1
    taken.add(f"{row_id}~{number}")
    return f"{row_id}~{number}"


def mix_step(items: Sequence[Item], tools: Tools) -> StepResult:
    """Draw or repeat rows to the shares or epochs of the recipe."""
    config = tools.config.mix
    groups = [_group_of(item, config) for item in items]
    if not config.wanted and tools.demonstrations.wanted:
        config, groups = tools.demonstrations, [item.demonstration for item in items]
    if not config.wanted:
        return skipped(items, "prune.mix names no shares and no epochs")
    if tools.lenient:  # in a run, the check has looked through all rounds' rows: this one may lack a topic
        _check_groups(config, tools.config.topic, found={group for group in groups if group is not None})
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
        kept += [replace(item, id=copy_id(item.id, number, taken)) for number in range(2, times + 1)]
    notes = tuple(f"mix: no row is of {config.by} {group!r}, which the recipe names" for group in mixed.absent)
    repeated = len(kept) - len(mixed.pruned.kept)
    return StepResult(kept, mixed.pruned.dropped, mixed.pruned.metrics, notes=notes, repeated=repeated)


def _group_of(item: Item, config: MixConfig) -> str | None:
    """A row's topic, or its file's name; rows that the loop made have no file: `sampled`, or `annotated` in a round."""
    if config.by == "source":
        if isinstance(item.row, SelectedRow):
            return SAMPLED
        return ANNOTATED if _ROUND.fullmatch(item.source.file) else PurePath(item.source.file).name
    return item.topic if config.by == "topic" else item.fine_topic


def _check_groups(config: MixConfig, topic: TopicConfig, *, found: set[str]) -> None:
    """Raise a DataError where the recipe names an unknown group."""
    known = set(found)
    if config.by == "topic" and topic.by == "judge":
        known |= set(topic.labels)
    if config.by == "source":
        known |= {SAMPLED, ANNOTATED}
    unknown = sorted({*config.shares, *config.epochs} - known)
    if unknown:
        listed = ", ".join(sorted(known)[:20]) or "none"
        hint = " ".join([did_you_mean(unknown[0], sorted(known), quote="'"), f"known: {listed}"]).lstrip()
        raise DataError(f"prune.mix: no row is of {config.by} {unknown[0]!r}; {hint}")
