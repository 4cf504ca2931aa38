"""Layout of packed rows, checked against rows written out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from torch.nn.attention.flex_attention import create_mask

from alignloop.chat.tokens import CompletionTokens
from alignloop.packing.attention import block_mask
from alignloop.packing.batch import collate
from alignloop.packing.grouped_attention import GroupSpan
from alignloop.packing.groups import PromptGroup
from alignloop.packing.layout import (
    auto_row_tokens,
    first_fit_decreasing,
    layout_group,
    microbatch_end,
    pack,
    packed_num_tokens,
)


def completion(*ids: int) -> CompletionTokens:
    return CompletionTokens(ids, (False,) * (len(ids) - 1) + (True,))


TWO = PromptGroup("two", (1, 2, 3), (completion(10, 11), completion(20)), (0, 1))
ONE_TOKEN_PROMPT = PromptGroup("one", (4,), (completion(30, 31),), (0,))


def test_packed_piece_by_hand() -> None:
    (piece,) = layout_group(TWO)
    # p0 p1 | p2 c0 c1 | p2 d0: the last prompt token comes once per completion.
    assert piece.token_ids.tolist() == [1, 2, 3, 10, 11, 3, 20]
    assert piece.position_ids.tolist() == [0, 1, 2, 3, 4, 2, 3]
    assert piece.segments.tolist() == [0, 0, 1, 1, 1, 2, 2]
    assert piece.loss_mask.tolist() == [False, False, True, True, False, True, False]
    assert piece.target_ids[piece.loss_mask].tolist() == [10, 11, 20]
    assert piece.formatting_mask[piece.loss_mask].tolist() == [False, True, True]
    assert piece.target_completion[piece.loss_mask].tolist() == [0, 0, 1]
    assert piece.last_index.tolist() == [4, 6]
    assert piece.token_ids[piece.last_index].tolist() == [11, 20]
    assert piece.num_tokens == packed_num_tokens(TWO) == 7


def test_a_prompt_of_one_token_has_no_shared_part() -> None:
    (piece,) = layout_group(ONE_TOKEN_PROMPT)
    assert piece.token_ids.tolist() == [4, 30, 31]
    assert piece.segments.tolist() == [1, 1, 1]
    assert piece.target_ids[piece.loss_mask].tolist() == [30, 31]


def test_separate_pieces_carry_their_own_prompt() -> None:
    first, second = layout_group(TWO, mode="separate")
    assert first.token_ids.tolist() == [1, 2, 3, 10, 11]
    assert second.token_ids.tolist() == [1, 2, 3, 20]
    assert second.position_ids.tolist() == [0, 1, 2, 3]
    assert (second.numbers.tolist(), second.ranks.tolist()) == ([1], [1])


def test_a_joined_piece_counts_on() -> None:
    (piece,) = layout_group(TWO, mode="joined")
    # p0 p1 | p2 c0 c1 | d0: no copy of the prompt's last token, and no target.
    assert piece.token_ids.tolist() == [1, 2, 3, 10, 11, 20]
    assert piece.position_ids.tolist() == [0, 1, 2, 3, 4, 5]
    assert piece.segments.tolist() == [0, 0, 1, 1, 1, 2]
    assert piece.last_index.tolist() == [4, 5]
    assert not piece.loss_mask.any()
    batch = collate(pack([ONE_TOKEN_PROMPT, TWO], row_tokens=16, mode="joined"), pad_token_id=0, mode="joined")
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 0, 1, 2]]
    assert batch.spans == (GroupSpan(0, 2, (5, 6)), GroupSpan(6, 6, (9,)))


def test_prompt_loss_mask_trains_earlier_turns() -> None:
    group = PromptGroup("multi", (1, 2, 3, 4), (completion(9),), (0,), (False, True, False, True))
    (piece,) = layout_group(group)
    # Row: 1 2 3 | 4 9. Token 2 is predicted at position 0, token 4 at position 2, token 9 at the copy of 4.
    assert np.flatnonzero(piece.loss_mask).tolist() == [0, 2, 3]
    assert piece.target_ids[piece.loss_mask].tolist() == [2, 4, 9]
    assert piece.target_completion[piece.loss_mask].tolist() == [-1, -1, 0]


def test_first_fit_decreasing_by_hand() -> None:
    # 7 opens a bin, 6 another, 4 and 4 fit beside 6 (10) and open a third, 3 fits beside 7.
    assert first_fit_decreasing([4, 7, 3, 6, 4], capacity=10) == [[1, 2], [3, 0], [4]]


def test_items_larger_than_the_capacity_get_a_bin_of_their_own() -> None:
    assert first_fit_decreasing([12, 2], capacity=10) == [[0], [1]]


def test_every_group_lies_in_exactly_one_row_and_none_is_cut() -> None:
    groups = [PromptGroup(str(n), tuple(range(1, n + 2)), (completion(5, 6),), (0,)) for n in range(20)]
    bundles = pack(groups, row_tokens=24)
    placed = [p for bundle in bundles for row in bundle.rows for p in row]
    assert sorted(p.group for p in placed) == list(range(20))
    assert all(bundle.num_tokens <= 24 for bundle in bundles)
    assert sum(p.piece.num_tokens for p in placed) == sum(packed_num_tokens(group) for group in groups)


def test_auto_row_tokens_shares_rows_among_short_groups_and_rounds_long_ones_up() -> None:
    assert auto_row_tokens(10) == 512
    assert auto_row_tokens(513) == 640


def test_a_microbatch_holds_whole_bundles() -> None:
    bundles = pack([TWO, TWO, ONE_TOKEN_PROMPT], row_tokens=8, mode="separate")
    assert [len(bundle.rows) for bundle in bundles] == [2, 2, 1]
    assert microbatch_end(bundles, start=0, rows=3, row_tokens=8) == 1
    assert microbatch_end(bundles, start=1, rows=3, row_tokens=8) == 3
    assert microbatch_end(bundles, start=0, rows=1, row_tokens=8) == 1


def test_a_group_longer_than_a_row_counts_as_the_rows_it_fills() -> None:
    # 7 tokens fill two rows of 4, 3 tokens one: 2 + 2 + 1.
    bundles = pack([TWO, TWO, ONE_TOKEN_PROMPT], row_tokens=4)
    assert [bundle.num_rows(4) for bundle in bundles] == [2, 2, 1]
    assert microbatch_end(bundles, start=0, rows=4, row_tokens=4) == 2
    assert microbatch_end(bundles, start=1, rows=3, row_tokens=4) == 3


def test_collate_points_into_the_flattened_rows() -> None:
    batch = collate(pack([TWO, ONE_TOKEN_PROMPT], row_tokens=10), pad_token_id=0, mode="packed")
    assert batch.input_ids.tolist() == [[1, 2, 3, 10, 11, 3, 20, 4, 30, 31]]
    assert batch.pieces.tolist() == [[0] * 7 + [1] * 3]
    assert batch.target_ids.tolist() == [10, 11, 20, 30, 31]
    assert batch.trained_index.tolist() == [2, 3, 5, 7, 8]
    assert batch.completion_index.tolist() == [0, 0, 1, 2, 2]
    assert batch.last_index.tolist() == [4, 6, 9]
    assert batch.completion_group.tolist() == [0, 0, 1]
    assert batch.ranks.tolist() == [0, 1, 0]


def test_packed_rows_become_one_row_without_padding() -> None:
    long = PromptGroup("l", (1, 2, 3), (completion(7, 7, 7, 7, 7),), (0,))
    batch = collate(pack([TWO, ONE_TOKEN_PROMPT, long], row_tokens=8), pad_token_id=0, mode="packed")
    assert batch.input_ids.tolist() == [[1, 2, 3, 7, 7, 7, 7, 7, 1, 2, 3, 10, 11, 3, 20, 4, 30, 31]]
    assert batch.spans == (GroupSpan(0, 2, (8,)), GroupSpan(8, 10, (13, 15)), GroupSpan(15, 15, (18,)))
    padded = collate(pack([TWO], row_tokens=8), pad_token_id=0, mode="packed", length_multiple=5)
    assert padded.input_ids.tolist() == [[1, 2, 3, 10, 11, 3, 20, 0, 0, 0]]
    assert padded.pieces.tolist() == [[0] * 7 + [-1] * 3]


@pytest.mark.parametrize("isolate", [True, False])
def test_block_mask_by_hand(isolate: bool) -> None:
    small = PromptGroup("s", (1, 2), (completion(3), completion(4)), (0, 1))
    other = PromptGroup("o", (5,), (completion(6),), (0,))
    # 1 | 2 3 | 2 4 || 5 6, then padding.
    batch = collate(pack([small, other], row_tokens=7), pad_token_id=0, mode="packed", length_multiple=8)
    assert batch.input_ids.tolist() == [[1, 2, 3, 2, 4, 5, 6, 0]]
    mask = block_mask(batch, isolate=isolate)
    x = 0 if isolate else 1
    assert create_mask(mask.mask_mod, 1, 1, 8, 8, device="cpu")[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0],
        [1, x, x, 1, 0, 0, 0, 0],
        [1, x, x, 1, 1, 0, 0, 0],
        [0, 0, 0, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 0, 0, 1],
    ]
