"""Reward modelling: ranked Bradley-Terry without a margin (The Llama 3 Herd of Models, section 4.1.2)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def reward_loss(
    rewards: Tensor, *, group_index: Tensor, ranks: Tensor, num_groups: float | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean over groups of the mean over ordered pairs of -logsigmoid(r_better - r_worse); equal ranks are no pair.

    Loss and metrics are divided by `num_groups`: over the microbatches of a step they add up to the step's means.
    Metrics are `accuracy` (share of pairs in the right order), `margin` (mean reward gap of a pair) and `mean_reward`
    (mean over each group's completions).

    Args:
        rewards: [C] raw.
        group_index: [C] the group of each, in 0 .. G - 1; groups without a pair add nothing.
        ranks: [C] 0 the best (edited), larger is worse.
        num_groups: groups of the whole optimiser step; None: the groups here that have a pair.
    """
    rewards = rewards.float()
    is_pair = (group_index[:, None] == group_index[None, :]) & (ranks[:, None] < ranks[None, :])
    better, worse = is_pair.nonzero(as_tuple=True)
    width = int(group_index.max()) + 1
    pairs_per_group = torch.bincount(group_index[better], minlength=width)
    completions_per_group = torch.bincount(group_index, minlength=width)
    if num_groups is None:
        num_groups = float((pairs_per_group > 0).sum())
    pair_weight = 1.0 / (pairs_per_group[group_index[better]] * num_groups)
    gap = rewards[better] - rewards[worse]
    loss = -(functional.logsigmoid(gap) * pair_weight).sum()
    detached = gap.detach()
    metrics = {
        "accuracy": ((detached > 0).float() * pair_weight).sum(),
        "margin": (detached * pair_weight).sum(),
        "mean_reward": (rewards.detach() / (completions_per_group[group_index] * num_groups)).sum(),
    }
    return loss, metrics
