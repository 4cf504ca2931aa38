"""What was run: the resolved recipe, the protocol of the benchmarks, where the data and the models come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from alignloop.config.yaml_values import dump_yaml
from alignloop.evaluation.report import EvalReport
from alignloop.report.html import elements
from alignloop.report.html.elements import Cell, Table
from alignloop.report.html.facts import RunFacts
from alignloop.report.html.text import cut, html

MOST_CHARACTERS = 100_000


def recipe(run: RunFacts) -> str:
    """The recipe as it was resolved, the protocol, versions and digests; each opens."""
    text = dump_yaml(run.recipe)
    parts = [
        elements.details("The recipe, resolved", f"<pre>{html(cut(text, num_characters=MOST_CHARACTERS))}</pre>"),
        *protocol(run),
        *_lineage(run),
    ]
    return elements.section("What was run", parts, name="recipe")


def protocol(run: RunFacts) -> Iterator[str]:
    """How the benchmarks were asked in the last round, a column a task."""
    entry = next((e for e in reversed(run.rounds) if e.evaluation is not None), None)
    if entry is None or entry.evaluation is None:
        return
    table = elements.table(_protocol_table(entry.evaluation), name="protocol")
    yield elements.details(f"The benchmarks' protocol (round {entry.number})", table)


def _protocol_table(report: EvalReport) -> Table:
    values = report.protocol.model_dump(mode="json")
    tasks: Mapping[str, Mapping[str, Any]] = values.pop("tasks")
    rows: list[tuple[str | Cell, ...]] = [
        (name, *(_short(value) for _ in tasks)) for name, value in values.items() if name != "groups"
    ]
    fields = list(dict.fromkeys(field for task in tasks.values() for field in task if field != "task"))
    rows += [(field, *(_short(task.get(field)) for task in tasks.values())) for field in fields]
    rows.append(("digest of it all", *(report.protocol.digest[:16] for _ in tasks)))
    return Table(("", *tasks), tuple(rows))


def _lineage(run: RunFacts) -> Iterator[str]:
    rows: list[tuple[str | Cell, ...]] = []
    versions: dict[str, str] = {}
    engines: dict[str, list[int]] = {}
    for entry in run.rounds:
        for stage in entry.stages:
            versions = stage.manifest.versions or versions
            if stage.name == "sample":
                engines.setdefault(str(stage.manifest.config.get("engine", "?")), []).append(entry.number)
            if stage.name == "ingest":
                rows += [
                    (kind, str(one.get("path", "")), str(one.get("digest", ""))[:19])
                    for kind in ("preferences", "prompts")
                    for one in stage.manifest.inputs.get(kind) or ()
                    if isinstance(one, dict)
                ]
        if entry.row is not None:
            rows.append((f"policy of round {entry.number}", entry.row.policy, _policy_digest(run, entry.row.policy)))
    rows += [(f"engine that sampled in round {_listed(numbers)}", name, "") for name, numbers in engines.items()]
    if rows:
        yield elements.details("Data and models", elements.table(Table(("what", "which", "digest"), tuple(rows))))
    if versions:
        pairs: tuple[tuple[str | Cell, ...], ...] = tuple((name, version) for name, version in versions.items())
        yield elements.details("Versions", elements.table(Table(("package", "version"), pairs)))


def _policy_digest(run: RunFacts, policy: str) -> str:
    folder = (run.dir / policy).parent
    for entry in run.rounds:
        for stage in entry.stages:
            record = stage.manifest.outputs.get("checkpoint")
            if stage.dir == folder and record is not None and not isinstance(record, list):
                return record.digest[:19]
    return ""


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _short(value: Any) -> str:
    text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
    return text if len(text) <= 80 or " " in text else f"{text[:16]}…"
