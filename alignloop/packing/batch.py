"""Rows -> tensors: what the model and the losses see of a microbatch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alignloop.packing.grouped_attention import GroupSpan
from alignloop.packing.layout import NO_COMPLETION, LayoutMode, PlacedPiece, RowBundle

PADDING_GROUP = -1


@dataclass(frozen=True, eq=False)
class RowBatch:
    """B rows of L tokens that hold C completions with T trained targets.

    Packed and joined rows are laid one behind the other in a single flattened row (B = 1): only attention has to know
    where one group ends and the next begins, and no other layer computes padding. Separate rows are padded to the
    longest.

    Attributes:
        input_ids, position_ids, segments: [B, L]; segment 0 is a prompt, k a piece's k-th completion.
        pieces: [B, L] number of the piece a token belongs to within its row; -1 is padding.
        trained_index: [T] flat index (into B * L) of the positions whose target is trained.
        target_ids, formatting_mask: [T] the tokens they predict, and whether those are formatting tokens.
        completion_index: [T] the target's completion in 0 .. C - 1; -1 in prompts (`train_on: all_assistant`).
        last_index: [C] flat index of each completion's last token.
        completion_group, completion_number: [C] the group, as numbered by `pack`, and which completion of it.
        ranks: [C] 0 the best.
        spans: position of each piece in the flattened row; empty for separate rows, which are plain causal rows.
    """

    input_ids: Tensor
    position_ids: Tensor
    segments: Tensor
    pieces: Tensor
    trained_index: Tensor
    target_ids: Tensor
    formatting_mask: Tensor
    completion_index: Tensor
    last_index: Tensor
    completion_group: Tensor
    completion_number: Tensor
    ranks: Tensor
    spans: tuple[GroupSpan, ...]
    mode: LayoutMode

    def owners(self) -> list[tuple[int, int]]:
        """(group, number) of each completion."""
        return list(zip(self.completion_group.tolist(), self.completion_number.tolist(), strict=True))

    def to(self, device: torch.device) -> RowBatch:
        values = ((f.name, getattr(self, f.name)) for f in fields(self))
        moved: dict[str, Any] = {name: value.to(device) for name, value in values if isinstance(value, Tensor)}
        return replace(self, **moved)


def collate(bundles: Sequence[RowBundle], *, pad_token_id: int, mode: LayoutMode, length_multiple: int = 1) -> RowBatch:
    """Tensors of the rows; a flattened row is padded to a `length_multiple`, as compiled kernels like few shapes."""
    rows = [row for bundle in bundles for row in bundle.rows]
    if mode == "separate":
        return _tensors(rows, length=max(b.num_tokens for b in bundles), pad_token_id=pad_token_id, mode=mode)
    flat, length = [], 0
    for placed in chain.from_iterable(rows):
        flat.append(replace(placed, start=length))
        length += placed.piece.num_tokens
    length = -(-length // length_multiple) * length_multiple
    return _tensors([flat], length=length, pad_token_id=pad_token_id, mode=mode)


def _tensors(rows: Sequence[Sequence[PlacedPiece]], *, length: int, pad_token_id: int, mode: LayoutMode) -> RowBatch:
    shape = (len(rows), length)
    input_ids, pieces = (np.full(shape, filler, dtype=np.int64) for filler in (pad_token_id, PADDING_GROUP))
    position_ids, segments = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    for b, row in enumerate(rows):
        for number, placed in enumerate(row):
            columns = slice(placed.start, placed.start + placed.piece.num_tokens)
            input_ids[b, columns] = placed.piece.token_ids
            position_ids[b, columns] = placed.piece.position_ids
            segments[b, columns] = placed.piece.segments
            pieces[b, columns] = number
    return RowBatch(
        input_ids=torch.from_numpy(input_ids),
        position_ids=torch.from_numpy(position_ids),
        segments=torch.from_numpy(segments),
        pieces=torch.from_numpy(pieces),
        spans=tuple(_span(placed) for row in rows for placed in row) if mode != "separate" else (),
        mode=mode,
        **_targets([(b * length, placed) for b, row in enumerate(rows) for placed in row]),
    )


def _span(placed: PlacedPiece) -> GroupSpan:
    ends = tuple(placed.start + int(last) + 1 for last in placed.piece.last_index)
    shared = int(np.count_nonzero(placed.piece.segments == 0))
    return GroupSpan(start=placed.start, shared=placed.start + shared, ends=ends)


def _targets(placed_pieces: Sequence[tuple[int, PlacedPiece]]) -> dict[str, Tensor]:
    """The per-target and per-completion tensors; each piece comes with the flat index of its row's start."""
    columns: dict[str, list[np.ndarray]] = defaultdict(list)
    num_completions = 0
    for row_start, placed in placed_pieces:
        piece, offset = placed.piece, row_start + placed.start
        trained = np.flatnonzero(piece.loss_mask)
        completion = piece.target_completion[trained]
        of_piece = {
            "trained_index": trained + offset,
            "target_ids": piece.target_ids[trained],
            "formatting_mask": piece.formatting_mask[trained],
            "completion_index": np.where(completion == NO_COMPLETION, NO_COMPLETION, completion + num_completions),
            "last_index": piece.last_index + offset,
            "completion_group": np.full(len(piece.numbers), placed.group, dtype=np.int64),
            "completion_number": piece.numbers,
            "ranks": piece.ranks,
        }
        for name, values in of_piece.items():
            columns[name].append(values)
        num_completions += len(piece.numbers)
    return {name: torch.from_numpy(np.concatenate(parts)) for name, parts in columns.items()}
