"""RLOO: REINFORCE with the other completions of a prompt as its baseline (Ahmadian et al., arXiv 2402.14740).

    advantage_k = r_k - mean of the other K - 1,   r = reward - kl_coefficient * (log pi - log ref)
    loss = -min(ratio * advantage, clipped ratio * advantage),   ratio = pi / pi when it was sampled

A completion is one action: its log-probability is the sum over all its tokens, formatting tokens among them, because
the policy sampled those, too. Several steps on what was sampled once are held back by PPO's clipping (1707.06347), of
the whole completion's ratio, as TRL's `RLOOTrainer` has it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from alignloop.objectives.dpo import masked_sums

NORMALIZE_EPSILON = 1e-4
"""TRL's."""


def least_for_failed(rewards: Sequence[float], *, failed: Sequence[bool], penalty: float) -> list[float]:
    """A prompt's rewards, in which every completion that failed has the least of them all, less `penalty`.

    Where all failed they are worth the same, and nothing is learnt from the rewards.
    """
    least = min(rewards) - penalty
    return [least if has_failed else reward for reward, has_failed in zip(rewards, failed, strict=True)]


def leave_one_out(
    rewards: Tensor, *, kl: Tensor | None = None, kl_coefficient: float = 0.0, normalize: bool = False
) -> Tensor:
    """[N, K] float64 advantages of N prompts with K completions each, of which each prompt's sum to zero.

    Args:
        rewards: [N, K], K at least 2.
        kl: [N, K] log pi - log ref of each completion; None with a coefficient of 0.
        normalize: take the mean of all N K advantages away and divide by their standard deviation.
    """
    values = rewards.double()
    if kl is not None and kl_coefficient:
        values = values - kl_coefficient * kl.double()
    others = (values.sum(dim=1, keepdim=True) - values) / (values.shape[1] - 1)
    advantages = values - others
    if normalize:
        advantages = (advantages - advantages.mean()) / (advantages.std() + NORMALIZE_EPSILON)
    return advantages


def rloo_loss(
    logprobs: Tensor,
    *,
    completion_index: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    clip: float = 0.2,
    clip_high: float | None = None,
    num_completions: float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The mean over completions of -min(ratio * advantage, clamp(ratio) * advantage).

    Args:
        logprobs: [T] per token of the policy, all completions together.
        completion_index: [T] each token's completion, in 0 .. C - 1.
        old_logprobs: [C] float64 sums under the policy that sampled.
        advantages: [C].
        clip, clip_high: the ratio stays within 1 - clip and 1 + clip_high (None: clip), as far as it would gain.
        num_completions: of the whole optimiser step; None: of what is here.

    Returns:
        The loss (a scalar), and metrics that add up over the microbatches of a step: `clip_share` of completions whose
        ratio no longer counts, and `ratio`, its mean.
    """
    count = float(len(advantages)) if num_completions is None else num_completions
    sums = masked_sums(
        logprobs,
        completion_index=completion_index,
        formatting_mask=torch.zeros_like(completion_index, dtype=torch.bool),
        num_completions=len(advantages),
        mask_formatting_tokens=False,
    )
    ratio, advantages = torch.exp((sums - old_logprobs).float()), advantages.float()
    low, high = 1.0 - clip, 1.0 + (clip if clip_high is None else clip_high)
    losses = -torch.minimum(ratio * advantages, ratio.clamp(low, high) * advantages)
    clipped = ((ratio < low) & (advantages < 0.0)) | ((ratio > high) & (advantages > 0.0))
    metrics = {"clip_share": clipped.float().sum() / count, "ratio": ratio.detach().sum() / count}
    return losses.sum() / count, metrics
