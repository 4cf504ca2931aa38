"""The losses of a pair with their arithmetic written out; `tests/training/test_equals_trl.py` holds them to TRL's."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from alignloop.config.training import DpoConfig, DpoLoss
from alignloop.objectives.dpo import PER_TOKEN, counted_tokens, dpo_loss, loss_at_reference, pair_losses

LOSSES = get_args(DpoLoss)

# Two pairs. Completions 0, 1 are chosen, rejected of the first; 3, 2 of the second.
LOGPROBS = torch.tensor([-1.0, -2.0, -0.5, -3.0, -0.25, -4.0, -1.0, -0.75])
COMPLETION = torch.tensor([0, 0, 0, 1, 1, 2, 3, 3])
FORMATTING = torch.tensor([False, False, True, False, True, False, False, True])
CHOSEN, REJECTED = torch.tensor([0, 3]), torch.tensor([1, 2])
# Masked sums: chosen -3 (of two tokens) and -1 (of one), rejected -3 and -4 (of one each).
# Log ratios: chosen -3 + 4 = 1 and -1 + 1.5 = 0.5, rejected -3 + 2 = -1 and -4 + 5 = 1: gaps 2 and -0.5.
# A token: chosen 0.5 and 0.5, rejected -1 and 1: gaps 1.5 and -0.5.
REF_CHOSEN, REF_REJECTED = torch.tensor([-4.0, -1.5]), torch.tensor([-2.0, -5.0])


def log_sigmoid(x: float) -> float:
    return -math.log(1.0 + math.exp(-x))


def sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


def loss_of(loss: DpoLoss, logprobs: Tensor = LOGPROBS, **knobs: Any) -> tuple[Tensor, dict[str, Tensor]]:
    has_reference = DpoConfig(loss=loss).has_reference
    return dpo_loss(
        logprobs,
        completion_index=COMPLETION,
        formatting_mask=FORMATTING,
        chosen=CHOSEN,
        rejected=REJECTED,
        ref_chosen_logprobs=REF_CHOSEN if has_reference else None,
        ref_rejected_logprobs=REF_REJECTED if has_reference else None,
        loss=loss,
        **{"nll_coefficient": 0.0} | knobs,
    )


@pytest.mark.parametrize(
    ("loss", "knobs", "expected", "margin"),
    [
        ("sigmoid", {"beta": 0.5}, -(log_sigmoid(1.0) + log_sigmoid(-0.25)) / 2, (1.0 - 0.25) / 2),
        ("sigmoid_norm", {"beta": 0.5}, -(log_sigmoid(0.75) + log_sigmoid(-0.25)) / 2, (0.75 - 0.25) / 2),
        # 1 / (2 beta) = 1 nat a token is wanted: (1.5 - 1)^2 and (-0.5 - 1)^2.
        ("ipo", {"beta": 0.5}, (0.25 + 2.25) / 2, (0.75 - 0.25) / 2),
        # 1 - 1 and 1 + 0.25: the first pair is where it should be.
        ("hinge", {"beta": 0.5}, (0.0 + 1.25) / 2, (1.0 - 0.25) / 2),
        # Of (0.8, 0.2): -(0.8 log s(x) - 0.2 log s(-x)) / 0.6.
        (
            "robust",
            {"beta": 0.5, "label_smoothing": 0.2},
            -(0.8 * log_sigmoid(1.0) - 0.2 * log_sigmoid(-1.0) + 0.8 * log_sigmoid(-0.25) - 0.2 * log_sigmoid(0.25))
            / (0.6 * 2),
            (1.0 - 0.25) / 2,
        ),
        # Chosen at 0.5 and 0.25, rejected at -0.5 and 0.5.
        (
            "apo_zero",
            {"beta": 0.5},
            (1 - sigmoid(0.5) + sigmoid(-0.5) + 1 - sigmoid(0.25) + sigmoid(0.5)) / 2,
            (1.0 - 0.25) / 2,
        ),
        (
            "apo_down",
            {"beta": 0.5},
            (sigmoid(0.5) + 1 - sigmoid(1.0) + sigmoid(0.25) + 1 - sigmoid(-0.25)) / 2,
            (1.0 - 0.25) / 2,
        ),
        # Mean logprobs: chosen -1.5 and -1, rejected -3 and -4. Twice the gaps less gamma: 3 - 1 and 6 - 1.
        ("simpo", {"beta": 2.0, "gamma": 1.0}, -(log_sigmoid(2.0) + log_sigmoid(5.0)) / 2, (3.0 + 6.0) / 2),
    ],
)
def test_each_loss_by_hand(loss: DpoLoss, knobs: dict[str, float], expected: float, margin: float) -> None:
    value, metrics = loss_of(loss, **knobs)
    assert float(value) == pytest.approx(expected, abs=1e-6)
    assert float(metrics["dpo_loss"]) == float(value)
    assert float(metrics["margin"]) == pytest.approx(margin, abs=1e-6)
    assert float(metrics["accuracy"]) == (1.0 if loss == "simpo" else 0.5)
    assert float(metrics["chosen_logprobs"]) == pytest.approx(-2.0)
    # The NLL term, over all five chosen tokens, is the same for all.
    with_nll, _ = loss_of(loss, **knobs, nll_coefficient=0.2)
    assert float(with_nll) == pytest.approx(expected + 0.2 * 5.25 / 5, abs=1e-6)


def test_a_mean_is_over_the_tokens_that_count() -> None:
    def counts(mask: bool) -> list[float]:
        return counted_tokens(
            completion_index=COMPLETION,
            formatting_mask=FORMATTING,
            num_completions=5,
            mask_formatting_tokens=mask,
        ).tolist()

    assert counts(True) == [2.0, 1.0, 1.0, 1.0, 1.0]  # the fifth has no token
    assert counts(False) == [3.0, 2.0, 1.0, 2.0, 1.0]
    # Unmasked: chosen -3.5 / 3 and -1.75 / 2, rejected -3.25 / 2 and -4; twice the gaps.
    value, _ = loss_of("simpo", beta=2.0, mask_formatting_tokens=False)
    gaps = [2 * (-3.5 / 3 + 3.25 / 2), 2 * (-1.75 / 2 + 4.0)]
    assert float(value) == pytest.approx(-sum(map(log_sigmoid, gaps)) / 2, abs=1e-6)


@pytest.mark.parametrize(
    ("loss", "gaps"), [("sigmoid", (1.0, -0.25)), ("sigmoid_norm", (0.75, -0.25)), ("simpo", (0.75 - 0.3, 1.5 - 0.3))]
)
def test_a_margin_is_taken_within_the_sigmoid(loss: DpoLoss, gaps: tuple[float, float]) -> None:
    gamma = {"gamma": 0.3} if loss == "simpo" else {}
    plain = loss_of(loss, beta=0.5, **gamma)[1]
    value, metrics = loss_of(loss, beta=0.5, **gamma, margins=torch.tensor([1.0, 0.5]))
    assert float(value) == pytest.approx(-(log_sigmoid(gaps[0] - 1.0) + log_sigmoid(gaps[1] - 0.5)) / 2, abs=1e-6)
    # What is told of the implicit rewards does not depend on it.
    assert (metrics["margin"], metrics["accuracy"]) == (plain["margin"], plain["accuracy"])
    none, _ = loss_of(loss, beta=0.5, **gamma, margins=torch.zeros(2))
    assert float(none) == float(loss_of(loss, beta=0.5, **gamma)[0])


def test_robust_without_flips_is_sigmoid_and_is_unbiased_with_them() -> None:
    gap, none = torch.tensor([0.7], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)

    def value(chosen: Tensor, rejected: Tensor, loss: DpoLoss, **knobs: float) -> float:
        return float(pair_losses(chosen, rejected, loss=loss, beta=1.0, **knobs)[0])

    clean = value(gap, none, "sigmoid")
    assert value(gap, none, "robust") == pytest.approx(clean)
    # Seen right in 7 of 10 cases, and flipped in 3: the mean of what is seen is the clean loss.
    seen = [value(*pair, "robust", label_smoothing=0.3) for pair in ((gap, none), (none, gap))]
    assert 0.7 * seen[0] + 0.3 * seen[1] == pytest.approx(clean, abs=1e-6)


# ---- gradients


def gradient_of(loss: DpoLoss, **knobs: Any) -> Tensor:
    logprobs = LOGPROBS.clone().requires_grad_()
    loss_of(loss, logprobs, **knobs)[0].backward()
    assert logprobs.grad is not None
    return logprobs.grad


@pytest.mark.parametrize("loss", LOSSES)
def test_a_formatting_token_has_exactly_no_gradient_under_any_loss(loss: DpoLoss) -> None:
    # So small a beta keeps both pairs on the slope of the hinge.
    masked, whole = gradient_of(loss, beta=0.1), gradient_of(loss, beta=0.1, mask_formatting_tokens=False)
    assert torch.equal(masked[FORMATTING], torch.zeros(3))
    # apo_down pulls a chosen completion both ways alike where its log ratio and its lead are of one size (pair 2).
    num_balanced = 1 if loss == "apo_down" else 0
    assert int((masked[~FORMATTING].abs() < 1e-7).sum()) == num_balanced
    assert (whole != 0).all()


def test_gradients_by_hand() -> None:
    # By the chosen tokens 0, 1 (two of their completion) and 6, the rejected 3 and 5; two pairs, beta 0.5.
    tokens = [0, 1, 6, 3, 5]
    # -beta (1 - s(gap)) / 2 pairs / tokens: gaps 0.75 and -0.25.
    first, second = 0.25 * (1 - sigmoid(0.75)), 0.25 * (1 - sigmoid(-0.25))
    found = gradient_of("sigmoid_norm", beta=0.5)[tokens].tolist()
    assert found == pytest.approx([-first / 2, -first / 2, -second, first, second], abs=1e-6)
    # 2 (gap - 1) / 2 pairs / tokens: 0.5 and -1.5.
    found = gradient_of("ipo", beta=0.5)[tokens].tolist()
    assert found == pytest.approx([0.25, 0.25, -1.5, -0.5, 1.5], abs=1e-6)
    # The first pair is beyond the wanted gap; the second has -beta / 2 pairs.
    assert gradient_of("hinge", beta=0.5)[tokens].tolist() == pytest.approx([0, 0, -0.25, 0, 0.25])
    # apo_zero pushes each by itself: beta s'(x) / 2 pairs at 0.5, 0.25 and -0.5, 0.5.
    steep, flat = (0.25 * sigmoid(x) * (1 - sigmoid(x)) for x in (0.25, 0.5))
    found = gradient_of("apo_zero", beta=0.5)[tokens].tolist()
    assert found == pytest.approx([-flat, -flat, -steep, flat, flat], abs=1e-6)


def test_apo_down_lowers_the_chosen_completion_of_a_pair_told_apart() -> None:
    chosen = torch.tensor([0.5], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([-9.0], dtype=torch.float64, requires_grad=True)
    pair_losses(chosen, rejected, loss="apo_down", beta=1.0).sum().backward()
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert float(chosen.grad) > 0.1 > float(rejected.grad) > 0.0


# ---- where policy and reference are the same


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ("sigmoid", 0.693147),
        ("sigmoid_norm", 0.693147),
        ("robust", 0.693147),  # (0.9 - 0.1) ln 2 / 0.8
        ("ipo", 25.0),  # (0 - 1 / (2 * 0.1))^2
        ("hinge", 1.0),
        ("apo_zero", 1.0),  # one half each
        ("apo_down", 1.0),
        ("simpo", None),  # it depends on the model
    ],
)
def test_where_a_training_starts_by_hand(loss: DpoLoss, expected: float | None) -> None:
    value = loss_at_reference(loss, beta=0.1)
    assert value == (expected if expected is None else pytest.approx(expected, abs=1e-6))
    if value is not None:
        none = torch.zeros(3, dtype=torch.float64)
        losses = pair_losses(none, none, loss=loss, beta=0.1, label_smoothing=0.1)
        assert losses.tolist() == pytest.approx([value] * 3)


def test_where_a_training_with_margins_starts_by_hand() -> None:
    # ln 2 without a margin, ln(1 + e^2) = 2.126928 with 2: their mean.
    assert loss_at_reference("sigmoid", beta=0.1, margins=[0.0, 2.0]) == pytest.approx(1.410038, abs=1e-6)
    assert loss_at_reference("sigmoid_norm", beta=5.0, margins=[0.0]) == pytest.approx(math.log(2))
    assert loss_at_reference("sigmoid", beta=0.1, margins=[2000.0]) == 2000.0


def test_config_and_objective_agree_on_what_is_a_mean() -> None:
    assert [loss for loss in LOSSES if DpoConfig(loss=loss).is_per_token] == list(PER_TOKEN)
