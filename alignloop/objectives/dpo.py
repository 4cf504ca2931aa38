"""Direct preference optimisation with masked formatting tokens and an NLL term.

    -logsigmoid(beta * ((log pi_c - log ref_c) - (log pi_r - log ref_r))) + nll_coefficient * nll_c

The Llama 3 Herd of Models, section 4.1.4: header and termination tokens are left out of the DPO sums of both
completions, because a token that both share gets pulled up and down at once and the model unlearns when to stop;
the NLL term on the chosen completion keeps them, because its purpose is to hold the format.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

NllReduction = Literal["token_mean", "sequence_mean", "sum"]


def masked_sums(
    logprobs: Tensor,
    *,
    completion_index: Tensor,
    formatting_mask: Tensor,
    num_completions: int,
    mask_formatting_tokens: bool = True,
) -> Tensor:
    """[num_completions] float64 log-probability of each completion, as DPO counts it; 0 where one has no token.

    In float64: sums of thousands of nats are subtracted from one another, and one rounding of such a sum in float32 is
    as large as what DPO looks for.

    Args:
        logprobs, formatting_mask: [T].
        completion_index: [T] the completion of each token, in 0 .. num_completions - 1.
        mask_formatting_tokens: leave the formatting tokens out; their gradient is then exactly zero.
    """
    if mask_formatting_tokens:
        logprobs = torch.where(formatting_mask, torch.zeros_like(logprobs), logprobs)
    zeros = torch.zeros(num_completions, dtype=torch.float64, device=logprobs.device)
    return zeros.index_add(0, completion_index, logprobs.double())


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
    """DPO's loss, a mean over pairs, plus `nll_coefficient` times the NLL of chosen tokens, formatting ones included.

    Args:
        logprobs: [T] per token of the policy, all completions of N pairs together.
        completion_index: [T] the completion of each token, in 0 .. C - 1 (C = 2 N).
        formatting_mask: [T] bool, True on header and termination tokens.
        chosen, rejected: [N] completion indices of each pair.
        ref_chosen_logprobs, ref_rejected_logprobs: [N] the reference model's sums under the same mask.
        nll_reduction: see `_nll_of_chosen`.
        num_pairs, num_chosen_tokens: of the whole optimiser step; None: of what is here.

    Returns:
        The loss (a scalar) and `dpo_loss`, `accuracy`, `margin` (of the implicit rewards, beta included),
        `chosen_logprobs`, `rejected_logprobs`, `nll_loss`: all of them add up over the microbatches of a step.
    """
    count = float(chosen.shape[0]) if num_pairs is None else num_pairs
    sums = masked_sums(
        logprobs,
        completion_index=completion_index,
        formatting_mask=formatting_mask,
        num_completions=2 * chosen.shape[0],
        mask_formatting_tokens=mask_formatting_tokens,
    )
    log_ratio = ((sums[chosen] - ref_chosen_logprobs) - (sums[rejected] - ref_rejected_logprobs)).float()
    loss = -functional.logsigmoid(beta * log_ratio).sum() / count
    margin = beta * log_ratio.detach()

    nll = _nll_of_chosen(
        logprobs,
        completion_index=completion_index,
        chosen=chosen,
        reduction=nll_reduction,
        num_pairs=count,
        num_tokens=num_chosen_tokens,
    )
    metrics = {
        "dpo_loss": loss.detach(),
        "accuracy": (margin > 0).float().sum() / count,
        "margin": margin.sum() / count,
        "chosen_logprobs": sums[chosen].detach().sum().float() / count,
        "rejected_logprobs": sums[rejected].detach().sum().float() / count,
        "nll_loss": nll.detach(),
    }
    return (loss + nll_coefficient * nll if nll_coefficient else loss), metrics


def _nll_of_chosen(
    logprobs: Tensor,
    *,
    completion_index: Tensor,
    chosen: Tensor,
    reduction: NllReduction,
    num_pairs: float,
    num_tokens: float | None,
) -> Tensor:
    """`token_mean`: over all chosen tokens. `sequence_mean`: the mean over pairs of -log p / length (Pang et al., arXiv
    2404.19733, equation 1). `sum`: that of -log p."""
    is_chosen = torch.zeros(2 * chosen.shape[0], dtype=torch.bool, device=logprobs.device)
    is_chosen[chosen] = True
    counted = is_chosen[completion_index]
    tokens, sequence = logprobs[counted], completion_index[counted]
    if reduction == "token_mean":
        return -tokens.sum() / (float(tokens.shape[0]) if num_tokens is None else num_tokens)
    if reduction == "sequence_mean":
        return -(tokens / torch.bincount(sequence)[sequence]).sum() / num_pairs
    return -tokens.sum() / num_pairs
