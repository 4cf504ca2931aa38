"""A comparison on a terminal, in at most 80 columns of plain text, and as one HTML page: the same rows of numbers."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from alignloop.comparison.result import ComparedRewards, Histogram, SamplingComparison
from alignloop.report import charts
from alignloop.report.content import PERCENT, Figure, Page, PageSection, Table
from alignloop.report.rounds import MISSING
from alignloop.terminal import WIDTH

LABEL = 20
CELL = 13
BAR = 25
Row = tuple[str, list[str]]
"""A label and its cells."""


def comparison_text(found: SamplingComparison) -> str:
    """Who is compared, rewards, completions, histogram, verdict."""
    lines = []
    for name, side in (("A", found.a), ("B", found.b)):
        lines += _wrapped(f"{name}  {side.name}  ({side.num_candidates} candidates a prompt)", indent="   ")
    for field, old, new in _differing(found):
        lines += _wrapped(f"   {field}: {old} -> {new}", indent="     ")
    only = f" ({found.only_in_a} only in A, {found.only_in_b} only in B)" if found.only_in_a or found.only_in_b else ""
    over = ["all candidates".center(2 * CELL), f"best of {found.best_of}".center(2 * CELL)]
    lines += [f"   {found.num_common} prompts in both{only}", "", (" " * LABEL + "".join(over)).rstrip()]
    lines += [_line(*row) for row in (("reward", ["A", "B", "A", "B"]), *_reward_rows(found))]
    lines.append("")
    for label, _, cells in _difference_rows(found):
        lines.append(_line(label, [part for cell in cells for part in ("", cell)]))  # of two columns' width
    lines += ["", *(_line(*row) for row in (("completions", ["A", "B"]), *_completion_rows(found)))]
    lines += ["", *_histogram(found.all.histogram), ""]
    for sentence in found.verdict:
        lines += _wrapped(sentence)
    for note in found.notes:
        lines += _wrapped(f"- {note}", indent="  ")
    return "\n".join(lines)


def comparison_page(found: SamplingComparison) -> str:
    """HTML that loads nothing."""
    sides = [
        f"{name}: {side.name}, {side.num_candidates} candidates a prompt."
        for name, side in (("A", found.a), ("B", found.b))
    ]
    best = f"best of {found.best_of}"
    differences = [(name, *(cell.replace("+-", "±") for cell in cells)) for _, name, cells in _difference_rows(found)]
    tables = (
        Table.of(["reward", "all, A", "all, B", f"{best}, A", f"{best}, B"], _flat(_reward_rows(found))),
        Table.of(["B against A", "all candidates", best], differences),
        Table.of(["completions", "A", "B"], _flat(_completion_rows(found))),
    )
    remark = (
        "The p-value by candidates takes them all as independent of each other; the one by prompt comes from "
        f"{found.all.difference.num_swaps} random exchanges of A and B prompt by prompt. ± is one standard error."
    )
    figures = (_figure("Rewards of all candidates", found.all), _figure(f"Rewards of the {best}", found.best))
    differing = list(_differing(found))
    page = Page(
        kind="comparison",
        title=f"{found.a.name} and {found.b.name}: rewards",
        heading="Two ways to sample, one reward model",
        state=f"{' '.join(sides)} {found.num_common} prompts in both.",
        table=Table.of(["differs", "A", "B"], differing) if differing else None,
        sentences=tuple(found.verdict),
        sections=(
            PageSection("rewards", "Rewards", "Rewards", figures=figures),
            PageSection("numbers", "Numbers", "Numbers", tables=tables, remark=remark),
        ),
        notes=tuple(found.notes),
    )
    return page.html()


def _figure(title: str, rewards: ComparedRewards) -> Figure:
    """Two distributions as outlines over one axis, their means as lines."""
    edges, shares = rewards.histogram.edges, {"A": rewards.histogram.a, "B": rewards.histogram.b}
    means = {"A": rewards.a.mean, "B": rewards.b.mean}
    chart = charts.outlines(edges, shares, means, x_title="reward (upright lines: means)", y_title="% of completions")
    rows = [
        (f"{edge:g}", PERCENT.cell(a), PERCENT.cell(b)) for edge, a, b in zip(edges, *shares.values(), strict=False)
    ]
    note = f"mean of A {_number(rewards.a.mean)}, of B {_number(rewards.b.mean)}"
    return Figure(title, chart, Table.of(("reward from", "A, %", "B, %"), rows), note)


def _differing(found: SamplingComparison) -> Iterator[tuple[str, str, str]]:
    def text(value: Any) -> str:
        if value is None:
            return "none"
        return f"{value:g}" if isinstance(value, float) else str(value)

    for field, (old, new) in found.differing_settings.items():
        yield field, text(old), text(new)


def _reward_rows(found: SamplingComparison) -> Iterator[Row]:
    """What each side's rewards are like: A and B of all candidates, then of the best of K."""
    sides = [side for kind in (found.all, found.best) for side in (kind.a, kind.b)]
    yield "n", [f"{side.n:,}" for side in sides]
    yield "mean", [_number(side.mean) for side in sides]
    yield "standard deviation", [_number(side.std) for side in sides]
    for name in sides[0].quantiles:
        label = "median" if name == "0.5" else f"{float(name) * 100:g} %"
        yield label, [_number(side.quantiles[name]) for side in sides]


def _difference_rows(found: SamplingComparison) -> Iterator[tuple[str, str, list[str]]]:
    """B against A, of all candidates and of the best of K: the label on the terminal, that on the page, the cells."""
    kinds = (found.all.difference, found.best.difference)
    means = [f"{kind.mean:+.4f} +- {_number(kind.stderr)}" for kind in kinds]
    yield "B - A, by prompt", "mean difference by prompt", means
    yield "  p (paired t)", "p (paired t)", [_pvalue(kind.mean_pvalue) for kind in kinds]
    yield "KS statistic", "KS statistic", [_number(kind.ks) for kind in kinds]
    yield "  p (candidates)", "p (by candidates)", [_pvalue(kind.ks_pvalue) for kind in kinds]
    yield "  p (by prompt)", "p (by prompt)", [_pvalue(kind.swap_pvalue) for kind in kinds]


def _completion_rows(found: SamplingComparison) -> Iterator[Row]:
    sides = (found.a.completions, found.b.completions)
    yield "cut at the limit", [f"{side.truncated:.1%}" for side in sides]
    yield "tokens, mean", [f"{side.mean_tokens:,.1f}" for side in sides]
    yield "tokens, 95 %", [f"{side.p95_tokens:,.0f}" for side in sides]
    yield "characters, mean", [f"{side.mean_characters:,.1f}" for side in sides]
    yield "empty", [f"{side.empty:.1%}" for side in sides]
    yield "distinct", [f"{side.distinct:.1%}" for side in sides]


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.4f}"


def _pvalue(value: float | None) -> str:
    """`0.032`, `< 0.001`."""
    if value is None:
        return MISSING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _histogram(histogram: Histogram) -> list[str]:
    """A row a bin, named by its lower edge; the longest bar of both sides fills its column."""
    tallest = max([*histogram.a, *histogram.b])
    step = histogram.edges[1] - histogram.edges[0]
    digits = max(0, min(6, len(f"{step:.6f}".rstrip("0").partition(".")[2])))
    lines = [f"{'reward from':>11}  {'A, share of all':<{BAR + 7}}  {'B, share of all'}"]
    for edge, *shares in zip(histogram.edges[:-1], histogram.a, histogram.b, strict=True):
        bars = [f"|{'#' * round(BAR * share / tallest):<{BAR}} {share:>5.1%}" for share in shares]
        lines.append(f"{edge:>11.{digits}f} {bars[0]} {bars[1]}")
    return lines


def _line(label: str, cells: Sequence[str]) -> str:
    """Cells right-aligned; a cell may reach into an empty one before it."""
    line = label.ljust(LABEL)
    for index, cell in enumerate(cells, start=1):
        line = line.ljust(LABEL + index * CELL - len(cell)) + cell if cell else line
    return line.rstrip()


def _flat(rows: Iterator[Row]) -> list[tuple[str, ...]]:
    return [(label, *cells) for label, cells in rows]


def _wrapped(text: str, *, indent: str = "") -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent=indent, break_long_words=True, break_on_hyphens=False)
