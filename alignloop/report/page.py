"""The page of one run.

facts.read_run -> sections (benchmarks, measures, work) -> completions in the bytes that are left -> render.render
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from alignloop.report.benchmarks import breakdown, climb, differences, headline_keys, in_points
from alignloop.report.completions import completions
from alignloop.report.content import PERCENT, Page
from alignloop.report.facts import RunRecord, measure, metric
from alignloop.report.measures import measures, rewards
from alignloop.report.render import bytes_left
from alignloop.report.work import funnel, recipe, work

ANNOTATORS = {
    "simulated": "The annotator is simulated: the benchmark's own checkers, on training prompts only.",
    "judge": "The annotator is a model, not people.",
}


def run_page(run: RunRecord) -> Page:
    """The report of one run; of one without a finished round it shows what there is."""
    sections = (climb, breakdown, differences, measures, rewards, funnel, work)
    page = Page(
        kind="run",
        title=f"{run.name}: alignloop report",
        heading=run.name,
        state=f"Recipe {run.recipe.get('name', '?')}, {run.num_done} of {run.recipe.get('rounds', '?')} rounds done.",
        tiles=tuple(_tiles(run)),
        sentences=tuple(sentences_of(run)),
        warnings=tuple(warnings_of(run)),
        notes=run.notes,
        sections=(*(section(run) for section in sections), recipe(run)),
    )
    answers = completions(run, budget_bytes=bytes_left(page))
    return replace(page, sections=(*page.sections[:-1], answers, page.sections[-1]))


def sentences_of(run: RunRecord) -> Iterator[str]:
    """What has to be known to read the numbers: how far the run is, which round is best, who annotated."""
    if not run.finished:
        begun = [stage.dir.relative_to(run.dir).as_posix() for entry in run.rounds for stage in entry.stages]
        last = f"the last published stage is {begun[-1]}" if begun else "no stage is published yet"
        yield f"No round is finished; {last}. This page shows what there is."
    elif not run.num_done:
        yield "Only the base is measured: no round is finished yet. This page shows what there is."
    best = run.best
    if best is not None and len(run.finished) > 1:
        key = str(run.recipe["best_metric"])
        change = run.difference(key, number=best.number, against=0)
        gain = f", {in_points(change)} points against the base" if change is not None else ""
        yield f"Best round by {key}: {best.label}, with {100 * best.metrics[key]:.1f} %{gain}."
    collect = run.recipe.get("collect") or {}
    if collect.get("num_annotations") and collect.get("annotator") in ANNOTATORS:
        yield ANNOTATORS[collect["annotator"]]


def warnings_of(run: RunRecord) -> Iterator[str]:
    """Flags and gate lines of all rounds."""
    for entry in run.finished:
        if entry.row is not None:
            yield from (f"Round {entry.number}: {flag}" for flag in entry.row.flags)
            if entry.row.gated is not None:
                yield f"Round {entry.number} is held back by the gate: {entry.row.gated}"


def _tiles(run: RunRecord) -> Iterator[tuple[str, str]]:
    """The figures that matter, each with what it is."""
    shown = run.shown
    if shown is not None:
        first, last = run.finished[0], run.finished[-1]
        for key in headline_keys(run.finished):
            start, end = metric(key)(first), metric(key)(shown)
            if end is not None:
                error = "" if end.stderr is None else f"± {100 * end.stderr:.1f}, "
                before = f"; base {100 * start.value:.1f}" if start is not None and shown is not first else ""
                yield f"{100 * end.value:.1f} %", f"{error}{key}, round {shown.label}{before}"
        accuracy = measure("heldout/accuracy")(last) or measure("heldout_accuracy")(last)
        if accuracy is not None:
            yield f"{PERCENT.cell(accuracy.value).text} %", f"reward model held out, round {last.label}"
    hours = run.seconds / 3600
    if hours:
        yield f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min", "of work"
