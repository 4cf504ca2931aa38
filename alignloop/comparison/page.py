"""A comparison as one HTML page: nothing is loaded from anywhere, light and dark by the reader's setting."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from alignloop.comparison.result import Comparison, Rewards
from alignloop.comparison.text import completion_rows, difference_rows, number, reward_rows, setting_text
from alignloop.report.plots import charts
from alignloop.report.plots.drawing import draw
from alignloop.report.plots.theme import STYLE

PAGE_STYLE = """
body { background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; max-width: 46rem;
  margin: 2rem auto; padding: 0 1rem; overflow-wrap: anywhere; }
table { border-collapse: collapse; margin: 1rem 0; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .5rem; text-align: right; border-bottom: 1px solid var(--faint); font-weight: normal; }
th:first-child, td:first-child { text-align: left; }
thead th { color: var(--soft); }
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
            f"<title>{escape(title)}</title><style>{STYLE}{PAGE_STYLE}</style></head><body>",
            "<h1>Two ways to sample, one reward model</h1>",
            *_who(found),
            *(f"<p>{escape(sentence)}</p>" for sentence in found.verdict),
            "<h2>Rewards of all candidates</h2>",
            _plot(found.all, "Rewards of all candidates"),
            f"<h2>Rewards of the best of {escape(found.best_of)}</h2>",
            _plot(found.best, "Rewards of the best candidates"),
            *_tables(found),
            "</body></html>",
            "",
        ]
    )


def _plot(rewards: Rewards, title: str) -> str:
    """Two distributions as outlines over one axis, their means as lines."""
    sides = (("A", rewards.a, rewards.histogram.a), ("B", rewards.b, rewards.histogram.b))
    spec = charts.outlines(
        rewards.histogram.edges,
        [charts.Outline(name, tuple(shares), side.mean) for name, side, shares in sides],
        x_title="reward (upright lines: means)",
        y_title="% of completions",
    )
    means = f"mean of A {number(rewards.a.mean)}, of B {number(rewards.b.mean)}"
    alt = f"{title}: {means}; the numbers are in the table below"
    return f'<figure class="chart">{draw(spec, alt=alt)}</figure>'


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
    rewards = [(name, *cells) for name, cells in reward_rows(kinds)]
    differences = [(name, *(cell.replace("+-", "±") for cell in cells)) for _, name, cells in difference_rows(kinds)]
    yield "<h2>Numbers</h2>"
    yield _table(["reward", "all, A", "all, B", f"{best}, A", f"{best}, B"], rewards)
    yield _table(["B against A", "all candidates", best], differences)
    yield _table(["completions", "A", "B"], [(name, *cells) for name, cells in completion_rows(found)])
    yield (
        '<p class="notes">The p-value by candidates takes them all as independent of each other; the one by prompt '
        f"comes from {found.all.difference.num_swaps} random exchanges of A and B prompt by prompt. &plusmn; is one "
        "standard error.</p>"
    )
    if found.notes:
        yield '<ul class="notes">' + "".join(f"<li>{escape(note)}</li>" for note in found.notes) + "</ul>"


def _table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in heading)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
