"""A comparison as one HTML page: nothing is loaded from anywhere, light and dark by the reader's setting."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

from alignloop.comparison.result import Comparison, Distribution, Histogram, Rewards
from alignloop.comparison.statistics import nice_step
from alignloop.comparison.text import completion_rows, number, pvalue_text, quantile_name, setting_text

PLOT_WIDTH, PLOT_HEIGHT = 720, 320
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 34, 52
STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1b1f24; --faint: #d4d9df; --soft: #5b6570;
  --a: #1f5fbf; --b: #b8480a; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171a; --ink: #e6e9ec; --faint: #394048; --soft: #a3acb5;
  --a: #7db1ff; --b: #ffa15c; } }
body { background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; max-width: 46rem;
  margin: 2rem auto; padding: 0 1rem; overflow-wrap: anywhere; }
table { border-collapse: collapse; margin: 1rem 0; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .5rem; text-align: right; border-bottom: 1px solid var(--faint); font-weight: normal; }
th:first-child, td:first-child { text-align: left; }
thead th { color: var(--soft); }
svg { width: 100%; height: auto; }
svg text { fill: var(--ink); font: 13px system-ui, sans-serif; }
.grid { stroke: var(--faint); } .axis { stroke: var(--ink); }
.a { stroke: var(--a); fill: var(--a); } .b { stroke: var(--b); fill: var(--b); }
path.a, path.b { fill-opacity: .18; stroke-width: 2; } path.b { stroke-dasharray: 6 3; }
line.a, line.b { stroke-width: 2; } line.b { stroke-dasharray: 6 3; }
.side-a { color: var(--a); } .side-b { color: var(--b); }
.notes { color: var(--soft); }
"""


def comparison_page(found: Comparison) -> str:
    """The page's HTML."""
    title = f"{found.a.name} and {found.b.name}: rewards"
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>",
            "<h1>Two ways to sample, one reward model</h1>",
            *_who(found),
            *(f"<p>{escape(sentence)}</p>" for sentence in found.verdict),
            "<h2>Rewards of all candidates</h2>",
            plot(found.all.histogram, (found.all.a.mean, found.all.b.mean), title="Rewards of all candidates"),
            f"<h2>Rewards of the best of {escape(found.best_of)}</h2>",
            plot(found.best.histogram, (found.best.a.mean, found.best.b.mean), title="Rewards of the best candidates"),
            *_tables(found),
            "</body></html>",
            "",
        ]
    )


def plot(histogram: Histogram, means: tuple[float, float], *, title: str) -> str:
    """Two distributions as outlines over one axis, their means as lines; an SVG of labelled axes."""
    edges = histogram.edges
    tallest = max([*histogram.a, *histogram.b]) * 1.05
    plot_right, plot_bottom = PLOT_WIDTH - RIGHT, PLOT_HEIGHT - BOTTOM

    def across(reward: float) -> float:
        inside = min(max(reward, edges[0]), edges[-1])
        return LEFT + (inside - edges[0]) / (edges[-1] - edges[0]) * (plot_right - LEFT)

    def up(share: float) -> float:
        return plot_bottom - share / tallest * (plot_bottom - TOP)

    parts = [f'<svg viewBox="0 0 {PLOT_WIDTH} {PLOT_HEIGHT}" role="img" aria-label="{escape(title)}">']
    for share in _ticks(0.0, tallest):
        y = up(share)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{plot_right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{share * 100:g} %</text>')
    for reward in _ticks(edges[0], edges[-1]):
        x = across(reward)
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{plot_bottom}" y2="{plot_bottom + 5}"/>')
        parts.append(f'<text x="{x:.1f}" y="{plot_bottom + 20}" text-anchor="middle">{reward:g}</text>')
    for name, shares, mean in (("a", histogram.a, means[0]), ("b", histogram.b, means[1])):
        steps = [f"M{LEFT} {plot_bottom}"]
        for left, right, share in zip(edges[:-1], edges[1:], shares, strict=True):
            steps.append(f"L{across(left):.1f} {up(share):.1f}L{across(right):.1f} {up(share):.1f}")
        parts.append(f'<path class="{name}" d="{"".join(steps)}L{plot_right} {plot_bottom}Z"/>')
        x = across(mean)
        parts.append(f'<line class="{name}" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{plot_bottom}"/>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{plot_right}" y1="{plot_bottom}" y2="{plot_bottom}"/>')
    middle = (LEFT + plot_right) / 2
    parts.append(f'<text x="{middle}" y="{PLOT_HEIGHT - 8}" text-anchor="middle">reward (upright lines: means)</text>')
    parts.append(
        f'<text x="14" y="{(TOP + plot_bottom) / 2}" text-anchor="middle" '
        f'transform="rotate(-90 14 {(TOP + plot_bottom) / 2})">share of completions</text>'
    )
    return "".join([*parts, *_legend(), "</svg>"])


def _legend() -> Iterable[str]:
    for index, name in enumerate(("a", "b")):
        x = LEFT + 10 + 70 * index
        yield f'<line class="{name}" x1="{x}" x2="{x + 26}" y1="16" y2="16"/>'
        yield f'<text x="{x + 33}" y="20">{name.upper()}</text>'


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers from low to high, about six."""
    step = nice_step((high - low) / 6)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _who(found: Comparison) -> Iterable[str]:
    for name, side in (("A", found.a), ("B", found.b)):
        yield (
            f'<p><strong class="side-{name.lower()}">{name}</strong> {escape(side.name)}, {side.num_candidates} '
            "candidates a prompt</p>"
        )
    if found.differing_settings:
        rows = [(field, setting_text(a), setting_text(b)) for field, (a, b) in found.differing_settings.items()]
        yield _table(["differs", "A", "B"], rows)
    yield f"<p>{found.num_common} prompts in both.</p>"


def _tables(found: Comparison) -> Iterable[str]:
    kinds = (found.all, found.best)
    best = f"best of {found.best_of}"
    sides = [side for kind in kinds for side in (kind.a, kind.b)]
    yield "<h2>Numbers</h2>"
    yield _table(["reward", "all, A", "all, B", f"{best}, A", f"{best}, B"], _distribution_rows(sides))
    yield _table(["B against A", "all candidates", best], _difference_rows(kinds))
    of_a, of_b = completion_rows(found.a.completions), completion_rows(found.b.completions)
    yield _table(["completions", "A", "B"], [(name, a, b) for (name, a), (_, b) in zip(of_a, of_b, strict=True)])
    yield (
        '<p class="notes">The p-value by candidates takes them all as independent of each other; the one by prompt '
        f"comes from {found.all.difference.num_swaps} random exchanges of A and B prompt by prompt. &plusmn; is one "
        "standard error.</p>"
    )
    if found.notes:
        yield '<ul class="notes">' + "".join(f"<li>{escape(note)}</li>" for note in found.notes) + "</ul>"


def _distribution_rows(sides: Sequence[Distribution]) -> Iterable[Sequence[str]]:
    yield ["n", *(f"{side.n:,}" for side in sides)]
    yield ["mean", *(number(side.mean) for side in sides)]
    yield ["standard deviation", *(number(side.std) for side in sides)]
    for name in sides[0].quantiles:
        yield [quantile_name(name), *(number(side.quantiles[name]) for side in sides)]


def _difference_rows(kinds: Sequence[Rewards]) -> Iterable[Sequence[str]]:
    differences = [kind.difference for kind in kinds]
    yield ["mean difference by prompt", *(f"{d.mean:+.4f} ± {number(d.stderr)}" for d in differences)]
    yield ["p (paired t)", *(pvalue_text(d.mean_pvalue) for d in differences)]
    yield ["KS statistic", *(number(d.ks) for d in differences)]
    yield ["p (by candidates)", *(pvalue_text(d.ks_pvalue) for d in differences)]
    yield ["p (by prompt)", *(pvalue_text(d.swap_pvalue) for d in differences)]


def _table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in heading)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
