"""What a run took: seconds and tokens by activity."""

from __future__ import annotations

from alignloop.report.html import elements
from alignloop.report.html.elements import Cell, Table, count
from alignloop.report.html.facts import RoundFacts, RunFacts, json_rows
from alignloop.report.plots import charts
from alignloop.run_dir.reader import PublishedStage

TOKENS = "/mean_tokens"
MOST_STEPS = 1_000_000


def work(run: RunFacts) -> str:
    """A bar a round for the seconds, one for the tokens."""
    seconds = {entry.label: seconds_of(entry) for entry in run.rounds if entry.stages}
    tokens = {entry.label: tokens_of(entry) for entry in run.rounds if entry.stages}
    figures = [
        _stacked("Time by activity", seconds, y_title="seconds", name="seconds"),
        _stacked("Tokens by activity", tokens, y_title="tokens", name="tokens"),
    ]
    total = sum(sum(found.values()) for found in seconds.values())
    parts = [elements.paragraph(f"{_time(total)} of work in published stages."), elements.grid(figures)]
    return elements.section("Time and tokens", parts if total else [], name="work")


def seconds_of(entry: RoundFacts) -> dict[str, float]:
    """Wall seconds by activity, over the round's stages."""
    total: dict[str, float] = {}
    for stage in entry.stages:
        for activity, seconds in stage.manifest.seconds.items():
            total[activity] = total.get(activity, 0.0) + seconds
    return total


def tokens_of(entry: RoundFacts) -> dict[str, float]:
    """Tokens sampled, trained on and generated for benchmarks; of what is not recorded there is nothing."""
    total: dict[str, float] = {}
    for stage in entry.stages:
        manifest = stage.manifest
        if stage.name == "sample" and "mean_tokens" in manifest.metrics:
            total["sampling"] = manifest.metrics["mean_tokens"] * manifest.counts.get("candidates", 0)
        trained = _trained_tokens(stage)
        if trained:
            total["training"] = total.get("training", 0.0) + trained
    evaluated = _evaluated_tokens(entry)
    return {**total, **({"evaluating": evaluated} if evaluated else {})}


def _trained_tokens(stage: PublishedStage) -> float:
    return sum(float(row.get("num_tokens", 0.0)) for row in json_rows(stage, "logs", most=MOST_STEPS))


def _evaluated_tokens(entry: RoundFacts) -> float:
    if entry.evaluation is None:
        return 0.0
    metrics, counts = entry.evaluation.metrics, entry.evaluation.counts
    return sum(value * counts.get(key, 0) for key, value in metrics.items() if key.endswith(TOKENS))


def _stacked(title: str, found: dict[str, dict[str, float]], *, y_title: str, name: str) -> str:
    totals: dict[str, float] = {}
    for parts in found.values():
        for activity, value in parts.items():
            totals[activity] = totals.get(activity, 0.0) + value
    order = sorted(totals, key=lambda activity: -totals[activity])
    if not order or not sum(totals.values()):
        return ""
    bars = [
        {"x": label, "part": activity, "value": parts.get(activity, 0.0)}
        for label, parts in found.items()
        for activity in order
    ]
    rows: list[tuple[str | Cell, ...]] = [
        (label, *(count(parts.get(activity)) for activity in order), count(sum(parts.values())))
        for label, parts in found.items()
    ]
    rows.append(("all", *(count(totals[activity]) for activity in order), count(sum(totals.values()))))
    numbers = Table(("round", *order, "all"), tuple(rows))
    return elements.figure(title, charts.stacked(bars, order=order, y_title=y_title), numbers=numbers, name=name)


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
