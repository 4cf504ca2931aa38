"""The page of one run: everything in one file, nothing loaded from anywhere.

facts.read_run ─► sections (climb, differences, measures, rewards, funnel, work, recipe) ─► completions in the room left
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from alignloop.report.html import elements
from alignloop.report.html.climb import breakdown, climb, headline_keys
from alignloop.report.html.completions import BUDGET_BYTES, completions
from alignloop.report.html.differences import differences, in_points, last_change
from alignloop.report.html.facts import RunFacts
from alignloop.report.html.funnel import funnel
from alignloop.report.html.measures import measures
from alignloop.report.html.recipe import recipe
from alignloop.report.html.rewards import rewards
from alignloop.report.html.series import measure, metric
from alignloop.report.html.text import html
from alignloop.report.html.work import seconds_of, work
from alignloop.report.plots.theme import STYLE

MOST_BYTES = 5_000_000
_MARGIN_BYTES = 100_000
_HERE = Path(__file__).resolve().parent
_TITLES = {
    "climb": "Climb",
    "breakdown": "By type",
    "differences": "Round against round",
    "measures": "Measures",
    "funnel": "Data",
    "rewards": "Rewards",
    "work": "Time",
    "recipe": "Recipe",
    "completions": "Completions",
}


def run_page(run: RunFacts) -> str:
    """The report of one run; of one without a finished round it shows what there is."""
    sections = [climb(run), breakdown(run), differences(run), measures(run), rewards(run), funnel(run), work(run)]
    what = recipe(run)
    top = _top(run)
    taken = sum(len(part.encode()) for part in (*sections, what, *top)) + _MARGIN_BYTES
    side_by_side = completions(run, budget_bytes=max(0, min(BUDGET_BYTES, MOST_BYTES - taken)))
    return document(f"{run.name}: alignloop report", top, [*sections, side_by_side, what], kind="run")


def document(title: str, top: Sequence[str], sections: Sequence[str], *, kind: str) -> str:
    """A whole page: style and script inside it, and a policy that forbids every request."""
    shown = [part for part in sections if part]
    script = _file("search.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:"
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f'<link rel="icon" href="data:,"><title>{html(title)}</title>',
            f"<style>{STYLE}{_file('report.css')}</style></head>",
            f'<body data-report="{kind}">',
            *top,
            _contents(shown),
            "<main>",
            *shown,
            "</main>",
            f"<footer>Made by alignloop, {made}. One file: it loads nothing.</footer>",
            f"<script>{script}</script>",
            "</body></html>",
            "",
        ]
    )


def _top(run: RunFacts) -> list[str]:
    """Name, state, the figures that matter, and what is to be warned of."""
    return [
        f"<header><h1>{html(run.name)}</h1>",
        elements.paragraph(_state(run), kind="note"),
        _tiles(run),
        *(elements.paragraph(sentence) for sentence in said(run)),
        elements.bullets(warnings(run), kind="flags"),
        elements.bullets(run.notes, kind="warn"),
        "</header>",
    ]


def _state(run: RunFacts) -> str:
    asked = run.recipe.get("rounds", "?")
    done = max((row.round for row in run.rows), default=0)
    return f"Recipe {run.recipe.get('name', '?')}, {done} of {asked} rounds done."


def said(run: RunFacts) -> list[str]:
    """What has to be known to read the numbers: who annotated, how far the run is, which round is best."""
    sentences = []
    if not run.finished:
        begun = [stage.dir.relative_to(run.dir).as_posix() for entry in run.rounds for stage in entry.stages]
        last = f"; the last published stage is {begun[-1]}" if begun else "; no stage is published yet"
        sentences.append(f"No round is finished{last}. This page shows what there is.")
    elif run.rows[-1].round == 0:
        sentences.append("Only the base is measured: no round is finished yet. This page shows what there is.")
    best = run.best
    if best is not None and best.row is not None and len(run.rows) > 1:
        key = str(run.recipe["best_metric"])
        change = last_change(run, key, number=best.number, against=0)
        gain = f", {in_points(change)} points against the base" if change is not None else ""
        sentences.append(f"Best round by {key}: {best.label}, with {100 * best.row.metrics[key]:.1f} %{gain}.")
    collect = run.recipe.get("collect") or {}
    if collect.get("num_annotations"):
        who = {
            "simulated": "The annotator is simulated: the benchmark's own checkers, on training prompts only.",
            "judge": "The annotator is a model, not people.",
        }.get(str(collect.get("annotator")))
        sentences += [who] if who else []
    return sentences


def warnings(run: RunFacts) -> list[str]:
    """Flags and gate lines of all rounds."""
    found = []
    for entry in run.finished:
        found += [f"Round {entry.number}: {flag}" for flag in entry.flags]
        if entry.gated is not None:
            found.append(f"Round {entry.number} is held back by the gate: {entry.gated}")
    return found


def _tiles(run: RunFacts) -> str:
    tiles = []
    rounds = run.finished
    best = run.best or (rounds[-1] if rounds else None)
    if best is not None:
        for key in headline_keys(rounds):
            start, end = metric(key)(rounds[0]), metric(key)(best)
            if end is not None:
                error = "" if end.stderr is None else f"± {100 * end.stderr:.1f}, "
                before = f"; base {100 * start.value:.1f}" if start is not None and best is not rounds[0] else ""
                tiles.append((f"{100 * end.value:.1f} %", f"{error}{key}, round {best.label}{before}"))
        accuracy = measure("heldout/accuracy")(rounds[-1]) or measure("heldout_accuracy")(rounds[-1])
        if accuracy is not None:
            tiles.append((f"{100 * accuracy.value:.1f} %", f"reward model held out, round {rounds[-1].label}"))
    seconds = sum(sum(seconds_of(entry).values()) for entry in run.rounds)
    if seconds:
        tiles.append((_duration(seconds), "of work"))
    body = "".join(f'<div class="tile"><b>{html(value)}</b><span>{html(what)}</span></div>' for value, what in tiles)
    return f'<div class="tiles">{body}</div>' if body else ""


def _duration(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours >= 1 else f"{seconds / 60:.1f} min"


def _contents(sections: Sequence[str]) -> str:
    names = [name for name in _TITLES if any(part.startswith(f'<section id="{name}"') for part in sections)]
    links = "".join(f'<a href="#{name}">{_TITLES[name]}</a>' for name in names)
    return f'<nav aria-label="Contents">{links}</nav>' if links else ""


@cache
def _file(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")
