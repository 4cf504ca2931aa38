"""Prompt groups -> packed rows (DESIGN: packed rows).

One row, two groups; `p` prompt, `c`/`d` the completions of the first, `e` that of the second:

    token      p0 p1 | p2 c0 c1 | p2 d0 | q0 | q1 e0 e1
    position    0  1 |  2  3  4 |  2  3 |  0 |  1  2  3
    segment     0  0 |  1  1  1 |  2  2 |  0 |  1  1  1
    target     p1  - | c0 c1  - | d0  - |  - | e0 e1  -

The first token of a completion is predicted at the prompt's last token. Each completion therefore begins with its own
copy of that token, and the shared part ends one token earlier: so every target of a completion lies in its own
segment and no loss has to know. The price is one token per completion after the first.

In `separate` mode each completion has a row of its own with a copy of the prompt: plain causal rows, for
architectures on which packed rows are not exact. In `joined` mode a group is one plain causal sequence, as a reward
model may read it: no copy, positions count on, and a completion sees all that is before it. Only last tokens are read
there, so no token is a target:

    token      p0 p1 | p2 c0 c1 | d0
    position    0  1 |  2  3  4 |  5

Losses see the same `RowBatch` in all modes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from alignloop.packing.groups import PromptGroup

LayoutMode = Literal["packed", "separate", "joined"]

ROW_MULTIPLE = 128
"""Row lengths are a multiple of this, which is the block of FlexAttention's masks."""
MIN_ROW_TOKENS = 512
"""Short groups share rows of this size: matrix products of a few tokens leave a processor idle."""

NO_COMPLETION = -1


@dataclass(frozen=True, eq=False)
class Piece:
    """A group (packed, joined), or one of its completions with its prompt (separate), as arrays of L tokens.

    Attributes:
        token_ids, position_ids, segments: [L]; segment 0 is the prompt, k the piece's k-th completion.
        target_ids: [L] the token predicted at each position; meaningless where not in loss_mask.
        loss_mask, formatting_mask: [L] whether the target is trained, and whether it is a formatting token.
        target_completion: [L] the completion the target belongs to (index within the piece), -1 in the prompt.
        last_index: [C] position of each completion's last token in the piece.
        numbers, ranks: [C] which completion of the group each is, and its rank.
    """

    token_ids: NDArray[np.int64]
    position_ids: NDArray[np.int64]
    segments: NDArray[np.int64]
    target_ids: NDArray[np.int64]
    loss_mask: NDArray[np.bool_]
    formatting_mask: NDArray[np.bool_]
    target_completion: NDArray[np.int64]
    last_index: NDArray[np.int64]
    numbers: NDArray[np.int64]
    ranks: NDArray[np.int64]

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True)
class PlacedPiece:
    """A piece in a row: `start` is its first column, `group` the index of its group among those laid out."""

    piece: Piece
    group: int
    start: int


Row = tuple[PlacedPiece, ...]


@dataclass(frozen=True)
class RowBundle:
    """Rows that must share a forward pass because they hold completions of one group: one row when packed."""

    rows: tuple[Row, ...]

    @property
    def num_tokens(self) -> int:
        """Of the longest row."""
        return max(row[-1].start + row[-1].piece.num_tokens for row in self.rows)

    def num_rows(self, row_tokens: int) -> int:
        """Rows of `row_tokens` that hold as much: more than one where a group is longer than a row."""
        return len(self.rows) * -(-self.num_tokens // row_tokens)


def layout_group(group: PromptGroup, *, mode: LayoutMode = "packed") -> tuple[Piece, ...]:
    """One piece with all completions (packed, joined), or one piece a completion (separate)."""
    numbers = range(len(group.completions))
    if mode == "separate":
        return tuple(_piece(group, (number,)) for number in numbers)
    return (_piece(group, tuple(numbers), joined=mode == "joined"),)


def packed_num_tokens(group: PromptGroup) -> int:
    """Tokens in a packed row, copies of the prompt's last token included."""
    return group.num_tokens - 1 + len(group.completions)


def _piece(group: PromptGroup, numbers: tuple[int, ...], *, joined: bool = False) -> Piece:
    completions = [group.completions[number] for number in numbers]
    # What each completion begins with: the prompt's last token, but joined ones go on where the last one ended.
    heads = [group.prompt_ids[-1:] if index == 0 or not joined else () for index in range(len(numbers))]
    parts = [(*head, *completion.token_ids) for head, completion in zip(heads, completions, strict=True)]
    shared, lengths = len(group.prompt_ids) - 1, [len(part) for part in parts]
    token_ids = np.array([*group.prompt_ids[:-1], *chain.from_iterable(parts)], dtype=np.int64)
    segments = np.repeat(np.arange(len(numbers) + 1), [shared, *lengths])
    last_index = shared + np.cumsum(lengths) - 1
    position_ids, in_completion = np.arange(len(token_ids)), np.zeros(len(token_ids), dtype=np.bool_)
    formatting_mask = in_completion.copy()
    if not joined:
        # Every completion goes on from the prompt, whatever lies before it in the row.
        position_ids -= np.repeat([0, 0, *np.cumsum(lengths)[:-1]], [shared, *lengths])
        in_completion = segments > 0
        in_completion[last_index] = False
        formatting_mask[in_completion] = [flag for completion in completions for flag in completion.formatting_mask]
    loss_mask = in_completion.copy()
    if group.prompt_loss_mask is not None:
        loss_mask[:shared] = group.prompt_loss_mask[1:]
    return Piece(
        token_ids=token_ids,
        position_ids=position_ids,
        segments=segments,
        target_ids=np.append(token_ids[1:], 0),
        loss_mask=loss_mask,
        formatting_mask=formatting_mask,
        target_completion=np.where(in_completion, segments - 1, NO_COMPLETION),
        last_index=last_index,
        numbers=np.array(numbers, dtype=np.int64),
        ranks=np.array([group.ranks[number] for number in numbers], dtype=np.int64),
    )


def auto_row_tokens(longest: int) -> int:
    """Row size where the recipe names none: `longest` tokens fit in it, or several groups where they are short."""
    return max(MIN_ROW_TOKENS, -(-longest // ROW_MULTIPLE) * ROW_MULTIPLE)


def first_fit_decreasing(sizes: Sequence[int], *, capacity: int) -> list[list[int]]:
    """Bins of item indices: largest first, each into the first bin it fits in. Larger items get a bin of their own."""
    bins: list[list[int]] = []
    room: list[int] = []
    for item in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        for number, left in enumerate(room):
            if sizes[item] <= left:
                bins[number].append(item)
                room[number] -= sizes[item]
                break
        else:
            bins.append([item])
            room.append(capacity - sizes[item])
    return bins


def pack(groups: Sequence[PromptGroup], *, row_tokens: int, mode: LayoutMode = "packed") -> list[RowBundle]:
    """Lay groups out in rows of up to `row_tokens`; longest rows first, so that a microbatch pads little.

    A group that is longer than `row_tokens` gets a longer row of its own: nothing is ever cut.
    """
    pieces = [layout_group(group, mode=mode) for group in groups]
    if mode == "separate":
        bundles = [
            RowBundle(tuple((PlacedPiece(piece, index, 0),) for piece in own)) for index, own in enumerate(pieces)
        ]
    else:
        bins = first_fit_decreasing([piece.num_tokens for (piece,) in pieces], capacity=row_tokens)
        bundles = [RowBundle((_row([(item, pieces[item][0]) for item in items]),)) for items in bins]
    return sorted(bundles, key=lambda bundle: -bundle.num_tokens)


def _row(pieces: Sequence[tuple[int, Piece]]) -> Row:
    placed, start = [], 0
    for group, piece in pieces:
        placed.append(PlacedPiece(piece, group, start))
        start += piece.num_tokens
    return tuple(placed)


def microbatch_end(bundles: Sequence[RowBundle], *, start: int, rows: int, row_tokens: int) -> int:
    """End of the microbatch that begins at bundle `start`: tokens of at most `rows` rows, at least one bundle."""
    end, num_rows = start + 1, bundles[start].num_rows(row_tokens)
    while end < len(bundles) and num_rows + bundles[end].num_rows(row_tokens) <= rows:
        num_rows += bundles[end].num_rows(row_tokens)
        end += 1
    return end
