"""Model averaging: the weighted mean of several checkpoints' weights (The Llama 3 Herd of Models, section 4.1.5)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor


def normalised_weights(weights: Sequence[float] | None, *, count: int) -> tuple[float, ...]:
    """Weights that sum to one; None: uniform.

    Raises:
        ValueError: not one weight per checkpoint, a negative one, or a sum of zero.
    """
    if count < 1:
        raise ValueError("nothing to average: no checkpoint given")
    if weights is None:
        return (1.0 / count,) * count
    if len(weights) != count:
        raise ValueError(f"{len(weights)} weights for {count} checkpoints: give one each")
    if any(weight < 0 for weight in weights) or not sum(weights) > 0:
        raise ValueError(f"weights must not be negative and must not all be zero, got {tuple(weights)}")
    return tuple(weight / sum(weights) for weight in weights)


def average_tensors(tensors: Sequence[Tensor], *, weights: Sequence[float], name: str = "tensor") -> Tensor:
    """Weighted mean of equally shaped tensors, in the dtype of the first.

    Summed in float64, so that averaging equal tensors gives them back bit for bit. Integer and bool tensors (step
    counters, masks) have no mean: the last one is copied.

    Args:
        tensors: of any shape, all the same; weights: one each, summing to one.

    Raises:
        ValueError: shapes differ; the message names `name`.
    """
    shapes = {tuple(tensor.shape) for tensor in tensors}
    if len(shapes) > 1:
        raise ValueError(f"{name}: shapes differ between checkpoints: {sorted(shapes)}")
    if not tensors[0].is_floating_point():
        return tensors[-1].clone()
    total = torch.zeros(tensors[0].shape, dtype=torch.float64, device=tensors[0].device)
    for tensor, weight in zip(tensors, weights, strict=True):
        total.add_(tensor.to(torch.float64), alpha=weight)
    return total.to(tensors[0].dtype)


def average_state_dicts(
    states: Sequence[Mapping[str, Tensor]], *, weights: Sequence[float] | None = None
) -> dict[str, Tensor]:
    """Weighted mean of state dicts; the identity on one.

    Raises:
        ValueError: keys or shapes differ, or the weights do not fit.
    """
    shares = normalised_weights(weights, count=len(states))
    for number, state in enumerate(states[1:], start=1):
        check_same_names(states[0].keys(), state.keys(), other=f"state {number}")
    return {name: average_tensors([state[name] for state in states], weights=shares, name=name) for name in states[0]}


def check_same_names(first: Iterable[str], second: Iterable[str], *, other: str) -> None:
    """Raises ValueError, naming up to three tensors, where two sets of tensor names differ."""
    missing, extra = set(first) - set(second), set(second) - set(first)
    if missing or extra:
        example = ", ".join(sorted(missing | extra)[:3])
        raise ValueError(f"{other}: {len(missing)} tensors missing, {len(extra)} unknown (such as {example})")
