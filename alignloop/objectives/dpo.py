"""Direct preference optimisation with masked formatting tokens and an NLL term.

The Llama 3 Herd of Models, section 4.1.4: header and termination tokens are left out of the DPO sums of both
completions, because a token that both share gets pulled up and down at once and the model unlearns when to stop;
the NLL term on the chosen completion keeps them, because its purpose is to hold the format.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from alignloop.objectives.logprobs import completion_sums

NllReduction = Literal["token_mean", "sequence_mean", "sum"]


def masked_sums(
    logprobs: Tensor,
    *,
    completion_index: Tensor,
    formatting_mask: Tensor,
    num_completions: int,
    mask_formatting_tokens: bool = True,
) -> Tensor:
    """Log-probability of each completion, as DPO counts it.

    Args:
        logprobs: [T] per token; completion_index: [T]; formatting_mask: [T] bool.
        mask_formatting_tokens: leave the formatting tokens out; their gradient is then exactly zero.

    Returns:
        [num_completions] float64.
    """
    if mask_formatting_tokens:
        logprobs = torch.where(formatting_mask, torch.zeros_like(logprobs), logprobs)
    return completion_sums(logprobs, completion_index=completion_index, num_completions=num_completions)


def dpo_term(
    *,
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    ref_chosen_logprobs: Tensor,
    ref_rejected_logprobs: Tensor,
    beta: float,
    num_pairs: float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """-logsigmoid(beta * ((log pi_c - log ref_c) - (log pi_r - log ref_r))), mean over pairs.

    Args:
        chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs: [N] sums over tokens.
        num_pairs: pairs of the whole optimiser step; None: N.

    Returns:
        The term (a scalar) and `dpo_loss`, `accuracy`, `margin` (of the implicit rewards, beta included),
        `chosen_logprobs`, `rejected_logprobs`: means over pairs that add up over the microbatches of a step.
    """
    count = float(chosen_logprobs.shape[0]) if num_pairs is None else num_pairs
    log_ratio = ((chosen_logprobs - ref_chosen_logprobs) - (rejected_logprobs - ref_rejected_logprobs)).float()
    loss = -functional.logsigmoid(beta * log_ratio).sum() / count
    margin = beta * log_ratio.detach()
    metrics = {
        "dpo_loss": loss.detach(),
        "accuracy": (margin > 0).float().sum() / count,
        "margin": margin.sum() / count,
        "chosen_logprobs": chosen_logprobs.detach().sum().float() / count,
        "rejected_logprobs": rejected_logprobs.detach().sum().float() / count,
    }
    return loss, metrics


def nll_term(
    logprobs: Tensor,
    *,
    sequence_index: Tensor,
    reduction: NllReduction = "token_mean",
    num_sequences: float | None = None,
    num_tokens: float | None = None,
) -> Tensor:
    """Negative log-likelihood of the chosen completions, formatting tokens included.

    Args:
        logprobs: [T] of the tokens of the chosen completions alone.
        sequence_index: [T] which sequence each belongs to, in 0 .. N - 1, every one with at least one token.
        reduction: `token_mean`: over all tokens; `sequence_mean`: mean over sequences of each one's mean over tokens;
            `sum`: mean over sequences of each one's sum.
        num_sequences, num_tokens: of the whole optimiser step; None: of what is here.

    Returns:
        A scalar that adds up over the microbatches of a step.
    """
    lengths = torch.bincount(sequence_index)
    sequences = float((lengths > 0).sum()) if num_sequences is None else num_sequences
    if reduction == "token_mean":
        return -logprobs.sum() / (float(logprobs.shape[0]) if num_tokens is None else num_tokens)
    if reduction == "sequence_mean":
        return -(logprobs / lengths[sequence_index]).sum() / sequences
    return -logprobs.sum() / sequences


def dpo_loss(
    logprobs: Tensor,
    *,
    completion_index: Tensor,
    formatting_mask: Tensor,
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen_logprobs: Tensor,
    ref_rejected_logprobs: Tensor,
    beta: float = 0.1,
    nll_coefficient: float = 0.2,
    nll_reduction: NllReduction = "token_mean",
    mask_formatting_tokens: bool = True,
    num_pairs: float | None = None,
    num_chosen_tokens: float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """DPO term plus `nll_coefficient` times the NLL of the chosen completions.

    Args:
        logprobs: [T] per token of the policy, all completions of N pairs together.
        completion_index: [T] the completion of each token, in 0 .. C - 1 (C = 2 N).
        formatting_mask: [T] bool, True on header and termination tokens.
        chosen, rejected: [N] completion indices of each pair.
        ref_chosen_logprobs, ref_rejected_logprobs: [N] the reference model's sums under the same mask.
        num_pairs, num_chosen_tokens: of the whole optimiser step; None: of what is here.

    Returns:
        The loss (a scalar) and the metrics of `dpo_term` with `nll_loss`.
    """
    num_completions = 2 * chosen.shape[0]
    sums = masked_sums(
        logprobs,
        completion_index=completion_index,
        formatting_mask=formatting_mask,
        num_completions=num_completions,
        mask_formatting_tokens=mask_formatting_tokens,
    )
    loss, metrics = dpo_term(
        chosen_logprobs=sums[chosen],
        rejected_logprobs=sums[rejected],
        ref_chosen_logprobs=ref_chosen_logprobs,
        ref_rejected_logprobs=ref_rejected_logprobs,
        beta=beta,
        num_pairs=num_pairs,
    )
    is_chosen = torch.zeros(num_completions, dtype=torch.bool, device=logprobs.device)
    is_chosen[chosen] = True
    on_chosen = is_chosen[completion_index]
    nll = nll_term(
        logprobs[on_chosen],
        sequence_index=completion_index[on_chosen],
        reduction=nll_reduction,
        num_sequences=float(chosen.shape[0]) if num_pairs is None else num_pairs,
        num_tokens=num_chosen_tokens,
    )
    metrics["nll_loss"] = nll.detach()
    return (loss + nll_coefficient * nll if nll_coefficient else loss), metrics
