"""Direct preference optimisation with masked formatting tokens and an NLL term.

    -logsigmoid(beta * ((log pi_c - log ref_c) - (log pi_r - log ref_r))) + nll_coefficient * nll_c

The Llama 3 Herd of Models, section 4.1.4: header and termination tokens are left out of the DPO sums of both
completions, because a token that both share gets pulled up and down at once and the model unlearns when to stop;
the NLL term on the chosen completion keeps them, because its purpose is to hold the format.

Other losses of a pair (`pair_losses`) take the place of the first term; mask and NLL term are the same for all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

PairLoss = Literal["sigmoid", "sigmoid_norm", "ipo", "hinge", "robust", "apo_zero", "apo_down", "simpo"]
PER_TOKEN: tuple[PairLoss, ...] = ("sigmoid_norm", "ipo", "simpo")
"""Losses that compare means over a completion's tokens; the others compare sums. The IPO paper does not say which it
has: TRL, which asked its authors, takes means."""
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


def counted_tokens(
    *, completion_index: Tensor, formatting_mask: Tensor, num_completions: int, mask_formatting_tokens: bool = True
) -> Tensor:
    """[num_completions] float64 tokens in each of `masked_sums`, by the same arguments; 1 where there is none."""
    counts = ~formatting_mask if mask_formatting_tokens else torch.ones_like(formatting_mask)
    zeros = torch.zeros(num_completions, dtype=torch.float64, device=formatting_mask.device)
    return zeros.index_add(0, completion_index, counts.double()).clamp(min=1.0)


def pair_losses(
    chosen: Tensor,
    rejected: Tensor,
    *,
    loss: PairLoss,
    beta: float,
    gamma: float = 0.0,
    label_smoothing: float = 0.0,
    margins: Tensor | None = None,
) -> Tensor:
    """[N] float32 loss of each pair.

    Args:
        chosen, rejected: [N] float64 log ratios of policy and reference; their means a token for the losses of
            `PER_TOKEN`; plain mean logprobs for `simpo`.
        gamma: simpo's target margin (arXiv 2405.14734, equation 6).
        label_smoothing: robust's share of flipped preferences, under one half (2403.00409, equation 12).
        margins: [N] what else the gap must exceed, within logsigmoid (2402.10571): sigmoid, sigmoid_norm and simpo.
    """
    gap = (chosen - rejected).float()
    if loss == "ipo":  # 2310.12036, equation 17
        return (gap - 1.0 / (2.0 * beta)).square()
    gap = beta * gap
    if loss == "hinge":  # SLiC-HF, 2305.10425, on log ratios as in RSO, 2309.06657
        return functional.relu(1.0 - gap)
    if loss == "robust":
        right, flipped = functional.logsigmoid(gap), functional.logsigmoid(-gap)
        return (label_smoothing * flipped - (1.0 - label_smoothing) * right) / (1.0 - 2.0 * label_smoothing)
    if loss == "apo_zero":  # 2408.06266, equation 7
        return torch.sigmoid(-beta * chosen.float()) + torch.sigmoid(beta * rejected.float())
    if loss == "apo_down":  # 2408.06266, equation 8
        return torch.sigmoid(beta * chosen.float()) + torch.sigmoid(-gap)
    if gamma:
        gap = gap - gamma
    return -functional.logsigmoid(gap if margins is None else gap - margins)


def loss_at_reference(loss: PairLoss, *, beta: float, margins: Sequence[float] | None = None) -> float | None:
    """The mean of `pair_losses` where policy and reference are the same model; None for a loss without a reference.

    `margins` are the pairs'; None: there are none.
    """
    if loss == "simpo":
        return None
    if loss == "ipo":
        return 1.0 / (2.0 * beta) ** 2
    if loss in ("hinge", "apo_zero", "apo_down"):
        return 1.0
    if not margins:
        return math.log(2.0)
    # -logsigmoid(-m), without an overflow.
    return sum(max(margin, 0.0) + math.log1p(math.exp(-abs(margin))) for margin in margins) / len(margins)


def dpo_loss(
    logprobs: Tensor,
    *,
    completion_index: Tensor,
    formatting_mask: Tensor,
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen_logprobs: Tensor | None,
    ref_rejected_logprobs: Tensor | None,
    loss: PairLoss = "sigmoid",
    beta: float = 0.1,
    gamma: float = 0.0,
    label_smoothing: float = 0.0,
    margins: Tensor | None = None,
    nll_coefficient: float = 0.2,
    nll_reduction: NllReduction = "token_mean",
    mask_formatting_tokens: bool = True,
    num_pairs: float | None = None,
    num_chosen_tokens: float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """A mean of `pair_losses`, plus `nll_coefficient` times the NLL of chosen tokens, formatting ones included.

    Args:
        logprobs: [T] per token of the policy, all completions of N pairs together.
        completion_index, formatting_mask: [T] each token's completion, in 0 .. 2 N - 1; True on formatting tokens.
        chosen, rejected: [N] completion indices of each pair.
        ref_chosen_logprobs, ref_rejected_logprobs: [N] the reference model's sums under the same mask; None for simpo.
        nll_reduction: see `_nll_of_chosen`; the other settings: see `pair_losses`.
        num_pairs, num_chosen_tokens: of the whole optimiser step; None: of what is here.

    Returns:
        The loss (a scalar), and `_metrics` with `dpo_loss` (without the NLL) and `nll_loss`.
    """
    count = float(chosen.shape[0]) if num_pairs is None else num_pairs
    where: dict[str, Any] = {
        "completion_index": completion_index,
        "formatting_mask": formatting_mask,
        "num_completions": 2 * chosen.shape[0],
        "mask_formatting_tokens": mask_formatting_tokens,
    }
    sums = masked_sums(logprobs, **where)
    tokens = counted_tokens(**where) if loss in PER_TOKEN else None
    assert (ref_chosen_logprobs is None) == (loss == "simpo"), "all losses but simpo have a reference"
    better = _compared(sums, index=chosen, reference=ref_chosen_logprobs, tokens=tokens)
    worse = _compared(sums, index=rejected, reference=ref_rejected_logprobs, tokens=tokens)
    settings: dict[str, Any] = {"beta": beta, "gamma": gamma, "label_smoothing": label_smoothing}
    dpo = pair_losses(better, worse, loss=loss, margins=margins, **settings).sum() / count
    nll = _nll_of_chosen(
        logprobs,
        completion_index=completion_index,
        chosen=chosen,
        reduction=nll_reduction,
        num_pairs=count,
        num_tokens=num_chosen_tokens,
    )
    metrics = _metrics(sums[chosen], sums[rejected], margins=beta * (better - worse).float(), num_pairs=count)
    total = dpo + nll_coefficient * nll if nll_coefficient else dpo
    return total, {"dpo_loss": dpo.detach(), **metrics, "nll_loss": nll.detach()}


def _compared(sums: Tensor, *, index: Tensor, reference: Tensor | None, tokens: Tensor | None) -> Tensor:
    """[N] float64 what `pair_losses` is given of the completions `index`, [N]."""
    values = sums[index] if reference is None else sums[index] - reference
    return values if tokens is None else values / tokens[index]


def _metrics(chosen: Tensor, rejected: Tensor, *, margins: Tensor, num_pairs: float) -> dict[str, Tensor]:
    """`accuracy`, `margin`, `chosen_logprobs`, `rejected_logprobs`, which add up over the microbatches of a step.

    Args:
        chosen, rejected: [N] sums.
        margins: [N] of the implicit rewards: beta times what the loss compares, nothing taken from it.
    """
    margin = margins.detach()
    return {
        "accuracy": (margin > 0).float().sum() / num_pairs,
        "margin": margin.sum() / num_pairs,
        "chosen_logprobs": chosen.detach().sum().float() / num_pairs,
        "rejected_logprobs": rejected.detach().sum().float() / num_pairs,
    }


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
