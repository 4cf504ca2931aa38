"""RLOO by hand: advantages, the clipped loss and its gradient, what failed."""

from __future__ import annotations

import math

import pytest
import torch

from alignloop.objectives.rloo import NORMALIZE_EPSILON, least_for_failed, leave_one_out, rloo_loss


def test_the_others_are_the_baseline() -> None:
    """Of 1, 2, 6 the others' means are 4, 3.5 and 1.5."""
    found = leave_one_out(torch.tensor([[1.0, 2.0, 6.0], [5.0, 5.0, 5.0]]))
    assert found.tolist() == [[-3.0, -1.5, 4.5], [0.0, 0.0, 0.0]]


def test_kl_is_taken_from_the_reward() -> None:
    """1 - 0.5 * 2 = 0 and 1 - 0.5 * (-4) = 3: of two, each is the other's baseline."""
    found = leave_one_out(torch.tensor([[1.0, 1.0]]), kl=torch.tensor([[2.0, -4.0]]), kl_coefficient=0.5)
    assert found.tolist() == [[-3.0, 3.0]]


def test_normalised_advantages_have_mean_0_and_spread_1() -> None:
    """-2, 2, -4, 4: their mean is 0, their variance 40 / 3."""
    found = leave_one_out(torch.tensor([[0.0, 2.0], [1.0, 5.0]]), normalize=True)
    expected = torch.tensor([[-2.0, 2.0], [-4.0, 4.0]], dtype=torch.float64) / (math.sqrt(40 / 3) + NORMALIZE_EPSILON)
    torch.testing.assert_close(found, expected)


def test_what_failed_is_worth_less_than_the_least() -> None:
    assert least_for_failed([3.0, 7.0, 4.0], failed=[False, True, False], penalty=1.0) == [3.0, 2.0, 4.0]
    assert least_for_failed([3.0, 7.0], failed=[True, True], penalty=1.0) == [2.0, 2.0]


def loss_of(
    logprobs: torch.Tensor, *, advantages: list[float], old: list[float], **settings: float
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Completion 0 has the tokens 0 and 2, completion 1 the token 1."""
    return rloo_loss(
        logprobs,
        completion_index=torch.tensor([0, 1, 0]),
        old_logprobs=torch.tensor(old, dtype=torch.float64),
        advantages=torch.tensor(advantages),
        **settings,
    )


def test_at_the_policy_that_sampled_it_is_reinforce() -> None:
    """Ratios are 1: the loss is minus the mean advantage, its gradient minus the advantage over 2 at each token."""
    logprobs = torch.tensor([-1.0, -0.5, -2.0], requires_grad=True)
    loss, metrics = loss_of(logprobs, advantages=[3.0, -1.0], old=[-3.0, -0.5])
    loss.backward()
    assert loss.item() == pytest.approx(-1.0)
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([-1.5, 0.5, -1.5])
    assert {name: value.item() for name, value in metrics.items()} == {"clip_share": 0.0, "ratio": 1.0}


def test_a_ratio_that_has_gone_far_enough_counts_no_more() -> None:
    """Completion 0 is 1.5 times as probable and good: clipped at 1.2, no gradient. Completion 1 is half as probable and
    good: what it lost is still to be won back, so it counts as it is."""
    logprobs = torch.tensor([-1.0, -0.5, -2.0], requires_grad=True)
    old = [-3.0 - math.log(1.5), -0.5 - math.log(0.5)]
    loss, metrics = loss_of(logprobs, advantages=[2.0, 1.0], old=old)
    loss.backward()
    assert loss.item() == pytest.approx(-(1.2 * 2.0 + 0.5 * 1.0) / 2)
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([0.0, -0.25, 0.0])
    assert metrics["clip_share"].item() == 0.5
    assert metrics["ratio"].item() == pytest.approx(1.0)


def test_the_two_sides_of_the_clip() -> None:
    """A bad completion at half its probability is clipped at 0.8, or at 0.6 with `clip` 0.4; `clip_high` is for good
    ones."""
    bad = {"advantages": [-1.0, 0.0], "old": [-3.0 - math.log(0.5), -0.5]}
    good = {"advantages": [1.0, 0.0], "old": [-3.0 - math.log(1.5), -0.5]}
    logprobs = torch.tensor([-1.0, -0.5, -2.0])
    assert loss_of(logprobs, **bad)[0].item() == pytest.approx(0.8 / 2)
    assert loss_of(logprobs, **bad, clip=0.4, clip_high=0.45)[0].item() == pytest.approx(0.6 / 2)
    assert loss_of(logprobs, **good, clip=0.1, clip_high=0.3)[0].item() == pytest.approx(-1.3 / 2)


def test_microbatches_add_up_to_the_step() -> None:
    logprobs, old, advantages = torch.tensor([-1.0, -0.5, -2.0]), [-3.2, -0.4], [1.0, -2.0]
    whole, metrics = loss_of(logprobs, advantages=advantages, old=old)
    parts = [
        rloo_loss(
            logprobs[which],
            completion_index=torch.zeros(len(which), dtype=torch.long),
            old_logprobs=torch.tensor(old[number : number + 1], dtype=torch.float64),
            advantages=torch.tensor(advantages[number : number + 1]),
            num_completions=2.0,
        )
        for number, which in enumerate(([0, 2], [1]))
    ]
    assert sum(loss.item() for loss, _ in parts) == pytest.approx(whole.item())
    assert sum(found["ratio"].item() for _, found in parts) == pytest.approx(metrics["ratio"].item())
