"""Structured attention of packed rows against SDPA with the dense mask of the same rows."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from alignloop.chat.tokens import CompletionTokens
from alignloop.packing.attention import block_mask
from alignloop.packing.batch import RowBatch, collate
from alignloop.packing.grouped_attention import GroupedAttention, GroupSpan, KernelCall, Reads, attention_parts
from alignloop.packing.groups import PromptGroup
from alignloop.packing.layout import pack

SIZES: Mapping[str, Sequence[tuple[int, ...]]] = {
    "one completion": [(5, 1)],
    "a pair": [(7, 2)],
    "ranked three": [(40, 3)],
    "sixteen": [(33, 16)],
    "alike": [(9, 3, 5), (9, 3, 5), (9, 3, 5), (4, 2)],
    "prompts of one token": [(1, 1), (1, 2), (1, 16)],
    "many groups": [(70, 2), (1, 3), (3, 1), (130, 16), (20, 2)],
}


def batch_of(sizes: Sequence[tuple[int, ...]]) -> RowBatch:
    """Groups of (prompt tokens, completions, tokens of each): drawn where not given."""
    draw = random.Random(0)
    groups = []
    for number, (prompt, count, *length) in enumerate(sizes):
        lengths = length * count or [draw.randrange(1, 40) for _ in range(count)]
        completions = tuple(CompletionTokens((3,) * n, (False,) * n) for n in lengths)
        groups.append(PromptGroup(str(number), (2,) * prompt, completions, tuple(range(count))))
    return collate(pack(groups, row_tokens=256), pad_token_id=0, mode="packed")


def heads(batch: RowBatch, *, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Query [R, H, T, D] of R = 3 query heads to each of H = 2 key heads, key and value [H, T, D]."""
    draw = torch.Generator().manual_seed(0)
    length = batch.input_ids.shape[1]
    shapes = ((3, 2, length, 16), (2, length, 16), (2, length, 16))
    query, key, value = (torch.randn(shape, generator=draw, dtype=dtype).requires_grad_() for shape in shapes)
    return query, key, value


def dense(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    keys, values = (tensor[None].expand(query.shape[0], -1, -1, -1) for tensor in (key, value))
    return scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scale)


@pytest.mark.parametrize("isolate", [True, False])
@pytest.mark.parametrize("name", SIZES)
def test_output_and_gradients_equal_the_dense_mask(name: str, isolate: bool) -> None:
    batch = batch_of(SIZES[name])
    length = batch.input_ids.shape[1]
    mask = create_mask(block_mask(batch, isolate=isolate).mask_mod, 1, 1, length, length, device="cpu")[0]
    ours, reference = heads(batch), heads(batch)
    out = GroupedAttention.apply(*ours, attention_parts(batch.spans, isolate=isolate), 0.3)
    expected = dense(*reference, mask, 0.3)
    torch.testing.assert_close(out, expected, atol=2e-6, rtol=1e-5)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    for mine, theirs in zip(ours, reference, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, atol=5e-6, rtol=1e-5)


def test_scores_far_apart_do_not_overflow() -> None:
    """Prompt and own tokens with scores of -400 and +400: the joined softmax is still finite and exact."""
    batch = batch_of([(4, 2)])
    length = batch.input_ids.shape[1]
    mask = create_mask(block_mask(batch).mask_mod, 1, 1, length, length, device="cpu")[0]
    query, key, value = (tensor.detach() * 60 for tensor in heads(batch))
    out = GroupedAttention.apply(query, key, value, attention_parts(batch.spans), 0.25)
    torch.testing.assert_close(out, dense(query, key, value, mask, 0.25), atol=1e-3, rtol=1e-4)


def test_bfloat16_equals_the_dense_mask_within_its_rounding() -> None:
    batch = batch_of(SIZES["many groups"])
    length = batch.input_ids.shape[1]
    mask = create_mask(block_mask(batch).mask_mod, 1, 1, length, length, device="cpu")[0]
    query, key, value = heads(batch, dtype=torch.bfloat16)
    out = GroupedAttention.apply(query, key, value, attention_parts(batch.spans), 0.25)
    assert out.dtype == torch.bfloat16
    exact = dense(query.float(), key.float(), value.float(), mask, 0.25)
    torch.testing.assert_close(out.float(), exact, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("reads", ["completions", "last tokens"])
@pytest.mark.parametrize("name", SIZES)
def test_what_is_read_is_exact_where_the_rest_is_left_out(name: str, reads: Reads) -> None:
    batch = batch_of(SIZES[name])
    ours, whole = heads(batch), heads(batch)
    out = GroupedAttention.apply(*ours, attention_parts(batch.spans, reads=reads), 0.3)
    expected = GroupedAttention.apply(*whole, attention_parts(batch.spans), 0.3)
    at = batch.last_index if reads == "last tokens" else (batch.segments[0] > 0).nonzero()[:, 0]
    torch.testing.assert_close(out[:, :, at], expected[:, :, at], atol=2e-6, rtol=1e-5)
    weight = torch.randn(out[:, :, at].shape, generator=torch.Generator().manual_seed(1))
    (out[:, :, at] * weight).sum().backward()
    (expected[:, :, at] * weight).sum().backward()
    for mine, theirs in zip(ours, whole, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, atol=5e-6, rtol=1e-5)


def test_the_kernel_calls_cover_what_the_mask_allows_and_no_more() -> None:
    # p p | c c | d d d: two tokens of prompt, completions of two and three.
    span = GroupSpan(10, 12, (14, 17))
    assert attention_parts([span]) == (
        KernelCall(10, 7, 1, queries=(0, 4), keys=(0, 4), causal=True),
        KernelCall(10, 7, 1, queries=(4, 7), keys=(4, 7), causal=True),
        KernelCall(10, 7, 1, queries=(4, 7), keys=(0, 2), causal=False, joins=True),
    )
    assert attention_parts([span], reads="completions") == (
        KernelCall(10, 7, 1, queries=(2, 4), keys=(2, 4), causal=True),
        KernelCall(10, 7, 1, queries=(4, 7), keys=(4, 7), causal=True),
        KernelCall(10, 7, 1, queries=(2, 7), keys=(0, 2), causal=False, joins=True),
    )
    assert attention_parts([span], reads="last tokens") == (
        KernelCall(10, 7, 1, queries=(3, 4), keys=(0, 4), causal=False),
        KernelCall(10, 7, 1, queries=(6, 7), keys=(4, 7), causal=False),
        KernelCall(10, 7, 1, queries=(6, 7), keys=(0, 2), causal=False, joins=True),
    )
    assert attention_parts([span], isolate=False) == (KernelCall(10, 7, 1, (0, 7), (0, 7), causal=True),)
    assert len(attention_parts([GroupSpan(0, 0, (2, 5))])) == 2  # a prompt of one token


def test_neighbours_of_one_shape_share_kernel_calls() -> None:
    spans = [GroupSpan(0, 2, (4, 7)), GroupSpan(7, 9, (11, 14)), GroupSpan(14, 15, (18,))]
    parts = attention_parts(spans)
    assert [(part.start, part.step, part.count) for part in parts] == [(0, 7, 2)] * 3 + [(14, 4, 1)]


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("isolate", [True, False])
def test_flex_attention_takes_the_block_mask(isolate: bool) -> None:
    """The kernel of accelerators, run plainly here: no compilation, forward only."""
    batch = batch_of(SIZES["many groups"])
    query, key, value = (tensor.detach() for tensor in heads(batch))
    flat_query = query.transpose(0, 1).flatten(0, 1)[None]  # heads that share a key head lie together
    out = flex_attention(
        flat_query, key[None], value[None], block_mask=block_mask(batch, isolate=isolate), scale=0.3, enable_gqa=True
    )
    ours = GroupedAttention.apply(query, key, value, attention_parts(batch.spans, isolate=isolate), 0.3)
    torch.testing.assert_close(out[0], ours.transpose(0, 1).flatten(0, 1), atol=2e-6, rtol=1e-5)
