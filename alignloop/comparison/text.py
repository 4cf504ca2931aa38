"""A comparison on a terminal: at most 80 columns of plain text. The rows of its tables are the page's, too."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from alignloop.comparison.result import Comparison, Difference, Histogram, Rewards

WIDTH = 80
LABEL = 20
CELL = 13
BAR = 25
MISSING = "-"
QUANTILE_NAMES = {"0.5": "median"}
Row = tuple[str, list[str]]
"""A label and its cells."""


def comparison_text(found: Comparison) -> str:
    """Who is compared, rewards, completions, histogram, verdict."""
    completions = [_row(*row) for row in (("completions", ["A", "B"]), *completion_rows(found))]
    lines = [*_who(found), "", *_rewards(found), "", *completions, "", *_histogram(found.all.histogram), ""]
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


def _rewards(found: Comparison) -> Iterator[str]:
    kinds = (found.all, found.best)
    over = ["all candidates".center(2 * CELL), f"best of {found.best_of}".center(2 * CELL)]
    yield (" " * LABEL + "".join(over)).rstrip()
    for row in (("reward", ["A", "B", "A", "B"]), *reward_rows(kinds)):
        yield _row(*row)
    yield ""
    for label, _, cells in difference_rows(kinds):
        yield _row(label, [part for cell in cells for part in ("", cell)])  # of two columns' width


def reward_rows(kinds: Sequence[Rewards]) -> Iterator[Row]:
    """What each side's rewards are like: of each kind A, then B."""
    sides = [side for kind in kinds for side in (kind.a, kind.b)]
    yield "n", [f"{side.n:,}" for side in sides]
    yield "mean", [number(side.mean) for side in sides]
    yield "standard deviation", [number(side.std) for side in sides]
    for name in sides[0].quantiles:
        yield quantile_name(name), [number(side.quantiles[name]) for side in sides]


DIFFERENCES: tuple[tuple[str, str, Callable[[Difference], str]], ...] = (
    ("B - A, by prompt", "mean difference by prompt", lambda found: f"{found.mean:+.4f} +- {number(found.stderr)}"),
    ("  p (paired t)", "p (paired t)", lambda found: pvalue_text(found.mean_pvalue)),
    ("KS statistic", "KS statistic", lambda found: number(found.ks)),
    ("  p (candidates)", "p (by candidates)", lambda found: pvalue_text(found.ks_pvalue)),
    ("  p (by prompt)", "p (by prompt)", lambda found: pvalue_text(found.swap_pvalue)),
)
"""Label on the terminal, on the page, and the cell."""


def difference_rows(kinds: Sequence[Rewards]) -> Iterator[tuple[str, str, list[str]]]:
    """Both labels, and B against A in each kind."""
    for label, long_label, cell in DIFFERENCES:
        yield label, long_label, [cell(kind.difference) for kind in kinds]


def completion_rows(found: Comparison) -> Iterator[Row]:
    """What each side's completions look like."""
    sides = (found.a.completions, found.b.completions)
    yield "cut at the limit", [f"{side.truncated:.1%}" for side in sides]
    yield "tokens, mean", [f"{side.mean_tokens:,.1f}" for side in sides]
    yield "tokens, 95 %", [f"{side.p95_tokens:,.0f}" for side in sides]
    yield "characters, mean", [f"{side.mean_characters:,.1f}" for side in sides]
    yield "empty", [f"{side.empty:.1%}" for side in sides]
    yield "distinct", [f"{side.distinct:.1%}" for side in sides]


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
