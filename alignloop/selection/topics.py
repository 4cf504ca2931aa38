"""Topics (4.2.3): whose row is what, which rows are code, and how well a classifier does on rows it never saw."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Collection, Sequence

_FENCED = re.compile(r"^[ \t]*(?:```|~~~)", re.MULTILINE)


def is_code(topic: str | None, *texts: str, code_topics: Collection[str]) -> bool:
    """Whether a row is code: its topic is one of `code_topics` (but for case), or a text holds a fenced block."""
    if topic is not None and topic.strip().casefold() in {name.casefold() for name in code_topics}:
        return True
    return any(_FENCED.search(text) for text in texts)


def heldout_places(labels: Sequence[str], *, fraction: float, seed: int) -> set[int]:
    """Places of rows to measure on: `fraction` of each label's, at least one where it has two or more, none of one.

    Drawn with the seed; a label keeps at least one row to learn from.
    """
    held: set[int] = set()
    for label in sorted(set(labels)):
        rows = [index for index, found in enumerate(labels) if found == label]
        number = min(max(round(fraction * len(rows)), 1), len(rows) - 1)
        held.update(random.Random(f"{seed}/{label}").sample(rows, number))
    return held


def accuracy(wanted: Sequence[str], given: Sequence[str]) -> float:
    """Share of labels that agree; 0 of none."""
    return sum(a == b for a, b in zip(wanted, given, strict=True)) / len(wanted) if wanted else 0.0


def majority_share(labels: Sequence[str]) -> float:
    """Share of the commonest label: what always giving it would reach."""
    return max(Counter(labels).values()) / len(labels) if labels else 0.0
