"""Which groups a step trains on: a function of the seed, so that a resumed run goes on with the same order."""

from __future__ import annotations

import random


def step_batches(
    num_groups: int, *, batch_groups: int, epochs: int, max_steps: int | None, seed: int
) -> list[list[int]]:
    """Group indices of every optimiser step.

    Each epoch is its own permutation; batches do not cross epochs and the last of an epoch may be smaller.

    Returns:
        One list a step, at most `max_steps`.
    """
    batches: list[list[int]] = []
    for epoch in range(epochs):
        order = list(range(num_groups))
        random.Random(f"{seed}/epoch/{epoch}").shuffle(order)
        batches += [order[start : start + batch_groups] for start in range(0, num_groups, batch_groups)]
    return batches if max_steps is None else batches[:max_steps]


def shuffled_completions(num_completions: int, *, group_id: str, seed: int) -> list[int]:
    """Order of a group's completions in its row: where they see each other, their place must not tell their rank."""
    order = list(range(num_completions))
    random.Random(f"{seed}/completions/{group_id}").shuffle(order)
    return order
