"""Numbers for people out of a tally: quantiles, shares, scripts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)
QUANTILE_NAMES = ("least", "5%", "median", "95%", "most")
_SCRIPTS = {
    "Latin": "A-Za-z\u00aa\u00b5\u00ba\u00c0-\u024f\u1e00-\u1eff",
    "Greek": "\u0370-\u03ff\u1f00-\u1fff",
    "Cyrillic": "\u0400-\u052f",
    "Hebrew": "\u0590-\u05ff",
    "Arabic": "\u0600-\u06ff\u0750-\u077f\u08a0-\u08ff",
    "Devanagari": "\u0900-\u097f",
    "Bengali": "\u0980-\u09ff",
    "Tamil": "\u0b80-\u0bff",
    "Thai": "\u0e00-\u0e7f",
    "Hangul": "\u1100-\u11ff\u3130-\u318f\uac00-\ud7af",
    "Kana": "\u3040-\u30ff\u31f0-\u31ff",
    "Han": "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002fa1f",
}
_PATTERNS = {name: re.compile(f"[{letters}]") for name, letters in _SCRIPTS.items()}
_LEAST_SHARE = 0.1
"""Of a text's letters; a script with fewer is a foreign word."""


def quantiles(values: Sequence[int]) -> tuple[int, ...]:
    """Least, 5 %, median, 95 % and most of `values`; of none, zeros."""
    import numpy as np

    if not len(values):
        return (0,) * len(QUANTILES)
    return tuple(int(value) for value in np.quantile(np.asarray(values), QUANTILES, method="nearest"))


def scripts_of(text: str) -> str:
    """The scripts a text is written in, the most used first: `Latin`, `Han + Latin`; `none` for a text without letters.

    Japanese is `Kana + Han` or `Han + Kana`, Chinese `Han`.
    """
    text = text[:4000]
    counts = {name: len(pattern.findall(text)) for name, pattern in _PATTERNS.items()}
    total = sum(counts.values())
    used = [name for name in sorted(counts, key=lambda name: -counts[name]) if counts[name] > _LEAST_SHARE * total]
    return " + ".join(used) if total else "none"


def shares(items: Iterable[str]) -> dict[str, float]:
    """Item -> its share, the most frequent first."""
    counts = Counter(items)
    total = sum(counts.values())
    return {name: count / total for name, count in counts.most_common()}


def counted(counts: Mapping[str, int], *, most: int = 6) -> str:
    """`better 120, slightly_better 80`, the most frequent first."""
    names = sorted(counts, key=lambda name: -counts[name])
    parts = [f"{name} {counts[name]:,}" for name in names[:most]]
    return ", ".join([*parts, *([f"{len(names) - most} more kinds"] if len(names) > most else [])])
