"""Weighted means of state dicts."""

from __future__ import annotations

import pytest
import torch

from alignloop.objectives.averaging import average_state_dicts


def test_uniform_and_weighted_means_by_hand() -> None:
    states = [{"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, 6.0])}]
    assert average_state_dicts(states)["w"].tolist() == [2.0, 4.0]
    assert average_state_dicts(states, weights=[3, 1])["w"].tolist() == [1.5, 3.0]


@pytest.mark.parametrize("count", [1, 3, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_averaging_equal_weights_is_the_identity_to_the_bit(count: int, dtype: torch.dtype) -> None:
    weight = torch.randn(1000, generator=torch.Generator().manual_seed(0)).to(dtype)
    average = average_state_dicts([{"w": weight}] * count)["w"]
    assert average.dtype == dtype
    assert torch.equal(average, weight)


def test_buffers_without_a_mean_are_copied() -> None:
    states = [{"n": torch.tensor([1]), "m": torch.tensor([True])}, {"n": torch.tensor([2]), "m": torch.tensor([False])}]
    average = average_state_dicts(states)
    assert average["n"].tolist() == [2]
    assert average["m"].tolist() == [False]


@pytest.mark.parametrize(
    ("states", "weights", "message"),
    [
        ([], None, "no checkpoint"),
        ([{"a": torch.zeros(1)}, {"b": torch.zeros(1)}], None, "state 1: 1 tensors missing, 1 unknown"),
        ([{"a": torch.zeros(1)}, {"a": torch.zeros(2)}], None, "a: shapes differ"),
        ([{"a": torch.zeros(1)}], [0.5, 0.5], "2 weights for 1"),
        ([{"a": torch.zeros(1)}] * 2, [1.0, -1.0], "must not be negative"),
    ],
)
def test_what_does_not_fit_is_an_error(
    states: list[dict[str, torch.Tensor]], weights: list[float] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        average_state_dicts(states, weights=weights)
