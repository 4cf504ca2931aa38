"""Per-token logprobs from hidden states: the output head in tiles, never a whole row of logits.

The vocabulary is cut into blocks, and the tokens into blocks within each. A tile of logits stays in the cache while the
running maximum and sum of its softmax are taken. The backward pass needs only the log-sum-exp of each token: it
computes a tile's logits again (the first few are kept instead), and each block of the weight gradient is summed in one
place. Against recomputing rows of logits that is one softmax less, and traffic to memory of a tile instead of a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional


@dataclass(frozen=True)
class TileSize:
    """How the [T, V] logits are cut: tiles of `tokens` rows and `vocabulary` columns.

    `kept_logits` are kept from the forward pass at most; the others are computed twice.
    """

    tokens: int
    vocabulary: int
    kept_logits: int


CPU_TILE = TileSize(tokens=1024, vocabulary=1024, kept_logits=2**25)
"""A tile of 4 MiB, the fastest of those measured; 128 MiB kept, all there is of a small vocabulary."""
GPU_TILE = TileSize(tokens=4096, vocabulary=16384, kept_logits=2**26)
"""Matrix products that fill a GPU; a tile takes 256 MiB, and as much is kept."""


@dataclass(frozen=True)
class LogitTransform:
    """What an architecture does to its logits: times `scale`, then cap * tanh(logits / cap) where `softcap` is set."""

    scale: float = 1.0
    softcap: float | None = None

    def apply_(self, logits: Tensor) -> Tensor:
        """In place."""
        if self.scale != 1.0:
            logits.mul_(self.scale)
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits

    def back_(self, grad: Tensor, transformed: Tensor) -> Tensor:
        """Take a gradient, in place, from transformed logits to the input of `apply_`; the scale is left out."""
        if self.softcap is not None:
            grad.mul_(1.0 - (transformed / self.softcap).square_())
        return grad


@dataclass(frozen=True)
class _Softmax:
    """Running softmax of T tokens over the vocabulary blocks seen so far.

    All [T] float32: the largest logit, the `total` of exp(logit - largest), the logit of the target.
    """

    largest: Tensor
    total: Tensor
    target: Tensor

    @classmethod
    def empty(cls, hidden: Tensor) -> _Softmax:
        zeros = torch.zeros(hidden.shape[0], dtype=torch.float32, device=hidden.device)
        # A target outside the vocabulary is found in no block: its logprob is NaN, never a plausible number.
        return cls(torch.full_like(zeros, float("-inf")), zeros, torch.full_like(zeros, float("nan")))

    def add(self, logits: Tensor, *, columns: _Columns, tokens: slice) -> None:
        """Take in a tile [t, v] of float32 logits."""
        largest = torch.maximum(self.largest[tokens], logits.amax(1))
        total = (logits - largest[:, None]).exp_().sum(1)
        self.total[tokens] = self.total[tokens] * (self.largest[tokens] - largest).exp_() + total
        self.largest[tokens] = largest
        self.target[tokens] = torch.where(columns.inside, columns.of(logits), self.target[tokens])

    def logsumexp(self) -> Tensor:
        return self.largest + self.total.log()

    def logprobs(self) -> Tensor:
        return (self.target - self.largest) - self.total.log()


@dataclass(frozen=True)
class _Columns:
    """Column of the target of each of a tile's tokens: [t] (0 where `inside` is False)."""

    index: Tensor
    inside: Tensor

    @classmethod
    def find(cls, target_ids: Tensor, words: slice) -> _Columns:
        inside = (target_ids >= words.start) & (target_ids < words.stop)
        return cls(torch.where(inside, target_ids - words.start, 0), inside)

    def of(self, tile: Tensor) -> Tensor:
        return tile.gather(1, self.index[:, None])[:, 0]

    def subtract_one_(self, tile: Tensor) -> None:
        less = self.of(tile) - self.inside.to(tile.dtype)
        tile.scatter_(1, self.index[:, None], less[:, None])


@dataclass(frozen=True)
class _Head:
    """An output embedding [V, D], some of whose rows are those of a small matrix [k, D] instead."""

    weight: Tensor
    bias: Tensor | None
    rows: Tensor | None
    row_ids: tuple[int, ...]

    def block(self, words: slice) -> tuple[Tensor, Tensor | None]:
        """(weight, bias) of some words; a copy only where one of their rows is replaced."""
        weight = self.weight[words]
        if self.rows is not None and (replaced := self.replaced(words)):
            places = [self.row_ids[number] - words.start for number in replaced]
            weight = weight.clone()
            weight[places] = self.rows[replaced]
        return weight, None if self.bias is None else self.bias[words]

    def replaced(self, words: slice) -> list[int]:
        """Numbers of the rows that stand for one of these words."""
        return [number for number, index in enumerate(self.row_ids) if words.start <= index < words.stop]


def _blocks(length: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


class TiledLogprobs(torch.autograd.Function):
    """(hidden [T, D], weight [V, D], bias [V], rows [k, D], row_ids, target_ids [T], transform, tile) -> [T] float32.

    Bias and rows may be None. Rows replace those of the weight with the k numbers `row_ids`, which get no gradient
    then. Hidden states, weight and rows are of one dtype, and their products are computed in it; softmax and sums in
    float32.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        rows: Tensor | None,
        row_ids: tuple[int, ...],
        target_ids: Tensor,
        transform: LogitTransform,
        tile: TileSize,
    ) -> Tensor:
        head, softmax = _Head(weight, bias, rows, row_ids), _Softmax.empty(hidden)
        kept: list[Tensor] = []
        room = tile.kept_logits
        for words in _blocks(weight.shape[0], tile.vocabulary):
            block = head.block(words)
            for tokens in _blocks(hidden.shape[0], tile.tokens):
                logits = _tile_logits(hidden[tokens], block, transform)
                softmax.add(logits, columns=_Columns.find(target_ids[tokens], words), tokens=tokens)
                room -= logits.numel()
                if room >= 0:
                    kept.append(logits)
        ctx.save_for_backward(hidden, weight, bias, rows, target_ids, softmax.logsumexp(), *kept)
        ctx.row_ids, ctx.transform, ctx.tile = row_ids, transform, tile
        return softmax.logprobs()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(device_type=grads[0].device.type, enabled=False):
            return (*_gradients(ctx, grads[0]), None, None, None, None)


def _tile_logits(hidden: Tensor, block: tuple[Tensor, Tensor | None], transform: LogitTransform) -> Tensor:
    """[t, v] float32."""
    return transform.apply_(functional.linear(hidden, *block).float())


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Of hidden, weight, bias and rows: grad * (onehot - softmax), through the transform, times the other factor."""
    hidden, weight, bias, rows, target_ids, logsumexp, *kept = ctx.saved_tensors
    head = _Head(weight, bias, rows, ctx.row_ids)
    needs_hidden, needs_weight, needs_bias, needs_rows = ctx.needs_input_grad[:4]
    factor = (-ctx.transform.scale * grad).float()
    # The factor of a token goes with its hidden state: a row of D values, where a row of the tile has more.
    weighted = (factor[:, None] * hidden).to(hidden.dtype)
    to_hidden = torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device)
    to_weight = torch.empty_like(weight) if needs_weight else None
    to_bias = torch.zeros_like(bias) if needs_bias else None
    to_rows = torch.zeros(rows.shape, dtype=torch.float32, device=rows.device) if needs_rows else None
    waiting = iter(kept)
    for words in _blocks(weight.shape[0], ctx.tile.vocabulary):
        block, replaced = head.block(words), head.replaced(words)
        columns = [ctx.row_ids[number] - words.start for number in replaced]
        total: Tensor | None = None
        for tokens in _blocks(hidden.shape[0], ctx.tile.tokens):
            logits = next(waiting, None)
            if logits is None:
                logits = _tile_logits(hidden[tokens], block, ctx.transform)
            share = _softmax_minus_onehot(logits, logsumexp[tokens], target_ids[tokens], words=words)
            share = ctx.transform.back_(share, logits).to(hidden.dtype)
            if needs_hidden:
                _add_product(to_hidden[tokens], share, block[0])
            if needs_weight:
                total = _add_product(total, share.T, weighted[tokens])
            if to_rows is not None and replaced:
                to_rows[replaced] += (share[:, columns].T @ weighted[tokens]).float()
            if to_bias is not None:
                to_bias[words] += factor[tokens].to(share.dtype) @ share
        if to_weight is not None:
            to_weight[words] = 0.0 if total is None else total
            to_weight[words][columns] = 0.0  # theirs is what the rows get
    own = to_hidden.mul_(factor[:, None]).to(hidden.dtype) if needs_hidden else None
    return own, to_weight, to_bias, None if to_rows is None else to_rows.to(rows.dtype)


def _softmax_minus_onehot(logits: Tensor, logsumexp: Tensor, target_ids: Tensor, *, words: slice) -> Tensor:
    """[t, v] float32, minus the gradient of the logprobs with respect to a tile of transformed logits."""
    share = (logits - logsumexp[:, None]).exp_()
    _Columns.find(target_ids, words).subtract_one_(share)
    return share


def _add_product(total: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    """total (float32) += left @ right; None is zero."""
    if total is None:
        return (left @ right).float()
    return total.addmm_(left, right) if left.dtype == torch.float32 else total.add_(left @ right)


def token_logprobs(
    hidden: Tensor,
    *,
    target_ids: Tensor,
    head_weight: Tensor,
    head_bias: Tensor | None = None,
    head_rows: tuple[Tensor, tuple[int, ...]] | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    tile: TileSize | None = None,
) -> Tensor:
    """[T] float32 log-probability of each target token, in nats; NaN where a target is outside the vocabulary.

    Logits are computed in the dtype of the weight or of autocast.

    Args:
        hidden: [T, D] last hidden states (after the final norm) at the positions that predict.
        target_ids: [T] the token that each position predicts.
        head_weight, head_bias: [V, D] and [V] of the output embedding.
        head_rows: ([k, D], k token ids): rows that replace the head's own of these tokens.
        scale: factor on the logits (1 for most models).
        softcap: final logit softcapping (Gemma 2): cap * tanh(logits / cap); None: none.
        tile: None: by device.
    """
    device = hidden.device.type
    if tile is None:
        tile = CPU_TILE if device == "cpu" else GPU_TILE
    rows, row_ids = (None, ()) if head_rows is None else head_rows
    inputs = (hidden, head_weight) if rows is None else (hidden, head_weight, rows)
    if not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)):
        tile = replace(tile, kept_logits=0)
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden, head_weight = hidden.to(dtype), head_weight.to(dtype)
        head_bias = None if head_bias is None else head_bias.to(dtype)
    rows = None if rows is None else rows.to(head_weight.dtype)
    # The casts above are part of the graph; within the head, sums in float32 must stay so.
    with torch.autocast(device_type=device, enabled=False):
        logprobs: Tensor = TiledLogprobs.apply(  # type: ignore[no-untyped-call]
            hidden, head_weight, head_bias, rows, row_ids, target_ids, LogitTransform(scale, softcap), tile
        )
    return logprobs
