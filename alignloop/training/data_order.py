"""Which groups a step trains on: a function of the seed, so that a resumed run goes on with the same order."""

from __future__ import annotations

import random
from itertools import islice


def step_sizes(num_groups: int, *, batch_groups: int, epochs: int, max_steps: int | None) -> list[int]:
    """Groups of every optimiser step: in an epoch they differ by at most one, the larger ones first.

    An epoch has as few steps as batches of at most `batch_groups` allow, and shares its groups out over them. Cut into
    full batches it would end with what is left over: one group perhaps, at the learning rate of a whole batch.

    Returns:
        One number a step, at most `max_steps`: those change no batch, they leave the later ones out.
    """
    num_steps = -(-num_groups // batch_groups)
    sizes = [(num_groups + step) // num_steps for step in reversed(range(num_steps))] * epochs
    return sizes if max_steps is None else sizes[:max_steps]


def step_batches(
    num_groups: int, *, batch_groups: int, epochs: int, max_steps: int | None, seed: int
) -> list[list[int]]:
    """Group indices of every optimiser step, as many as `step_sizes` says.

    Each epoch is its own permutation; batches do not cross epochs.
    """
    sizes = step_sizes(num_groups, batch_groups=batch_groups, epochs=epochs, max_steps=max_steps)
    orders = (index for epoch in range(epochs) for index in _order(num_groups, epoch=epoch, seed=seed))
    return [list(islice(orders, size)) for size in sizes]


def _order(num_groups: int, *, epoch: int, seed: int) -> list[int]:
    order = list(range(num_groups))
    random.Random(f"{seed}/epoch/{epoch}").shuffle(order)
    return order


def shuffled_completions(num_completions: int, *, group_id: str, seed: int) -> list[int]:
    """Order of a group's completions in its row: where they see each other, their place must not tell their rank."""
    order = list(range(num_completions))
    random.Random(f"{seed}/completions/{group_id}").shuffle(order)
    return order
