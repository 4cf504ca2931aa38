"""The mix of topics or sources (The Llama 3 Herd of Models, 4.2.2 and table 7): by share of the rows, or by epochs."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from alignloop.selection.verdicts import Drop, Pruned, pruned

NONE = "(none)"
"""The group of rows that have no topic."""


@dataclass(frozen=True)
class Mixed:
    """What a mix makes of N rows.

    Attributes:
        pruned: which rows stay at all.
        copies: index of a row that occurs more than once -> how often it occurs.
        absent: groups that are asked for and have no row: the others' shares are kept among themselves.
    """

    pruned: Pruned
    copies: dict[int, int]
    absent: tuple[str, ...]


def mix_by_share(ids: Sequence[str], *, groups: Sequence[str | None], shares: Mapping[str, float], seed: int) -> Mixed:
    """The largest draw in which each named group has its share; the rest is for all other rows together.

    Rows are drawn from each group with the seed, without regard to the other groups. Where shares add up to 1, rows of
    other groups are dropped. Groups without rows are left out, and so is the rest where there are no other rows: what
    remains keeps its proportions.

    Args:
        ids: N row ids.
        groups: N topics or sources; None where a row has none.
        shares: group -> share, each above 0, together at most 1.

    Raises:
        ValueError: shares out of range.
    """
    if any(not 0.0 < share <= 1.0 for share in shares.values()) or sum(shares.values()) > 1.0 + 1e-9:
        raise ValueError(f"shares {dict(shares)}: each must lie in (0, 1], and they may add up to 1 at most")
    members = _members(groups)
    named = {group: members[group] for group in shares if group in members}
    others = [index for group, rows in members.items() if group not in shares for index in rows]
    rest = 1.0 - sum(shares.values())
    wanted = {group: (shares[group], rows) for group, rows in named.items()}
    if others and rest > 1e-9:
        wanted[""] = (rest, others)
    scale = sum(share for share, _ in wanted.values())
    total = min((len(rows) * scale / share for share, rows in wanted.values()), default=0.0)
    drops: dict[int, Drop] = {}
    for group, (share, rows) in wanted.items():
        part = share / scale
        num_kept = math.floor(round(total * part, 6))
        label = f"{group!r}" if group else "all others"
        reason = f"{label} may be {part:.2%} of the rows: {num_kept:,} of its {len(rows):,} are drawn"
        for index in sorted(set(rows) - set(_drawn(rows, num_kept, seed=seed, group=group))):
            drops[index] = Drop(ids[index], "mix", reason)
    if "" not in wanted:
        for index in others:
            reason = f"{groups[index] or NONE!r} has no share in the mix"
            drops[index] = Drop(ids[index], "mix", reason)
    absent = tuple(group for group in shares if group not in members)
    return Mixed(pruned(ids, drops, metrics={"num_absent_groups": float(len(absent))}), {}, absent)


def mix_by_epochs(ids: Sequence[str], *, groups: Sequence[str | None], epochs: Mapping[str, float], seed: int) -> Mixed:
    """Rows of a named group occur that many times: 2.5 is each twice and half of them, drawn, a third time.

    Rows of other groups occur once.

    Raises:
        ValueError: a number of epochs that is negative or not finite.
    """
    if any(not (math.isfinite(times) and times >= 0.0) for times in epochs.values()):
        raise ValueError(f"epochs {dict(epochs)}: each must be 0 or more")
    members = _members(groups)
    drops: dict[int, Drop] = {}
    copies: dict[int, int] = {}
    for group, times in epochs.items():
        rows = members.get(group, [])
        whole = math.floor(times)
        more = set(_drawn(rows, math.floor(round((times - whole) * len(rows), 6)), seed=seed, group=group))
        for index in rows:
            occurs = whole + (index in more)
            if occurs == 0:
                reason = f"{group!r} occurs for {times:g} epochs: {len(more):,} of its {len(rows):,} rows are drawn"
                drops[index] = Drop(ids[index], "mix", reason)
            elif occurs > 1:
                copies[index] = occurs
    absent = tuple(group for group in epochs if group not in members)
    metrics = {"num_repeated": float(sum(copies.values()) - len(copies)), "num_absent_groups": float(len(absent))}
    return Mixed(pruned(ids, drops, metrics=metrics), copies, absent)


def copy_id(row_id: str, number: int, taken: set[str]) -> str:
    """`<id>~2` for a row's second occurrence; what stands in `taken` is passed over, and the new id joins it."""
    while f"{row_id}~{number}" in taken:
        number += 1
    taken.add(f"{row_id}~{number}")
    return f"{row_id}~{number}"


def _members(groups: Sequence[str | None]) -> dict[str, list[int]]:
    """Group -> indexes of its rows, groups and rows in input order."""
    members: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(NONE if group is None else group, []).append(index)
    return members


def _drawn(rows: Sequence[int], number: int, *, seed: int, group: str) -> list[int]:
    """A draw that does not change where other groups do."""
    return random.Random(f"{seed}/{group}").sample(rows, number)
