"""Supervised fine-tuning: cross-entropy on target tokens (The Llama 3 Herd of Models, section 4.1.3)."""

from __future__ import annotations

from torch import Tensor


def sft_loss(logprobs: Tensor, *, num_tokens: float | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    """Negative mean logprob of the target tokens, in nats a token, and `nll_loss`, the same value.

    Over the microbatches of a step both add up.

    Args:
        logprobs: [T] of the target tokens alone, without masked ones.
        num_tokens: target tokens of the whole optimiser step; None: T.

    Raises:
        ValueError: there is no target token.
    """
    count = float(logprobs.shape[0]) if num_tokens is None else num_tokens
    if count <= 0:
        raise ValueError("no target token: the loss mask is empty")
    loss = -logprobs.sum() / count
    return loss, {"nll_loss": loss.detach()}
