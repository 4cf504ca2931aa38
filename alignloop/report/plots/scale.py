"""Where an axis begins and ends, and where labels stand so that none covers another."""

from __future__ import annotations

import math
from collections.abc import Sequence

from alignloop.sampling.reward_statistics import nice_step


def nice_domain(values: Sequence[float], *, least: float | None = None, most: float | None = None) -> list[float]:
    """Round numbers around finite values, with about five steps between.

    Args:
        least, most: what the quantity cannot go beyond (a share: 0 and 100).
    """
    low, high = min(values), max(values)
    if high - low < 1e-9 * max(1.0, abs(high)):
        room = 0.1 * abs(high) or 1.0
        low, high = low - room, high + room
    step = nice_step((high - low) / 5)
    low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    low = low if least is None else max(low, least)
    high = high if most is None else min(high, most)
    return [round(low, 12), round(high, 12)]


def spread(places: Sequence[float], *, gap: float, low: float, high: float) -> list[float]:
    """Places at least `gap` apart, as near to the wanted ones as can be, in their order, from low to high.

    Where there is no room for all, they stand evenly.
    """
    num = len(places)
    if num < 2:
        return list(places)
    if (num - 1) * gap > high - low:
        gap = (high - low) / (num - 1)
    order = sorted(range(num), key=lambda index: places[index])
    found = [min(max(places[index], low), high) for index in order]
    for index in range(1, num):
        found[index] = max(found[index], found[index - 1] + gap)
    found[-1] = min(found[-1], high)
    for index in range(num - 2, -1, -1):
        found[index] = min(found[index], found[index + 1] - gap)
    result = [0.0] * num
    for index, place in zip(order, found, strict=True):
        result[index] = place
    return result
