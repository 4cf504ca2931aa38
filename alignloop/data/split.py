"""Which rows are held out, and which a round sees."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal, TypeVar

from alignloop.errors import DataError
from alignloop.records import Message, PreferenceRow, PromptRow, SftRow

T = TypeVar("T")
RowT = TypeVar("RowT", PreferenceRow, PromptRow, SftRow)
_SPAN = 2**64


def heldout_split(
    rows: Sequence[PreferenceRow], *, fraction: float, max_heldout: int, seed: int
) -> tuple[list[PreferenceRow], list[PreferenceRow]]:
    """(training rows, held-out rows), each in input order.

    The side depends on a hash of the prompt's text (case and spacing aside), so all rows of a prompt lie on one side,
    and new rows never move old ones, but for `max_heldout`, which keeps the prompts of lowest hash. Where the hash
    holds nothing out, the prompt of lowest hash is: a fraction above 0 gives at least one row.

    Args:
        fraction: share of prompts held out, in expectation; 0 holds nothing out.
        max_heldout: at most this many rows; a prompt with more rows than are left stays in training.

    Raises:
        DataError: everything would be held out.
    """
    keys = [prompt_key(row.messages, seed=seed) for row in rows]
    num_rows = dict.fromkeys(sorted(set(keys)), 0)
    for key in keys:
        num_rows[key] += 1
    heldout: set[int] = set()
    left = max_heldout
    for key, count in num_rows.items():
        wanted = key < fraction * _SPAN or (fraction > 0 and not heldout and len(num_rows) > 1)
        if wanted and count <= left:
            heldout.add(key)
            left -= count
    train = [row for row, key in zip(rows, keys, strict=True) if key not in heldout]
    if rows and not train:
        raise DataError(
            f"data.heldout_fraction = {fraction} holds out all {len(rows)} preference rows and leaves none to train "
            "on: lower it or add rows"
        )
    return train, [row for row, key in zip(rows, keys, strict=True) if key in heldout]


def prompt_key(messages: Sequence[Message], *, seed: int) -> int:
    """A number in [0, 2**64) that depends on the dialog's text alone, case and spacing aside."""
    text = "\x1f".join(f"{m.role}\x1e{' '.join(m.content.casefold().split())}" for m in messages)
    return int.from_bytes(hashlib.sha256(f"{seed}\x1d{text}".encode()).digest()[:8], "big")


def heldout_of_files(
    rows: Sequence[PreferenceRow], *, fraction: float, max_heldout: int, seed: int
) -> tuple[list[PreferenceRow], list[PreferenceRow]]:
    """(training rows, held-out rows) where each file is a round's batch: only the first file's rows are held out.

    Rounds stay comparable where what they are measured on stays the same, whatever files come later. Later rows of a
    held-out prompt are in neither list.

    Raises:
        DataError: as `heldout_split`.
    """
    first = [row for row in rows if row.source.file == rows[0].source.file]
    train, heldout = heldout_split(first, fraction=fraction, max_heldout=max_heldout, seed=seed)
    later, _ = without_prompts(rows[len(first) :], heldout)
    return train + later, heldout


def without_prompts(rows: Sequence[RowT], heldout: Sequence[PreferenceRow]) -> tuple[list[RowT], list[RowT]]:
    """(rows whose prompt no held-out row has, the others), each in input order."""
    held = {prompt_key(row.messages, seed=0) for row in heldout}
    kept: list[RowT] = []
    others: list[RowT] = []
    for row in rows:
        (others if prompt_key(asked(row), seed=0) in held else kept).append(row)
    return kept, others


def asked(row: PreferenceRow | PromptRow | SftRow) -> list[Message]:
    """The dialog up to the completion."""
    return row.messages[:-1] if isinstance(row, SftRow) else row.messages


def windowed(rows: Sequence[T], *, round: int, window: int | None, split_rounds: int) -> list[T]:
    """The rows that came in in the last `window` rounds up to `round`, as `round_batch` splits them; None: all."""
    if window is None or not rows:
        return list(rows)
    num_shares = min(split_rounds, len(rows))
    first, last = (min(number, num_shares) for number in (max(1, round - window + 1), round))
    return list(rows[(first - 1) * len(rows) // num_shares : last * len(rows) // num_shares])


def round_batch(
    rows: Sequence[T], *, round: int, batches: Literal["split", "files", "all"], split_rounds: int
) -> list[T]:
    """The rows that are new in `round` (counted from 1).

    `split`: consecutive shares in file order, as even as can be; rounds past `split_rounds` see the last share
    again, and where there are fewer rows than shares each has one row. `files`: the rows of the file of the same
    place, preferences all; rounds past the last file see it again. `all`: every row in every round.
    """
    assert min(round, split_rounds) >= 1, "rounds are counted from 1"
    if batches == "all" or not rows:
        return list(rows)
    if batches == "files":
        sources = [row.source.file for row in rows]  # type: ignore[attr-defined]
        names = list(dict.fromkeys(sources))
        wanted = names[min(round, len(names)) - 1]
        return [row for row, name in zip(rows, sources, strict=True) if name == wanted]
    num_shares = min(split_rounds, len(rows))
    share = min(round, num_shares)
    return list(rows[(share - 1) * len(rows) // num_shares : share * len(rows) // num_shares])
