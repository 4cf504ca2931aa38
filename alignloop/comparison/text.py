"""A comparison on a terminal: at most 80 columns of plain text."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from alignloop.comparison.result import Comparison, Completions, Histogram, Rewards

WIDTH = 80
LABEL = 20
CELL = 13
BAR = 25
MISSING = "-"
QUANTILE_NAMES = {"0.5": "median"}


def comparison_text(found: Comparison) -> str:
    """Who is compared, rewards, completions, histogram, verdict."""
    lines = [*_who(found), "", *_rewards(found), "", *_completions(found), "", *_histogram(found.all.histogram), ""]
    for sentence in found.verdict:
        lines += _wrapped(sentence)
    for note in found.notes:
        lines += _wrapped(f"- {note}", indent="  ")
    return "\n".join(lines)


def setting_text(value: Any) -> str:
    """A setting's value as a recipe writes it."""
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def number(value: float | None, *, digits: int = 4) -> str:
    """A number for a cell."""
    return MISSING if value is None else f"{value:.{digits}f}"


def pvalue_text(value: float | None) -> str:
    """`0.032`, `< 0.001`."""
    if value is None:
        return MISSING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def quantile_name(name: str) -> str:
    """`0.05` -> `5 %`."""
    return QUANTILE_NAMES.get(name, f"{float(name) * 100:g} %")


def _who(found: Comparison) -> list[str]:
    lines = []
    for name, side in (("A", found.a), ("B", found.b)):
        lines += _wrapped(f"{name}  {side.name}  ({side.num_candidates} candidates a prompt)", indent="   ")
    for field, (old, new) in found.differing_settings.items():
        lines += _wrapped(f"   {field}: {setting_text(old)} -> {setting_text(new)}", indent="     ")
    only = f" ({found.only_in_a} only in A, {found.only_in_b} only in B)" if found.only_in_a or found.only_in_b else ""
    lines.append(f"   {found.num_common} prompts in both{only}")
    return lines


def _rewards(found: Comparison) -> list[str]:
    kinds = (found.all, found.best)
    over = ["all candidates".center(2 * CELL), f"best of {found.best_of}".center(2 * CELL)]
    lines = [(" " * LABEL + "".join(over)).rstrip(), _row("reward", ["A", "B", "A", "B"])]
    lines.append(_row("n", [f"{side.n:,}" for kind in kinds for side in (kind.a, kind.b)]))
    lines.append(_row("mean", [number(side.mean) for kind in kinds for side in (kind.a, kind.b)]))
    lines.append(_row("standard deviation", [number(side.std) for kind in kinds for side in (kind.a, kind.b)]))
    lines += [
        _row(quantile_name(name), [number(side.quantiles[name]) for kind in kinds for side in (kind.a, kind.b)])
        for name in found.all.a.quantiles
    ]
    lines += ["", _row("B - A, by prompt", _wide(kinds, _paired))]
    lines.append(_row("  p (paired t)", _wide(kinds, lambda kind: pvalue_text(kind.difference.mean_pvalue))))
    lines.append(_row("KS statistic", _wide(kinds, lambda kind: number(kind.difference.ks))))
    lines.append(_row("  p (candidates)", _wide(kinds, lambda kind: pvalue_text(kind.difference.ks_pvalue))))
    lines.append(_row("  p (by prompt)", _wide(kinds, lambda kind: pvalue_text(kind.difference.swap_pvalue))))
    return lines


def _paired(kind: Rewards) -> str:
    difference = kind.difference
    error = MISSING if difference.stderr is None else f"{difference.stderr:.4f}"
    return f"{difference.mean:+.4f} +- {error}"


def _wide(kinds: Sequence[Rewards], cell: Any) -> list[str]:
    """Cells of two columns' width."""
    return [part for kind in kinds for part in ("", cell(kind))]


def _completions(found: Comparison) -> list[str]:
    rows = zip(completion_rows(found.a.completions), completion_rows(found.b.completions), strict=True)
    return [_row("completions", ["A", "B"]), *(_row(name, [of_a, of_b]) for (name, of_a), (_, of_b) in rows)]


def completion_rows(side: Completions) -> list[tuple[str, str]]:
    """(name, value) of what completions look like."""
    return [
        ("cut at the limit", f"{side.truncated:.1%}"),
        ("tokens, mean", f"{side.mean_tokens:,.1f}"),
        ("tokens, 95 %", f"{side.p95_tokens:,.0f}"),
        ("characters, mean", f"{side.mean_characters:,.1f}"),
        ("empty", f"{side.empty:.1%}"),
        ("distinct", f"{side.distinct:.1%}"),
    ]


def _histogram(histogram: Histogram) -> list[str]:
    """A row a bin, named by its lower edge; the longest bar of both sides fills its column."""
    tallest = max([*histogram.a, *histogram.b])
    step = histogram.edges[1] - histogram.edges[0]
    digits = max(0, min(6, len(f"{step:.6f}".rstrip("0").partition(".")[2])))
    lines = [f"{'reward from':>11}  {'A, share of all':<{BAR + 7}}  {'B, share of all'}"]
    for edge, a, b in zip(histogram.edges[:-1], histogram.a, histogram.b, strict=True):
        lines.append(f"{edge:>11.{digits}f} |{_bar(a, tallest)} {a:>5.1%} |{_bar(b, tallest)} {b:>5.1%}")
    return lines


def _bar(share: float, tallest: float) -> str:
    return ("#" * round(BAR * share / tallest)).ljust(BAR)


def _row(label: str, cells: Sequence[str]) -> str:
    """Cells right-aligned; a cell may reach into an empty one before it."""
    line = label.ljust(LABEL)
    for index, cell in enumerate(cells, start=1):
        line = line.ljust(LABEL + index * CELL - len(cell)) + cell if cell else line
    return line.rstrip()


def _wrapped(text: str, *, indent: str = "") -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent=indent, break_long_words=True, break_on_hyphens=False)
