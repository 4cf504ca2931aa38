"""What a run took and was made of: rows on their way through each round, time and tokens, recipe and lineage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from alignloop.config.yaml_values import dump_yaml
from alignloop.report.content import COUNT, PERCENT, Cell, Details, Figure, FigureUnit, PageSection, Table, cut
from alignloop.report.facts import Number, RoundRecord, RunRecord, evenly, json_rows
from alignloop.report.figures import MOST_COLUMNS, over_rounds, stacked
from alignloop.run_dir.reader import PublishedStage
from alignloop.stages.train_rloo import SAMPLED_TOKENS
from alignloop.stages.training import TRAINED_TOKENS

BY = "dropped_by_"
TOKENS = "/mean_tokens"
MOST_DROPPED_ROWS, MOST_ROUNDS, MOST_STEPS, MOST_CHARACTERS, REASON_CHARACTERS = 50_000, 40, 1_000_000, 100_000, 200
RIGHT_NOTE = "What is right is known from measure.truth, which nothing that trains sees. ± one standard error."
ROWS = FigureUnit("rows", digits=0, least=0.0)
SHOWN = "demonstrations among them"
FLOW = {
    "preferences": ("collect", ("preferences", "annotated")),
    "candidates": ("sample", ("candidates",)),
    "SFT rows": ("prune", ("kept",)),
    SHOWN: ("prune", ("demonstrations",)),
    "DPO pairs": ("build_pairs", ("kept",)),
}
"""Counts of a stage that are summed, by what they are called in the chart."""
FUNNELS = {
    "train_reward": "Preferences the reward model is trained on",
    "prune": "SFT rows",
    "build_pairs": "DPO pairs",
}
RIGHT = {
    "a random candidate": "truth/random",
    "the reward model's pick": "truth/pick",
    "the best there is": "truth/oracle",
    "pairs of candidates that the reward orders rightly": "truth/pair_accuracy",
    **{f"preferences of the file: {kind}": f"truth/{kind}_file" for kind in ("chosen", "edited", "rejected")},
    **{f"annotated preferences: {kind}": f"truth/{kind}_annotated" for kind in ("chosen", "edited", "rejected")},
    "SFT rows": "truth/sft",
    "DPO pairs: chosen": "truth/dpo_chosen",
    "DPO pairs: rejected": "truth/dpo_rejected",
}
"""What of a round is right, where a truth is known, by what it is called in the table."""
KINDS = {
    "build_pairs": ("preference_pairs", "on_policy_pairs"),
    "prune": ("demonstrations", "other_rows"),
}
"""Counts that together are the rows kept."""
Drops = Mapping[str, tuple[int, str]]
"""What a stage dropped: rows by rule, and the first reason of each."""


def funnel(run: RunRecord) -> PageSection:
    """A chart a stage that drops, and every stage of every round as a table."""
    rounds = evenly([entry for entry in run.rounds if entry.stages], most=MOST_ROUNDS)
    drops = {stage.dir: drops_of(stage) for e in rounds for stage in e.stages if "in" in stage.manifest.counts}
    left = len(run.rounds) - len(rounds)
    right = tuple(filter(None, [_right(rounds)]))
    figures = [_flow(rounds), *(_funnel(name, rounds, drops) for name in FUNNELS)]
    details = []
    for entry in rounds:
        rows = [row for stage in entry.stages if stage.dir in drops for row in _stage_rows(stage, drops[stage.dir])]
        title = "The base's data" if entry.number == 0 else f"Round {entry.number}, stage by stage"
        heads = ("stage", "in", "kept", "dropped", "why (with the first row's reason)")
        details += [Details(title, Table.of(heads, rows, name=f"stages-{entry.number}"))] if rows else []
    return PageSection(
        "funnel",
        "Data",
        "The data, round by round",
        note=RIGHT_NOTE if right else "",
        tables=right,
        figures=tuple(filter(None, figures)),
        details=tuple(details),
        remark=f"{left} rounds between are left out here." if left > 0 else "",
    )


def _right(rounds: Sequence[RoundRecord]) -> Table | None:
    """How much of a round's data is right, a column a round; None where no truth is known."""
    told = evenly([entry for entry in rounds if any(entry.figure(key) for key in RIGHT.values())], most=MOST_COLUMNS)
    rows = [
        (label, *(PERCENT.cell(entry.figure(key)) for entry in told))
        for label, key in RIGHT.items()
        if any(entry.figure(key) for entry in told)
    ]
    return Table.of(("right, %", *(entry.label for entry in told)), rows, name="truth") if rows else None


def drops_of(stage: PublishedStage) -> Drops:
    """From the manifest; rules it does not count, and the reasons, from the dropped rows."""
    counts = stage.manifest.counts
    if stage.name == "select" and counts.get("dropped"):
        return {"not the best of their prompt": (counts["dropped"], "")}
    in_rows = _dropped_rows(stage, "dropped")
    by_rule = {name.removeprefix(BY): number for name, number in counts.items() if name.startswith(BY) and number}
    return {rule: (number, in_rows.get(rule, (0, ""))[1]) for rule, number in by_rule.items()} or in_rows


def work(run: RunRecord) -> PageSection:
    """A bar a round for the seconds, one for the tokens."""
    entries = [entry for entry in run.rounds if entry.stages]
    figures = [
        _activities("Time by activity", {e.label: e.seconds for e in entries}, y_title="seconds"),
        _activities("Tokens by activity", {e.label: tokens_of(e) for e in entries}, y_title="tokens"),
    ]
    minutes, seconds = divmod(round(run.seconds), 60)
    hours, minutes = divmod(minutes, 60)
    time = f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"
    lead = f"{time} of work in published stages." if run.seconds else ""
    return PageSection("work", "Time", "Time and tokens", lead=lead, figures=tuple(filter(None, figures)))


def tokens_of(entry: RoundRecord) -> dict[str, float]:
    """Tokens sampled, trained on and generated for benchmarks; of what is not recorded there is nothing."""
    tokens = dict.fromkeys(("sampling", "training", "evaluating"), 0.0)
    for stage in entry.stages:
        if stage.name == "sample":
            mean = stage.manifest.metrics.get("mean_tokens", 0.0)
            counts = stage.manifest.counts
            tokens["sampling"] += mean * (counts.get("candidates", 0) + counts.get("other_candidates", 0))
        tokens["sampling"] += stage.manifest.facts.get(SAMPLED_TOKENS, 0)
        tokens["training"] += trained_tokens(stage)
    if entry.evaluation is not None:
        means = {key: mean for key, mean in entry.evaluation.metrics.items() if key.endswith(TOKENS)}
        tokens["evaluating"] = sum(mean * entry.evaluation.counts.get(key, 0) for key, mean in means.items())
    return {activity: number for activity, number in tokens.items() if number}


def trained_tokens(stage: PublishedStage) -> int:
    """Tokens that a stage trained on; 0 of one that trains nothing. Earlier versions recorded them in the log alone."""
    recorded = stage.manifest.facts.get(TRAINED_TOKENS)
    if recorded is not None:
        return int(recorded)
    return sum(int(row.get("num_tokens", 0)) for row in json_rows(stage, "logs", most=MOST_STEPS))


def recipe(run: RunRecord) -> PageSection:
    """What was run: the resolved recipe, the benchmarks' protocol, versions and digests; each opens."""
    text = cut(dump_yaml(run.recipe), num_characters=MOST_CHARACTERS)
    details = (Details("The recipe, resolved", text), *_protocol(run), *_lineage(run))
    return PageSection("recipe", "Recipe", "What was run", details=details)


def _flow(rounds: Sequence[RoundRecord]) -> Figure | None:
    def count(entry: RoundRecord, name: str, counted: Sequence[str]) -> Number | None:
        stage = entry.stage(name)
        found = [stage.manifest.counts[key] for key in counted if key in stage.manifest.counts] if stage else []
        return Number(sum(found)) if found else None

    by_label = {label: {e.number: count(e, *of) for e in rounds} for label, of in FLOW.items()}
    if not any(by_label[SHOWN].values()):
        del by_label[SHOWN]
    having = [e.number for e in rounds if any(counts[e.number] is not None for counts in by_label.values())]
    series = {label: {number: counts[number] for number in having} for label, counts in by_label.items()}
    note = "New preferences a round, best completions after pruning, pairs."
    return over_rounds("Rows that training gets", series, ROWS, name="flow", note=note, not_drawn=["candidates"])


def _funnel(name: str, rounds: Sequence[RoundRecord], drops: Mapping[Path, Drops]) -> Figure | None:
    found: dict[str, dict[str, float]] = {}
    for entry in rounds:
        stage = entry.stage(name)
        if stage is not None and stage.dir in drops:
            dropped = {f"dropped: {_words(rule)}": num for rule, (num, _) in drops[stage.dir].items()}
            found[entry.label] = {**_kept(stage), **dropped}
    order = list(dict.fromkeys(part for parts in found.values() for part in parts))
    whole = {label: {part: parts.get(part, 0) for part in order} for label, parts in found.items()}
    return stacked(f"{FUNNELS[name]}: kept and dropped", whole, order=order, y_title="rows", name=f"funnel-{name}")


def _kept(stage: PublishedStage) -> dict[str, int]:
    counts = stage.manifest.counts
    kinds = KINDS.get(stage.name, ())
    if kinds and all(kind in counts for kind in kinds):
        return {f"kept: {_words(kind)}": counts[kind] for kind in kinds}
    return {"kept": counts.get("kept", 0)}


def _stage_rows(stage: PublishedStage, drops: Drops) -> Iterator[tuple[str | Cell, ...]]:
    counts = stage.manifest.counts
    numbers = (counts.get("in"), counts.get("kept"), counts.get("dropped"))
    yield (stage.dir.name, *map(COUNT.cell, numbers), _why(drops))
    for kind in ("prompts", "demonstrations"):
        if f"{kind}_in" in counts:
            numbers = (counts[f"{kind}_in"], counts.get(kind), counts.get(f"{kind}_dropped"))
            why = _why(_dropped_rows(stage, f"dropped_{kind}"))
            yield (f"{stage.dir.name}: {kind}", *map(COUNT.cell, numbers), why)


def _why(drops: Drops) -> str:
    parts = (f"{num:,} {_words(rule)}" + (f" ({reason})" if reason else "") for rule, (num, reason) in drops.items())
    return "; ".join(parts)


def _dropped_rows(stage: PublishedStage, output: str) -> Drops:
    found: dict[str, tuple[int, str]] = {}
    for row in json_rows(stage, output, most=MOST_DROPPED_ROWS):
        rule = str(row.get("rule", "?"))
        number, reason = found.get(rule, (0, cut(str(row.get("reason", "")), num_characters=REASON_CHARACTERS)))
        found[rule] = (number + 1, reason)
    return found


def _activities(title: str, rounds: Mapping[str, Mapping[str, float]], *, y_title: str) -> Figure | None:
    activities = dict.fromkeys(activity for parts in rounds.values() for activity in parts)
    order = sorted(activities, key=lambda activity: -sum(parts.get(activity, 0.0) for parts in rounds.values()))
    return stacked(title, rounds, order=order, y_title=y_title, name=y_title, with_totals=True)


def _protocol(run: RunRecord) -> Iterator[Details]:
    """How the benchmarks were asked in the last round, a column a task."""
    number, report = next(
        ((e.number, e.evaluation) for e in reversed(run.rounds) if e.evaluation is not None), (0, None)
    )
    if report is None:
        return
    values = report.protocol.model_dump(mode="json")
    tasks: Mapping[str, Mapping[str, Any]] = values.pop("tasks")
    fields = list(dict.fromkeys(name for task in tasks.values() for name in task if name != "task"))
    rows = [
        *((name, *(_short(value) for _ in tasks)) for name, value in values.items() if name != "groups"),
        *((name, *(_short(task.get(name)) for task in tasks.values())) for name in fields),
        ("digest of it all", *(report.protocol.digest[:16] for _ in tasks)),
    ]
    yield Details(f"The benchmarks' protocol (round {number})", Table.of(("", *tasks), rows, name="protocol"))


def _lineage(run: RunRecord) -> Iterator[Details]:
    stages = [stage for entry in run.rounds for stage in entry.stages]
    checkpoints = {stage.dir: stage.manifest.outputs.get("checkpoint") for stage in stages}
    engines: dict[str, list[str]] = {}
    rows: list[tuple[str, str, str]] = []
    for entry in run.rounds:
        for stage in entry.stages:
            if stage.name == "sample":
                engines.setdefault(str(stage.manifest.config.get("engine", "?")), []).append(str(entry.number))
            for kind in ("preferences", "prompts", "demonstrations") if stage.name == "ingest" else ():
                files = [one for one in stage.manifest.inputs.get(kind) or () if isinstance(one, dict)]
                rows += [(kind, str(one.get("path", "")), str(one.get("digest", ""))[:19]) for one in files]
        if entry.row is not None:
            record = checkpoints.get((run.dir / entry.row.policy).parent)
            digest = "" if record is None or isinstance(record, list) else record.digest[:19]
            rows.append((f"policy of round {entry.number}", entry.row.policy, digest))
    rows += [(f"engine that sampled in round {', '.join(numbers)}", name, "") for name, numbers in engines.items()]
    if rows:
        yield Details("Data and models", Table.of(("what", "which", "digest"), rows))
    versions = next((stage.manifest.versions for stage in reversed(stages) if stage.manifest.versions), {})
    if versions:
        yield Details("Versions", Table.of(("package", "version"), versions.items()))


def _words(rule: str) -> str:
    return rule.replace("_", " ")


def _short(value: Any) -> str:
    text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
    return text if len(text) <= 80 or " " in text else f"{text[:16]}…"
