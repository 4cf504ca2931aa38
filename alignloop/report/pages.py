"""The page of one run, that of several beside each other, and where they are written.

    facts.read_run -> sections (benchmarks, measures, work) -> completions in the bytes that are left -> Page.html

The loop writes a run's page at the end of every round, `alignloop report` at any time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from alignloop.artifacts import write_text
from alignloop.errors import UserError
from alignloop.report.benchmarks import alike, breakdown, climb, differences, headline_keys
from alignloop.report.completions import OWN_SCALES, completions, side_by_side
from alignloop.report.content import COUNT, PERCENT, Cell, Figure, FigureUnit, Page, PageSection, Table
from alignloop.report.facts import RoundRecord, RunRecord, by_round, read_run
from alignloop.report.figures import ERROR_BARS, over_rounds
from alignloop.report.measures import FIGURES, measured_keys, measures, rewards
from alignloop.report.paired import SPENT, Comparison, Runs, Spent, compare_runs
from alignloop.report.rounds import MISSING, doubt_of, in_points, names_of
from alignloop.report.work import funnel, recipe, work

REPORT = "report.html"
ANNOTATORS = {
    "simulated": "The annotator is simulated: the benchmark's own checkers, on training prompts only.",
    "judge": "The annotator is a model, not people.",
}
MOST_SETTINGS = 200


def write_report(run_dir: Path, *, out: Path | None = None) -> Path:
    """The report of one run, and the path it is written to: by default `<run_dir>/report.html`.

    Raises:
        RunDirError: it is no run.
        UserError: an `out` that cannot be written.
    """
    _check_out(out)
    return _write(run_page(read_run(run_dir)), run_dir / REPORT if out is None else out)


def write_comparison(run_dirs: Sequence[Path], *, out: Path | None) -> Comparison:
    """Write the report of several runs beside each other to `out`, and return what it says of the first against the
    others.

    Raises:
        RunDirError: one of them is no run.
        UserError: no `out`, one that cannot be written, or the same run twice.
    """
    _check_out(out)
    if out is None:
        raise UserError("several runs make a report of their own: name its file, for example --out compared.html")
    compared = compare_runs(run_dirs)
    _write(several_page(compared), out)
    return compared


def _check_out(out: Path | None) -> None:
    if out is not None and (out.is_dir() or not out.absolute().parent.is_dir()):
        raise UserError(f"--out {out}: no file can be written there; name one in a folder that exists")


def _write(page: Page, path: Path) -> Path:
    try:
        write_text(path, page.html())
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); name another file with --out") from error
    return path


def write_report_or_say(run_dir: Path, *, say: Callable[[str], None]) -> None:
    """Write the report at the end of a round; a failure is reported, and the run goes on: `alignloop report` makes it
    again from what is published at any time."""
    try:
        write_report(run_dir)
    except Exception as error:  # hours of training are worth more than a page
        first = str(error).strip().splitlines()[0] if str(error).strip() else ""
        say(f"  report.html: {type(error).__name__}: {first}; `alignloop report {run_dir}` makes it again")


def run_page(run: RunRecord) -> Page:
    """The report of one run; of one without a finished round it shows what there is."""
    sections = (climb, breakdown, differences, measures, rewards, funnel, work)
    page = Page(
        kind="run",
        title=f"{run.name}: alignloop report",
        heading=run.name,
        state=f"Recipe {run.recipe.get('name', '?')}, {run.num_done} of {run.recipe.get('rounds', '?')} rounds done.",
        tiles=tuple(_tiles(run)),
        sentences=tuple(_sentences(run)),
        warnings=tuple(_warnings(run)),
        notes=run.notes,
        sections=(*(section(run) for section in sections), recipe(run)),
    )
    answers = completions(run, budget_bytes=page.bytes_left())
    return replace(page, sections=(*page.sections[:-1], answers, page.sections[-1]))


def several_page(compared: Comparison) -> Page:
    """The report of two or more runs: the first against the others, and the same figures in the same charts, where they
    were measured alike."""
    named = compared.runs
    warned = [f"{name}: {line}" for name, run in named.items() for line in (*_warnings(run), *run.notes)]
    unfinished = {name: run for name, run in named.items() if len(run.finished) < 2}
    begun = [f"{name}: {line}" for name, run in unfinished.items() for line in islice(_sentences(run), 1)]
    ends = [(f"{name}, round {run.shown.label}", run.shown) for name, run in named.items() if run.shown is not None]
    page = Page(
        kind="several",
        title=f"{', '.join(named)}: alignloop report",
        heading=" · ".join(named),
        table=_overview(named),
        warnings=(*warned, *begun),
        sections=(compared.section(), _climb(named), _measures(named), _settings(named)),
    )
    title = "The same prompts, run by run"
    answers = side_by_side(ends, budget_bytes=page.bytes_left(), title=title, scale=OWN_SCALES)
    return replace(page, sections=(*page.sections, answers))


def _sentences(run: RunRecord) -> Iterator[str]:
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
        pair = next((p for p in run.differences if (p.round, p.against) == (best.number, 0)), None)
        change = next((found for found in pair.differences if found.key == key), None) if pair is not None else None
        gain = f", {in_points(change)} points against the base" if change is not None else ""
        yield f"Best round by {key}: {best.label}, with {100 * best.metrics[key]:.1f} %{gain}."
        rows = [entry.row for entry in run.finished if entry.row is not None]
        if doubt := doubt_of(best.number, key, rows, run.differences):
            yield f"It is {doubt}."
    if tests := names_of((run.recipe.get("evaluate") or {}).get("test_tasks") or ()):
        yield f"{tests} chose nothing: those figures are to be reported. The best round's others flatter it."
    collect = run.recipe.get("collect") or {}
    annotator = str(collect.get("annotator"))
    if collect.get("num_annotations") and annotator in ANNOTATORS:
        yield ANNOTATORS[annotator]
    elif collect.get("num_annotations") and ":" in annotator:
        yield f"The annotator is a program, {annotator}, not people."


def _warnings(run: RunRecord) -> Iterator[str]:
    for entry in run.finished:
        if entry.row is not None:
            yield from (f"Round {entry.number}: {flag}" for flag in entry.row.flags)
            if entry.row.gated is not None:
                yield f"Round {entry.number} is held back by the gate: {entry.row.gated}"


def _tiles(run: RunRecord) -> Iterator[tuple[str, str]]:
    shown = run.shown
    if shown is not None:
        first, last = run.finished[0], run.finished[-1]
        for key in headline_keys(run.finished):
            start, end = first.figure(key), shown.figure(key)
            if end is not None:
                error = "" if end.stderr is None else f"± {100 * end.stderr:.1f}, "
                before = f"; base {100 * start.value:.1f}" if start is not None and shown is not first else ""
                yield f"{100 * end.value:.1f} %", f"{error}{key}, round {shown.label}{before}"
        accuracy = last.figure("heldout/accuracy") or last.figure("heldout_accuracy")
        if accuracy is not None:
            yield f"{PERCENT.cell(accuracy.value).text} %", f"reward model held out, round {last.label}"
    hours = run.seconds / 3600
    if hours:
        yield f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min", "of work"


def _overview(runs: Runs) -> Table:
    keys = _headlines(runs)
    rows: list[tuple[str | Cell, ...]] = []
    for name, run in runs.items():
        end = run.shown
        cells = [PERCENT.cell(None if end is None else end.figure(key)) for key in keys]
        label = MISSING if end is None else end.label
        rows.append((name, COUNT.cell(run.num_done), label, *cells, *Spent.of(run.rounds).cells))
    return Table.of(("run", "rounds done", "best round", *(f"{key}, %" for key in keys), *SPENT), rows, name="runs")


def _climb(runs: Runs) -> PageSection:
    figures, notes = [], []
    for key in _headlines(runs):
        # The first run that has the figure sets the protocol.
        like = next(run for run in runs.values() if any(key in entry.metrics for entry in run.finished))
        found = {name: alike(run, key, like=like) for name, run in runs.items()}
        notes += [note for _, unlike in found.values() for note in unlike]
        figures.append(_overlaid(key, {name: rounds for name, (rounds, _) in found.items()}, key, PERCENT))
    note = f"In percent. {ERROR_BARS} Runs are drawn together where their benchmarks were asked alike."
    shown = tuple(filter(None, figures))
    return PageSection("climb", "Climb", "The climb", note=note, figures=shown, warnings=tuple(notes))


def _measures(runs: Runs) -> PageSection:
    rounds = {name: run.finished for name, run in runs.items()}
    everywhere = [entry for found in rounds.values() for entry in found]
    figures = [
        _overlaid(spec.title if len(spec.keys) == 1 else f"{spec.title}: {label}", rounds, key, spec.unit)
        for spec in FIGURES
        for label, key in measured_keys(spec, everywhere).items()
    ]
    note = "Each run's rewards are its own reward model's: their scales differ between runs as between rounds."
    title = "What the benchmarks don't show"
    return PageSection("measures", "Measures", title, note=note, figures=tuple(filter(None, figures)))


def _settings(runs: Runs) -> PageSection:
    """Fields of the recipes in which the runs differ."""
    flat = [_flat(run.recipe) for run in runs.values()]
    keys = [key for key in dict.fromkeys(key for values in flat for key in values) if key != "name"]
    rows = [(key, *(values.get(key, MISSING) for values in flat)) for key in keys]
    differing = [row for row in rows if len(set(row[1:])) > 1]
    if not differing:
        return PageSection("recipe", "Recipe", "What differs", lead="The recipes are the same.")
    table = Table.of(("field", *runs), differing[:MOST_SETTINGS], name="settings")
    left = len(differing) - len(table.rows)
    remark = f"{left} more fields differ." if left else ""
    return PageSection("recipe", "Recipe", "What differs", tables=(table,), remark=remark)


def _overlaid(title: str, rounds: Mapping[str, Sequence[RoundRecord]], key: str, unit: FigureUnit) -> Figure | None:
    series = {name: by_round(found, key) for name, found in rounds.items()}
    return over_rounds(title, series, unit, name=f"several-{title}")


def _headlines(runs: Runs) -> list[str]:
    return list(dict.fromkeys(key for run in runs.values() for key in headline_keys(run.finished)))


def _flat(values: object, prefix: str = "") -> dict[str, str]:
    if not isinstance(values, dict):
        return {prefix.rstrip("."): str(values)}
    return {k: v for name, inner in values.items() for k, v in _flat(inner, f"{prefix}{name}.").items()}
