"""Exact attention of prompt groups laid out in one flattened row, at the cost of their own tokens alone.

    group       p p p p | c c c | d d d d | e e        p the shared prompt, c d e its completions
    causal      p p p p   c c c                        the prompt and the first completion are one ordinary sequence
    causal                        d d d d              every further completion by itself ...
    causal                                  e e
    all keys                      d d d d   e e -> p   ... and, in one product, all of them on the prompt's keys

The last two parts see different keys, so their softmaxes are joined by their log-sum-exps. Nothing is padded, nothing
is masked, no key is copied: each part is a view of the row, groups of one shape side by side. The backward pass of
every part is that of ordinary flash attention given the *joined* output and log-sum-exp (as in ring attention), so
gradients are exact as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any, Literal

import torch
from torch import Tensor

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class GroupSpan:
    """Position of a group in the flattened row, in tokens.

    Attributes:
        shared: end of the shared part of the prompt (its last token begins every completion); may equal start.
        ends: end of each completion, in order; the last one is the end of the group.
    """

    start: int
    shared: int
    ends: tuple[int, ...]

    @property
    def end(self) -> int:
        return self.ends[-1]


Reads = Literal["everything", "completions", "last tokens"]
"""Tokens at which a layer's output is read. The last layer needs attention for these alone: a prompt there is only
keys and values, and a reward model reads one token a completion."""


@dataclass(frozen=True)
class KernelCall:
    """One kernel call: the same slices of `count` groups that lie one behind the other, `step` tokens each.

    Attributes:
        start: first token of the first of these groups.
        queries, keys: (begin, end) of tokens, counted from their group's start.
        causal: the two are the same tokens, each of which sees itself and earlier ones; otherwise all keys are seen.
        joins: an earlier part has the same queries: this one adds its keys to what they see.
    """

    start: int
    step: int
    count: int
    queries: tuple[int, int]
    keys: tuple[int, int]
    causal: bool
    joins: bool = False


def attention_parts(
    spans: Sequence[GroupSpan], *, isolate: bool = True, reads: Reads = "everything"
) -> tuple[KernelCall, ...]:
    """The kernel calls of a row.

    Args:
        isolate: False: completions see the earlier ones of their group; then attention is computed for every token.
        reads: which of the output is used; the rest of it is zero.
    """
    parts: list[KernelCall] = []
    for shape, same in groupby(spans, key=_relative):
        alike = list(same)
        place = (alike[0].start, shape.end, len(alike))
        if not isolate:
            parts.append(KernelCall(*place, (0, shape.end), (0, shape.end), causal=True))
        elif reads == "last tokens":
            parts += _last_token_parts(shape, place)
        else:
            parts += _token_parts(shape, place, prompts=reads == "everything")
    return tuple(parts)


def _token_parts(shape: GroupSpan, place: tuple[int, int, int], *, prompts: bool) -> Iterator[KernelCall]:
    """Every completion on its own tokens and the prompt's. Where prompts are read the first one is a part with it."""
    begin = 0 if prompts or not shape.shared else shape.shared
    yield KernelCall(*place, (begin, shape.ends[0]), (begin, shape.ends[0]), causal=True)
    for own in pairwise(shape.ends):
        yield KernelCall(*place, own, own, causal=True)
    left = (shape.ends[0] if begin == 0 else begin, shape.end)
    if shape.shared and left[0] < left[1]:
        yield KernelCall(*place, left, (0, shape.shared), causal=False, joins=True)


def _last_token_parts(shape: GroupSpan, place: tuple[int, int, int]) -> Iterator[KernelCall]:
    yield KernelCall(*place, (shape.ends[0] - 1, shape.ends[0]), (0, shape.ends[0]), causal=False)
    for begin, end in pairwise(shape.ends):
        yield KernelCall(*place, (end - 1, end), (begin, end), causal=False)
        if shape.shared:
            yield KernelCall(*place, (end - 1, end), (0, shape.shared), causal=False, joins=True)


def _relative(span: GroupSpan) -> GroupSpan:
    return GroupSpan(0, span.shared - span.start, tuple(end - span.start for end in span.ends))


class GroupedAttention(torch.autograd.Function):
    """Attention of a row of prompt groups, on the CPU's flash kernels."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, parts: tuple[KernelCall, ...], scale: float
    ) -> Tensor:
        """query [R, H, T, D], key and value [H, T, D] -> [R, H, T, D]: R query heads share each of H key heads.

        Zero for tokens that are no part's queries.
        """
        num_tokens, head_dim = query.shape[2:]
        # Tokens outermost: the layer's next view of it, [T, H * R * D], is then free.
        new = query.new_empty if _covered(parts, "queries", num_tokens) else query.new_zeros
        out = new(num_tokens, key.shape[0], query.shape[0], head_dim).permute(2, 1, 0, 3)
        lse = torch.empty(query.shape[:3], dtype=torch.float32)
        shared = _expanded(key, query), _expanded(value, query)
        for part in parts:
            places = zip(*(_queries(tensor, part) for tensor in (query, out, lse)), strict=True)
            keys = zip(*(_keys(tensor, part) for tensor in shared), strict=True)
            for (q, to_out, to_lse), (k, v) in zip(places, keys, strict=True):
                part_out, part_lse = _forward(q, k, v, is_causal=part.causal, scale=scale)
                if part.joins:
                    _join(to_out, to_lse, part_out, part_lse)
                else:
                    to_out.copy_(part_out)
                    to_lse.copy_(part_lse)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.parts, ctx.scale = parts, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, out, lse = ctx.saved_tensors
        grad_query = _gradient_like(query, ctx.parts, "queries")
        grad_key, grad_value = (_gradient_like(tensor, ctx.parts, "keys") for tensor in (key, value))
        shared = [_expanded(tensor, query) for tensor in (key, value, grad_key, grad_value)]
        for part in ctx.parts:
            places = zip(*(_queries(tensor, part) for tensor in (*grads, query, out, lse, grad_query)), strict=True)
            keys = zip(*(_keys(tensor, part) for tensor in shared), strict=True)
            for view, (at_queries, at_keys) in enumerate(zip(places, keys, strict=True)):
                (grad, q, o, part_lse, to_query), (k, v, to_key, to_value) = at_queries, at_keys
                of_query, of_key, of_value = _backward(grad, q, k, v, o, part_lse, 0.0, part.causal, scale=ctx.scale)
                _put(to_query, of_query, add=part.joins)
                # Views of one part have queries of their own, but share their keys.
                _put(to_key, of_key, add=part.joins or view > 0)
                _put(to_value, of_value, add=part.joins or view > 0)
        return grad_query, grad_key, grad_value, None, None


def _expanded(keys: Tensor, query: Tensor) -> Tensor:
    """Keys or values [H, T, D] for every query head that shares them: [R, H, T, D] without a copy."""
    return keys[None].expand(query.shape[0], -1, -1, -1)


def _queries(tensor: Tensor, part: KernelCall) -> list[Tensor]:
    return _views(tensor, part, *part.queries)


def _keys(tensor: Tensor, part: KernelCall) -> list[Tensor]:
    return _views(tensor, part, *part.keys)


def _views(tensor: Tensor, part: KernelCall, begin: int, end: int) -> list[Tensor]:
    """Tokens `begin` to `end` of the part's groups, as the kernel takes them: [B, H, L, ...] views of [R, H, T, ...].

    B is R for one group, and the number of groups otherwise, a view for each of R: the kernel splits its work over B
    and H, and both at once are no view.
    """
    if part.count == 1:
        return [tensor[:, :, part.start + begin : part.start + end]]
    blocks = tensor.narrow(2, part.start, part.count * part.step).unflatten(2, (part.count, part.step))  # type: ignore[no-untyped-call]
    return [block.transpose(0, 1)[:, :, begin:end] for block in blocks]


def _covered(parts: Sequence[KernelCall], which: Literal["queries", "keys"], num_tokens: int) -> bool:
    """Whether parts that join no other have all tokens, each once: the memory they are written to need not be zero."""
    slices = [(part.count, *getattr(part, which)) for part in parts if not part.joins]
    return sum(count * (end - begin) for count, begin, end in slices) == num_tokens


def _gradient_like(tensor: Tensor, parts: Sequence[KernelCall], which: Literal["queries", "keys"]) -> Tensor:
    covered = _covered(parts, which, tensor.shape[-2])
    return torch.empty_like(tensor) if covered else torch.zeros_like(tensor)


def _put(total: Tensor, gradient: Tensor, *, add: bool) -> None:
    """Write or add gradients; of keys, heads that share them (an expanded dimension) add up."""
    if total.stride(0) == 0:
        total, gradient = total[0], gradient.sum(0)
    if add:
        total.add_(gradient)
    else:
        total.copy_(gradient)


def _join(out: Tensor, lse: Tensor, more_out: Tensor, more_lse: Tensor) -> None:
    """Turn, in place, attention over some keys into attention over these and more keys."""
    total = torch.logaddexp(lse, more_lse)
    share = torch.exp(more_lse - total)[..., None].to(out.dtype)
    out.lerp_(more_out, share)
    lse.copy_(total)
