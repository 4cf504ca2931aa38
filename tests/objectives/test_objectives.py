"""The three objectives with their arithmetic written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from alignloop.objectives.dpo import dpo_loss, dpo_term, masked_sums, nll_term
from alignloop.objectives.logprobs import completion_sums, token_logprobs
from alignloop.objectives.reward import ordered_pairs, reward_loss
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


def test_equal_ranks_are_not_compared() -> None:
    better, worse = ordered_pairs(torch.tensor([0, 0, 0]), ranks=torch.tensor([0, 1, 1]))
    assert sorted(zip(better.tolist(), worse.tolist(), strict=True)) == [(0, 1), (0, 2)]


def test_reward_loss_of_pairs_is_trls() -> None:
    # TRL's RewardTrainer: -logsigmoid(chosen - rejected).mean() without a margin column.
    draw = torch.Generator().manual_seed(0)
    chosen, rejected = torch.randn(7, generator=draw), torch.randn(7, generator=draw)
    rewards = torch.stack([chosen, rejected], dim=1).flatten()
    loss, _ = reward_loss(rewards, group_index=torch.arange(7).repeat_interleave(2), ranks=torch.tensor([0, 1] * 7))
    assert float(loss) == pytest.approx(float(-functional.logsigmoid(chosen - rejected).mean()), abs=1e-6)


def test_shares_of_a_step_add_up() -> None:
    rewards, groups, ranks = torch.tensor([1.0, 0.0, 2.0, -1.0]), torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    whole, _ = reward_loss(rewards, group_index=groups, ranks=ranks)
    one, _ = reward_loss(rewards[:2], group_index=groups[:2], ranks=ranks[:2], num_groups=2)
    two, _ = reward_loss(rewards[2:], group_index=groups[2:], ranks=ranks[2:], num_groups=2)
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


def test_formatting_tokens_have_exactly_no_gradient_from_the_dpo_term() -> None:
    logprobs = LOGPROBS.clone().requires_grad_()
    loss_of(logprobs, nll_coefficient=0.0)[0].backward()
    assert logprobs.grad is not None
    assert torch.equal(logprobs.grad[FORMATTING], torch.zeros(3))
    assert (logprobs.grad[~FORMATTING] != 0).all()


def test_formatting_tokens_of_the_chosen_completion_keep_their_nll_gradient() -> None:
    logprobs = LOGPROBS.clone().requires_grad_()
    loss_of(logprobs, nll_coefficient=0.2)[0].backward()
    assert logprobs.grad is not None
    # -0.2 / 5 tokens at the chosen ends (tokens 2 and 7), nothing at the rejected one (token 4).
    assert logprobs.grad[FORMATTING].tolist() == pytest.approx([-0.04, 0.0, -0.04])


def test_without_the_mask_the_ends_count() -> None:
    sums = masked_sums(
        LOGPROBS,
        completion_index=COMPLETION,
        formatting_mask=FORMATTING,
        num_completions=4,
        mask_formatting_tokens=False,
    )
    assert sums.tolist() == [-3.5, -3.25, -4.0, -1.75]


def test_policy_equal_to_the_reference_gives_ln_2() -> None:
    same = torch.tensor([-7.0, -2.0])
    loss, _ = dpo_term(
        chosen_logprobs=same,
        rejected_logprobs=same - 1,
        ref_chosen_logprobs=same,
        ref_rejected_logprobs=same - 1,
        beta=0.1,
    )
    assert float(loss) == pytest.approx(math.log(2))


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
    on_chosen = torch.tensor([-1.0, -2.0, -0.5, -1.0, -0.75])
    index = torch.tensor([0, 0, 0, 1, 1])
    assert float(nll_term(on_chosen, sequence_index=index, reduction=reduction)) == pytest.approx(expected)  # type: ignore[arg-type]


def test_with_the_mask_off_loss_and_gradient_are_trls() -> None:
    # TRL 1.16, loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.2]: padded [2N, T] logprobs, chosen first.
    draw = torch.Generator().manual_seed(1)
    per_token = (-torch.rand(6, 5, generator=draw)).requires_grad_()
    lengths = torch.tensor([5, 3, 4, 2, 5, 1])
    mask = torch.arange(5)[None] < lengths[:, None]
    reference = -torch.rand(6, generator=draw) * 3
    chosen_sums, rejected_sums = (per_token * mask).sum(1).chunk(2)
    delta = (chosen_sums - reference[:3]) - (rejected_sums - reference[3:])
    theirs = -functional.logsigmoid(0.1 * delta).mean() + 0.2 * -per_token[:3][mask[:3]].mean()
    (their_gradient,) = torch.autograd.grad(theirs, per_token)

    ours, _ = dpo_loss(
        per_token[mask],
        completion_index=torch.arange(6).repeat_interleave(lengths),
        formatting_mask=torch.ones(int(mask.sum()), dtype=torch.bool),
        chosen=torch.arange(3),
        rejected=torch.arange(3, 6),
        ref_chosen_logprobs=reference[:3],
        ref_rejected_logprobs=reference[3:],
        mask_formatting_tokens=False,
    )
    (our_gradient,) = torch.autograd.grad(ours, per_token)
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), abs=1e-6)
    torch.testing.assert_close(our_gradient, their_gradient, atol=1e-7, rtol=1e-6)


# ---- logprobs


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("chunk_logits", [10**9, 40, 1], ids=["whole", "four tokens", "one token"])
def test_chunked_head_gives_the_logprobs_and_gradients_of_a_full_softmax(
    softcap: float | None, chunk_logits: int
) -> None:
    draw = torch.Generator().manual_seed(2)
    hidden = torch.randn(9, 6, generator=draw, requires_grad=True)
    weight = torch.randn(10, 6, generator=draw, requires_grad=True)
    bias = torch.randn(10, generator=draw)
    targets = torch.randint(0, 10, (9,), generator=draw)
    logits = (hidden @ weight.T + bias) * 0.5
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    expected = logits.log_softmax(-1)[torch.arange(9), targets]
    ours = token_logprobs(
        hidden,
        target_ids=targets,
        head_weight=weight,
        head_bias=bias,
        scale=0.5,
        softcap=softcap,
        chunk_logits=chunk_logits,
    )
    torch.testing.assert_close(ours, expected)
    scale = torch.linspace(-1, 1, 9)
    theirs = torch.autograd.grad((expected * scale).sum(), (hidden, weight))
    mine = torch.autograd.grad((ours * scale).sum(), (hidden, weight))
    torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5)


def test_completion_sums_by_hand() -> None:
    sums = completion_sums(torch.tensor([1.0, 2.0, 4.0]), completion_index=torch.tensor([2, 0, 2]), num_completions=4)
    assert sums.tolist() == [2.0, 0.0, 5.0, 0.0]
