"""Reward modelling: ranked Bradley-Terry (The Llama 3 Herd of Models, section 4.1.2).

There it has no margin; Llama 2's (2307.09288, section 3.2.2) is -logsigmoid(r_better - r_worse - margin).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from alignloop.records import Strength

MARGIN_SHARES: Mapping[Strength, float] = {
    "significantly_better": 1.0,
    "better": 2 / 3,
    "slightly_better": 1 / 3,
    "marginally_better": 0.0,
}
"""Of the margin of `significantly_better` (Llama 2, table 27: 1, 2/3, 1/3, 0 and 3, 2, 1, 0)."""


def reward_loss(
    rewards: Tensor,
    *,
    group_index: Tensor,
    ranks: Tensor,
    num_groups: float | None = None,
    margins: Tensor | None = None,
    center_rewards: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean over groups of the mean over ordered pairs of -logsigmoid(r_better - r_worse); equal ranks are no pair.

    With `center_rewards` c, each pair costs c (r_better + r_worse)^2 more (Eisenstein et al., arXiv 2312.09244): of
    three ranked completions the three pairs count a third each, as they do for the ranking. Ranking alone leaves the
    level of a prompt's rewards open.

    Loss and metrics are divided by `num_groups`: over the microbatches of a step they add up to the step's means.
    Metrics are `accuracy` (share of pairs in the right order), `margin` (mean reward gap of a pair), `mean_reward`
    (mean over each group's completions) and, with `center_rewards`, `squared_sum` (what it is taken times).

    Args:
        rewards: [C] raw.
        group_index: [C] the group of each, in 0 .. G - 1; groups without a pair add nothing.
        ranks: [C] 0 the best (edited), larger is worse.
        num_groups: groups of the whole optimiser step; None: the groups here that have a pair.
        margins: [C] what is taken from the gap of each completion to the one ranked next below it, within logsigmoid;
            other gaps have none. None: none has.
        center_rewards: weight of the squared sums; 0: none.
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
    wanted = gap if margins is None else gap - margins[better].float() * (ranks[worse] - ranks[better] == 1)
    loss = -(functional.logsigmoid(wanted) * pair_weight).sum()
    detached = gap.detach()
    metrics = {
        "accuracy": ((detached > 0).float() * pair_weight).sum(),
        "margin": (detached * pair_weight).sum(),
        "mean_reward": (rewards.detach() / (completions_per_group[group_index] * num_groups)).sum(),
    }
    if center_rewards:
        squared_sum = ((rewards[better] + rewards[worse]).square() * pair_weight).sum()
        loss = loss + center_rewards * squared_sum
        metrics["squared_sum"] = squared_sum.detach()
    return loss, metrics


def margins_of(ranks: Sequence[int], *, strength: Strength | None, margin: float) -> tuple[float, ...]:
    """The margins of a group's completions, for `reward_loss`: the strength's share of `margin` for the chosen one.

    A strength says how much better chosen is than rejected, which are ranked last. Of three ranked completions the
    edited one has no margin, over neither of the two; nor has a group without a strength.
    """
    share = 0.0 if strength is None else MARGIN_SHARES[strength]
    return tuple(margin * share if rank == max(ranks) - 1 else 0.0 for rank in ranks)
