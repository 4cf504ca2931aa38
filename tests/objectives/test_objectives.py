"""The objectives with their arithmetic written out; `tests/training/test_equals_trl.py` holds them to TRL's."""

from __future__ import annotations

import math

import pytest
import torch

from alignloop.objectives.dpo import dpo_loss, masked_sums
from alignloop.objectives.reward import margins_of, reward_loss
from alignloop.objectives.sft import sft_loss


def log_sigmoid(x: float) -> float:
    return -math.log(1.0 + math.exp(-x))


# ---- reward


def test_reward_loss_by_hand() -> None:
    # Group 0: edited 2, chosen 1, rejected -1 (three pairs); group 1: 0 against 0.5 in the wrong order (one pair).
    rewards = torch.tensor([1.0, 0.0, 2.0, -1.0, 0.5])
    groups = torch.tensor([0, 1, 0, 0, 1])
    ranks = torch.tensor([1, 0, 0, 2, 1])
    first = -(log_sigmoid(2 - 1) + log_sigmoid(2 + 1) + log_sigmoid(1 + 1)) / 3
    second = -log_sigmoid(0 - 0.5)
    loss, metrics = reward_loss(rewards, group_index=groups, ranks=ranks)
    assert float(loss) == pytest.approx((first + second) / 2)
    assert float(metrics["accuracy"]) == pytest.approx((1.0 + 0.0) / 2)
    assert float(metrics["margin"]) == pytest.approx(((1 + 3 + 2) / 3 - 0.5) / 2)
    assert float(metrics["mean_reward"]) == pytest.approx((2 / 3 + 0.25) / 2)


def test_a_margin_is_taken_from_the_gap_of_chosen_over_rejected_by_hand() -> None:
    # The rewards and groups of the test above. Of a margin of 3, `better` has 2: the first group's chosen over rejected
    # has the gap 2 - 2; its edited one keeps its gaps of 1 and 3. `significantly_better`: -0.5 - 3 in the second.
    rewards = torch.tensor([1.0, 0.0, 2.0, -1.0, 0.5])
    groups, ranks = torch.tensor([0, 1, 0, 0, 1]), torch.tensor([1, 0, 0, 2, 1])
    margins = torch.tensor([2.0, 3.0, 0.0, 0.0, 0.0])
    first = -(log_sigmoid(2 - 1) + log_sigmoid(2 + 1) + math.log(0.5)) / 3
    second = -log_sigmoid(-3.5)
    loss, metrics = reward_loss(rewards, group_index=groups, ranks=ranks, margins=margins)
    assert float(loss) == pytest.approx((first + second) / 2)
    # What is told of the rewards does not depend on it.
    plain = reward_loss(rewards, group_index=groups, ranks=ranks)[1]
    assert metrics == plain
    none, _ = reward_loss(rewards, group_index=groups, ranks=ranks, margins=torch.zeros(5))
    assert float(none) == float(reward_loss(rewards, group_index=groups, ranks=ranks)[0])


def test_margins_of_a_group_by_its_strength() -> None:
    assert margins_of((0, 1), strength="significantly_better", margin=3.0) == (3.0, 0.0)
    assert margins_of((0, 1, 2), strength="better", margin=3.0) == (0.0, 2.0, 0.0)
    assert margins_of((2, 0, 1), strength="slightly_better", margin=3.0) == (0.0, 0.0, 1.0)  # shuffled
    assert margins_of((0, 1), strength="marginally_better", margin=3.0) == (0.0, 0.0)
    assert margins_of((0, 1), strength=None, margin=3.0) == (0.0, 0.0)


def test_reward_loss_of_one_pair_and_its_gradient_by_hand() -> None:
    # r = (1, 0.5): -log sigmoid(0.5) = 0.474077; its derivative is -(1 - sigmoid(0.5)) = -0.377541 by the better one.
    rewards = torch.tensor([1.0, 0.5], requires_grad=True)
    loss, _ = reward_loss(rewards, group_index=torch.tensor([0, 0]), ranks=torch.tensor([0, 1]))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.474077, abs=1e-6)
    assert rewards.grad is not None
    assert rewards.grad.tolist() == pytest.approx([-0.377541, 0.377541], abs=1e-6)


def test_centred_rewards_cost_the_squared_sum_of_each_pair_by_hand() -> None:
    # The first group's three pairs, edited 2, chosen 1, rejected -1: sums 3, 1, 0, squares 9, 1, 0, of mean 10 / 3.
    # The second group's one pair, 0 and 0.5: 0.25. Over both groups (10 / 3 + 0.25) / 2.
    rewards = torch.tensor([1.0, 0.0, 2.0, -1.0, 0.5])
    groups, ranks = torch.tensor([0, 1, 0, 0, 1]), torch.tensor([1, 0, 0, 2, 1])
    plain, told = reward_loss(rewards, group_index=groups, ranks=ranks)
    loss, metrics = reward_loss(rewards, group_index=groups, ranks=ranks, center_rewards=0.1)
    squared_sum = (10 / 3 + 0.25) / 2
    assert float(metrics.pop("squared_sum")) == pytest.approx(squared_sum)
    assert float(loss) == pytest.approx(float(plain) + 0.1 * squared_sum)
    assert metrics == told
    # A level that ranking does not see: 10 more for each adds to the squares alone.
    raised, metrics = reward_loss(rewards + 10, group_index=groups, ranks=ranks, center_rewards=0.1)
    assert float(metrics["squared_sum"]) == pytest.approx(((23**2 + 21**2 + 20**2) / 3 + 20.5**2) / 2)
    assert float(raised) == pytest.approx(float(plain) + 0.1 * float(metrics["squared_sum"]))


def test_centring_pulls_both_rewards_of_a_pair_alike_by_hand() -> None:
    # r = (1, 0.5): its derivative by each is 2 * 0.01 * 1.5 = 0.03, beside the ranking's -0.377541 and 0.377541.
    rewards = torch.tensor([1.0, 0.5], requires_grad=True)
    loss, _ = reward_loss(rewards, group_index=torch.tensor([0, 0]), ranks=torch.tensor([0, 1]), center_rewards=0.01)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.474077 + 0.01 * 2.25, abs=1e-6)
    assert rewards.grad is not None
    assert rewards.grad.tolist() == pytest.approx([-0.347541, 0.407541], abs=1e-6)


def test_a_group_counts_once_however_many_pairs_it_has() -> None:
    # Three pairs at ln 2 (all rewards equal) and one pair at -log sigmoid(2): the mean over groups is
    # (ln 2 + 0.126928) / 2 = 0.410038; over all four pairs it would be (3 ln 2 + 0.126928) / 4 = 0.551592.
    rewards, ranks = torch.tensor([0.0, 0.0, 0.0, 2.0, 0.0]), torch.tensor([0, 1, 2, 0, 1])
    loss, _ = reward_loss(rewards, group_index=torch.tensor([0, 0, 0, 1, 1]), ranks=ranks)
    assert float(loss) == pytest.approx(0.410038, abs=1e-6)


def test_reward_loss_with_a_tie_by_hand() -> None:
    # One above two that tie, rewards (1, 0, 3): two pairs, gaps 1 and -2; the tied ones, 3 apart, are not compared.
    # A second group of nothing but ties has no pair: it adds nothing and is not counted.
    rewards, groups = torch.tensor([1.0, 0.0, 3.0, 5.0, -5.0]), torch.tensor([0, 0, 0, 1, 1])
    loss, metrics = reward_loss(rewards, group_index=groups, ranks=torch.tensor([0, 1, 1, 0, 0]))
    assert float(loss) == pytest.approx(-(log_sigmoid(1) + log_sigmoid(-2)) / 2)
    assert float(metrics["accuracy"]) == 0.5
    assert float(metrics["margin"]) == pytest.approx((1 - 2) / 2)


def test_equal_rewards_give_ln_2_and_are_not_right() -> None:
    loss, metrics = reward_loss(torch.zeros(3), group_index=torch.zeros(3, dtype=torch.int64), ranks=torch.arange(3))
    assert float(loss) == pytest.approx(math.log(2))
    assert float(metrics["accuracy"]) == 0.0


def test_shares_of_a_step_add_up() -> None:
    rewards, groups, ranks = torch.tensor([1.0, 0.0, 2.0, -1.0]), torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    whole, _ = reward_loss(rewards, group_index=groups, ranks=ranks)
    one, _ = reward_loss(rewards[:2], group_index=groups[:2], ranks=ranks[:2], num_groups=2)
    two, _ = reward_loss(rewards[2:], group_index=groups[2:], ranks=ranks[2:], num_groups=2)
    assert float(one + two) == pytest.approx(float(whole))
    whole, _ = reward_loss(rewards, group_index=groups, ranks=ranks, center_rewards=0.5)
    one, _ = reward_loss(rewards[:2], group_index=groups[:2], ranks=ranks[:2], num_groups=2, center_rewards=0.5)
    two, _ = reward_loss(rewards[2:], group_index=groups[2:], ranks=ranks[2:], num_groups=2, center_rewards=0.5)
    assert float(one + two) == pytest.approx(float(whole))


# ---- SFT


def test_sft_loss_is_the_mean_over_tokens() -> None:
    loss, metrics = sft_loss(torch.tensor([-1.0, -2.0, -6.0]))
    assert float(loss) == float(metrics["nll_loss"]) == 3.0
    assert float(sft_loss(torch.tensor([-1.0, -2.0]), num_tokens=3)[0]) == 1.0


def test_sft_without_a_target_is_an_error() -> None:
    with pytest.raises(ValueError, match="no target token"):
        sft_loss(torch.tensor([]))


# ---- DPO: two pairs. Completions 0, 1 are chosen, rejected of the first; 3, 2 of the second.

LOGPROBS = torch.tensor([-1.0, -2.0, -0.5, -3.0, -0.25, -4.0, -1.0, -0.75])
COMPLETION = torch.tensor([0, 0, 0, 1, 1, 2, 3, 3])
FORMATTING = torch.tensor([False, False, True, False, True, False, False, True])
CHOSEN, REJECTED = torch.tensor([0, 3]), torch.tensor([1, 2])
REF_CHOSEN, REF_REJECTED = torch.tensor([-3.5, -1.5]), torch.tensor([-2.0, -3.0])


def loss_of(logprobs: torch.Tensor = LOGPROBS, **knobs: object) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    return dpo_loss(
        logprobs,
        completion_index=COMPLETION,
        formatting_mask=FORMATTING,
        chosen=CHOSEN,
        rejected=REJECTED,
        ref_chosen_logprobs=REF_CHOSEN,
        ref_rejected_logprobs=REF_REJECTED,
        **knobs,  # type: ignore[arg-type]
    )


def test_dpo_loss_by_hand() -> None:
    # Masked sums: chosen -3 and -1, rejected -3 and -4.
    # Log ratios: (-3 + 3.5) - (-3 + 2) = 1.5; (-1 + 1.5) - (-4 + 3) = 1.5.
    loss, metrics = loss_of(beta=0.1, nll_coefficient=0.2)
    dpo = -log_sigmoid(0.1 * 1.5)
    # NLL over the five chosen tokens, formatting tokens included: 1 + 2 + 0.5 + 1 + 0.75.
    nll = 5.25 / 5
    assert float(metrics["dpo_loss"]) == pytest.approx(dpo)
    assert float(metrics["nll_loss"]) == pytest.approx(nll)
    assert float(loss) == pytest.approx(dpo + 0.2 * nll)
    assert float(metrics["accuracy"]) == 1.0
    assert float(metrics["margin"]) == pytest.approx(0.15)
    assert float(metrics["chosen_logprobs"]) == pytest.approx(-2.0)
    assert float(metrics["rejected_logprobs"]) == pytest.approx(-3.5)


def test_without_the_mask_the_ends_count() -> None:
    sums = masked_sums(
        LOGPROBS,
        completion_index=COMPLETION,
        formatting_mask=FORMATTING,
        num_completions=4,
        mask_formatting_tokens=False,
    )
    assert sums.tolist() == [-3.5, -3.25, -4.0, -1.75]


@pytest.mark.parametrize(
    ("reduction", "expected"),
    [
        ("token_mean", (1 + 2 + 0.5 + 1 + 0.75) / 5),
        ("sequence_mean", ((1 + 2 + 0.5) / 3 + (1 + 0.75) / 2) / 2),
        ("sum", ((1 + 2 + 0.5) + (1 + 0.75)) / 2),
    ],
)
def test_nll_reductions_by_hand(reduction: str, expected: float) -> None:
    assert float(loss_of(nll_reduction=reduction)[1]["nll_loss"]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("reduction", "gradient"),
    [
        # By chosen token 0, 1, 2 (first pair) and 6, 7 (second), times the coefficient 0.2.
        ("token_mean", [-0.04] * 5),  # 1 / 5 tokens
        ("sequence_mean", [-0.2 / 6] * 3 + [-0.2 / 4] * 2),  # 1 / (2 sequences * 3 tokens), 1 / (2 * 2)
        ("sum", [-0.1] * 5),  # 1 / 2 sequences
    ],
)
@pytest.mark.parametrize("mask", [True, False])
def test_mask_and_nll_reduction_do_not_touch_each_other(reduction: str, gradient: list[float], mask: bool) -> None:
    def gradient_of(**knobs: object) -> torch.Tensor:
        logprobs = LOGPROBS.clone().requires_grad_()
        loss_of(logprobs, mask_formatting_tokens=mask, **knobs)[0].backward()
        assert logprobs.grad is not None
        return logprobs.grad

    dpo_alone = gradient_of(nll_coefficient=0.0)
    assert bool((dpo_alone[FORMATTING] == 0).all()) is mask
    nll_alone = gradient_of(nll_coefficient=0.2, nll_reduction=reduction) - dpo_alone
    assert nll_alone[[0, 1, 2, 6, 7]].tolist() == pytest.approx(gradient, abs=1e-7)
    assert nll_alone[[3, 4, 5]].tolist() == pytest.approx([0.0] * 3, abs=1e-8)


def test_dpo_gradient_by_hand() -> None:
    # Both log ratios are 1.5: -beta * (1 - sigmoid(0.15)) / 2 pairs = -0.1 * 0.462570 / 2 by each token that counts.
    logprobs = LOGPROBS.clone().requires_grad_()
    loss_of(logprobs, nll_coefficient=0.0)[0].backward()
    assert logprobs.grad is not None
    step = 0.0231285
    assert logprobs.grad.tolist() == pytest.approx([-step, -step, 0, step, 0, step, -step, 0], abs=1e-7)
    assert torch.equal(logprobs.grad[FORMATTING], torch.zeros(3))


def test_sums_of_thousands_of_nats_keep_what_dpo_looks_for() -> None:
    # 4,000 tokens at -2.001 and at -2 nats differ by 4 nats: float32 sums, one after another, are off by tenths.
    index = torch.zeros(4000, dtype=torch.int64)
    sums = [
        masked_sums(
            torch.full((4000,), value),
            completion_index=index,
            formatting_mask=torch.zeros(4000, dtype=torch.bool),
            num_completions=1,
        )
        for value in (-2.001, -2.0)
    ]
    assert float(sums[1] - sums[0]) == pytest.approx(4000 * (float(torch.tensor(2.001)) - 2.0), abs=1e-9)
