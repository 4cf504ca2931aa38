"""Exact attention of prompt groups laid out in one flattened row, at the cost of their own tokens alone.

    group       p p p p | c c c | d d d d | e e        p the shared prompt, c d e its completions
    causal      p p p p   c c c                        the prompt and the first completion are one ordinary sequence
    causal                        d d d d              every further completion by itself ...
    causal                                  e e
    all keys                      d d d d   e e -> p   ... and, in one product, all of them on the prompt's keys

The last two parts see different keys, so their softmaxes are joined by their log-sum-exps. Nothing is padded, nothing
is masked, no key is copied: each part is a view of the row. The backward pass of every part is that of ordinary flash
attention given the *joined* output and log-sum-exp (as in ring attention), so gradients are exact as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class GroupSpan:
    """Where a group lies in the flattened row.

    Attributes:
        start: first token.
        shared: end of the shared part of the prompt (its last token begins every completion); may equal start.
        ends: end of each completion, in order; the last one is the end of the group.
    """

    start: int
    shared: int
    ends: tuple[int, ...]

    @property
    def end(self) -> int:
        return self.ends[-1]


@dataclass(frozen=True)
class _Part:
    """Queries, keys and values of one kernel call, as slices of the row; not causal: all keys are seen."""

    queries: slice
    keys: slice
    causal: bool


def attention_parts(spans: Sequence[GroupSpan], *, isolate: bool) -> Iterator[_Part]:
    """The kernel calls of a row; where two parts share queries, the causal one comes first."""
    for span in spans:
        first = slice(span.start, span.ends[0] if isolate else span.end)
        yield _Part(first, first, causal=True)
        if not isolate or len(span.ends) == 1:
            continue
        for begin, end in zip(span.ends, span.ends[1:], strict=False):
            yield _Part(slice(begin, end), slice(begin, end), causal=True)
        if span.shared > span.start:
            yield _Part(slice(span.ends[0], span.end), slice(span.start, span.shared), causal=False)


class GroupedAttention(torch.autograd.Function):
    """Attention of a row of prompt groups, on the CPU's flash kernels."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, spans: Sequence[GroupSpan], scale: float, isolate: bool
    ) -> Tensor:
        """Attend.

        Args:
            query: [R, H, T, D]: R query heads share each of H key heads.
            key, value: [H, T, D].

        Returns:
            [R, H, T, D].
        """
        num_tokens, head_dim = query.shape[2:]
        # Tokens outermost: the layer's next view of it, [T, H * R * D], is then free.
        out = query.new_empty(num_tokens, key.shape[0], query.shape[0], head_dim).permute(2, 1, 0, 3)
        lse = torch.empty(query.shape[:3], dtype=torch.float32)
        parts = tuple(attention_parts(spans, isolate=isolate))
        for part in parts:
            part_out, part_lse = _forward(
                query[:, :, part.queries],
                _shared(key, part.keys, query),
                _shared(value, part.keys, query),
                is_causal=part.causal,
                scale=scale,
            )
            if part.causal:
                out[:, :, part.queries], lse[:, :, part.queries] = part_out, part_lse
            else:
                _join(out[:, :, part.queries], lse[:, :, part.queries], part_out, part_lse)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.parts, ctx.scale = parts, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        query, key, value, out, lse = ctx.saved_tensors
        (grad_out,) = grads
        grad_query, grad_key, grad_value = (torch.empty_like(t) for t in (query, key, value))
        for part in ctx.parts:
            q, k, v = _backward(
                grad_out[:, :, part.queries],
                query[:, :, part.queries],
                _shared(key, part.keys, query),
                _shared(value, part.keys, query),
                out[:, :, part.queries],
                lse[:, :, part.queries],
                0.0,
                part.causal,
                scale=ctx.scale,
            )
            if part.causal:
                grad_query[:, :, part.queries] = q
                grad_key[:, part.keys], grad_value[:, part.keys] = k.sum(0), v.sum(0)
            else:
                grad_query[:, :, part.queries] += q
                grad_key[:, part.keys] += k.sum(0)
                grad_value[:, part.keys] += v.sum(0)
        return grad_query, grad_key, grad_value, None, None, None


def _shared(keys: Tensor, part: slice, query: Tensor) -> Tensor:
    """Keys or values for every query head that shares them: [R, H, L, D] without a copy."""
    return keys[None, :, part].expand(query.shape[0], -1, -1, -1)


def _join(out: Tensor, lse: Tensor, more_out: Tensor, more_lse: Tensor) -> None:
    """Turn, in place, attention over some keys into attention over these and more keys."""
    total = torch.logaddexp(lse, more_lse)
    share = torch.exp(more_lse - total)[..., None].to(out.dtype)
    out.lerp_(more_out, share)
    lse.copy_(total)
