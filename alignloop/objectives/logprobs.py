"""Per-token logprobs from hidden states, without the logits of a whole row at once."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from alignloop.objectives.output_head import CPU_TILE, GPU_TILE, LogitTransform, TiledLogprobs, TileSize


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
    """Log-probability of each target token, in nats.

    Logits are computed tile by tile, in the dtype of the weight or of autocast, and again in the backward pass where
    more than `tile.kept_logits` would have to be kept: a vocabulary of 128k never needs [T, V] in one piece.

    Args:
        hidden: [T, D] last hidden states (after the final norm) at the positions that predict.
        target_ids: [T] the token that each position predicts.
        head_weight: [V, D] output embedding.
        head_bias: [V] or None.
        head_rows: ([k, D], k token ids): rows that stand in for the head's own of these tokens.
        scale: factor on the logits (1 for most models).
        softcap: final logit softcapping (Gemma 2): cap * tanh(logits / cap); None: none.
        tile: None: what suits the device.

    Returns:
        [T] float32; NaN where a target is outside the vocabulary.
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


def completion_sums(values: Tensor, *, completion_index: Tensor, num_completions: int) -> Tensor:
    """Sum of the token values of each completion.

    In float64: sums of thousands of nats are subtracted from one another, and one rounding of such a sum in float32 is
    as large as what DPO looks for.

    Args:
        values: [T] one per token.
        completion_index: [T] the completion of each token, in 0 .. num_completions - 1.

    Returns:
        [num_completions] float64, 0 where a completion has no token.
    """
    zeros = torch.zeros(num_completions, dtype=torch.float64, device=values.device)
    return zeros.index_add(0, completion_index, values.double())
