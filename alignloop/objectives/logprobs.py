"""Per-token logprobs from hidden states, without the logits of a whole row at once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

CHUNK_LOGITS = 2**26
"""Logits held at a time: 256 MiB in float32."""


def token_logprobs(
    hidden: Tensor,
    *,
    target_ids: Tensor,
    head_weight: Tensor,
    head_bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    chunk_logits: int = CHUNK_LOGITS,
) -> Tensor:
    """Log-probability of each target token, in nats.

    Where T x V is over `chunk_logits`, the tokens go through the head in chunks whose logits are computed again
    in the backward pass, so that a vocabulary of 128k never needs [T, V] in one piece.

    Args:
        hidden: [T, D] last hidden states (after the final norm) at the positions that predict.
        target_ids: [T] the token that each position predicts.
        head_weight: [V, D] output embedding.
        head_bias: [V] or None.
        scale: factor on the logits (1 for most models).
        softcap: final logit softcapping (Gemma 2): cap * tanh(logits / cap); None: none.

    Returns:
        [T] float32.
    """
    num_tokens, vocab_size = hidden.shape[0], head_weight.shape[0]
    chunk = max(1, chunk_logits // vocab_size)
    if num_tokens <= chunk:
        return _head(hidden, target_ids, head_weight, head_bias, scale, softcap)
    parts = [
        checkpoint(
            _head,
            hidden[start : start + chunk],
            target_ids[start : start + chunk],
            head_weight,
            head_bias,
            scale,
            softcap,
            use_reentrant=False,
            preserve_rng_state=False,
        )
        for start in range(0, num_tokens, chunk)
    ]
    return torch.cat(parts)


def _head(
    hidden: Tensor, target_ids: Tensor, weight: Tensor, bias: Tensor | None, scale: float, softcap: float | None
) -> Tensor:
    logits = functional.linear(hidden, weight, bias).float()
    if scale != 1.0:
        logits = logits * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return -functional.cross_entropy(logits, target_ids, reduction="none")


def completion_sums(values: Tensor, *, completion_index: Tensor, num_completions: int) -> Tensor:
    """Sum of the token values of each completion.

    Args:
        values: [T] one per token.
        completion_index: [T] the completion of each token, in 0 .. num_completions - 1.

    Returns:
        [num_completions], 0 where a completion has no token.
    """
    return values.new_zeros(num_completions).index_add(0, completion_index, values)
