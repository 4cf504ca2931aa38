"""Two evaluations, question by question: what one gained on the other, and how sure that is.

    report.json + samples.jsonl --measured--> Measured (the protocol, estimates with every question's share)
    Measured before, after --compare--> Difference a figure, with its 95 % interval
    all rounds --write_differences--> differences.json

Figures of different protocols say nothing about each other: they are refused, and what differs is named.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from alignloop.artifacts import load_json, write_text
from alignloop.data.jsonl import load_jsonl
from alignloop.errors import RunDirError, UserError
from alignloop.evaluation.report import EvalReport, EvalSample, Protocol, read_report, sha256_of
from alignloop.evaluation.results import estimate_of, estimates_of
from alignloop.evaluation.standard_error import NORMAL_95, Estimate, difference

DIFFERENCES = "differences.json"
MOST_NAMED = 5
"""Changes of a protocol that an error spells out."""
UNRECORDED = {
    "engine_dtype": ("engine_dtype", "quantization"),
    "stop_token_ids": ("stop_token_ids",),
    "groups": ("groups",),
    "system_turn": ("system_turn",),
    "strip_reasoning": ("strip_reasoning",),
}
"""Fields that older reports lack -> those that are not compared where either side lacks it."""


class ProtocolMismatch(UserError):
    """Two evaluations were not measured alike. The message names what differs."""


class Difference(BaseModel):
    """One figure of two checkpoints, measured on the same questions."""

    model_config = ConfigDict(frozen=True)

    key: str
    """`task/metric`."""
    before: float
    after: float
    difference: float
    """`after` - `before`."""
    low: float | None
    """Of the 95 % confidence interval of the difference, paired by question; None where one question leaves it open."""
    high: float | None
    num_pairs: int
    """Questions (for IFEval prompts) that both answered."""

    @property
    def is_clear(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    @property
    def reversed(self) -> Difference:
        """The other way round: `before` - `after`."""
        low, high = (None if end is None else -end for end in (self.high, self.low))
        ends = {"before": self.after, "after": self.before, "difference": -self.difference, "low": low, "high": high}
        return self.model_copy(update=ends)


class RoundDifferences(BaseModel):
    """A round against an earlier one."""

    model_config = ConfigDict(frozen=True)

    round: int
    against: int
    refused: str | None = None
    """Why they were not compared; None where they were."""
    differences: list[Difference] = []


@dataclass(frozen=True)
class Measured:
    """An evaluation as far as comparing needs it: small, however long the answers were."""

    name: str
    """What messages call it."""
    protocol: Protocol
    values: Mapping[str, float]
    """The report's figures."""
    estimates: Mapping[str, Estimate]
    """Those of them that are means over questions."""
    questions: str
    """Digest of which questions were asked, in order."""


def measured(report: EvalReport, samples: Iterable[EvalSample], *, name: str) -> Measured:
    """What a report and its samples say, ready to be compared."""
    rows = list(samples)
    found = estimates_of(rows, groups=report.protocol.groups)
    behind = {key: estimate_of(key, value, found) for key, value in report.metrics.items()}
    return Measured(
        name=name,
        protocol=report.protocol,
        values=report.metrics,
        estimates={key: counted[0] for key, counted in behind.items() if counted is not None},
        questions=sha256_of([[row.task, row.filter, row.index] for row in rows]),
    )


def measured_task(report: EvalReport, samples: Iterable[EvalSample], *, task: str, name: str) -> Measured:
    """`measured` of one task, or one group, alone: whatever else was asked beside it does not count."""
    protocol = protocol_of(report.protocol, task)
    figures = {key: value for key, value in report.metrics.items() if key.partition("/")[0] == task}
    alone = report.model_copy(update={"protocol": protocol, "metrics": figures})
    return measured(alone, (sample for sample in samples if sample.task in protocol.tasks), name=name)


def protocol_of(protocol: Protocol, task: str) -> Protocol:
    """The part of a protocol by which one task, or the tasks of one group, were asked."""
    is_group = task not in protocol.tasks
    # Older reports do not record what a group is made of.
    leaves = protocol.groups.get(task) or [name for name in protocol.tasks if name.startswith(f"{task}_")]
    tasks = {name: how for name, how in protocol.tasks.items() if (name in leaves if is_group else name == task)}
    groups = {name: of for name, of in protocol.groups.items() if is_group and name == task}
    # What the seed decides about a question is in the digest of what was sent.
    return protocol.model_copy(update={"tasks": tasks, "groups": groups, "seed": 0})


def read_measured(report_file: Path, samples_file: Path, *, name: str) -> Measured:
    """`measured` of published files; a DataError where one of them is not what an evaluation writes."""
    return measured(read_report(report_file), load_jsonl(samples_file, EvalSample), name=name)


def compare(before: Measured, after: Measured) -> list[Difference]:
    """Every figure that both report and that is a mean over questions; raises as `require_same_protocol`."""
    require_same_protocol(before, after)
    return [found for key in after.values if (found := change_of(key, before, after)) is not None]


def change_of(key: str, before: Measured, after: Measured, *, num_errors: float = NORMAL_95) -> Difference | None:
    """One figure, of evaluations by one protocol, with an interval of so many standard errors on either side; None
    where it is no mean over questions that both report."""
    if key not in before.estimates or key not in after.estimates:
        return None
    change = difference(before.estimates[key], after.estimates[key])
    low, high = change.interval(num_errors=num_errors) or (None, None)
    return Difference(
        key=key,
        before=before.values[key],
        after=after.values[key],
        difference=after.values[key] - before.values[key],
        low=low,
        high=high,
        num_pairs=len(change.influence),
    )


def require_same_protocol(before: Measured, after: Measured) -> None:
    """Raise a ProtocolMismatch that names the fields in which two evaluations differ."""
    changes = protocol_changes(before.protocol, after.protocol)
    if not changes and before.questions != after.questions:
        changes = ["the questions in samples.jsonl"]
    if changes:
        more = f"\n  - and {len(changes) - MOST_NAMED} more" if len(changes) > MOST_NAMED else ""
        raise ProtocolMismatch(
            f"{before.name} and {after.name} were measured by different protocols and do not compare:"
            + "".join(f"\n  - {change}" for change in changes[:MOST_NAMED])
            + more
        )


def protocol_changes(before: Protocol, after: Protocol) -> list[str]:
    """The fields in which two protocols differ, with both values."""
    old, new = before.model_dump(mode="json"), after.model_dump(mode="json")
    absent: tuple[object, ...] = (None, {}, [])
    unrecorded = [name for name in UNRECORDED if old[name] in absent or new[name] in absent]
    for name in before.tasks.keys() & after.tasks.keys():
        if not (before.tasks[name].rendered_digest and after.tasks[name].rendered_digest):
            for values in (old, new):
                values["tasks"][name].pop("rendered_digest")
    alone = sorted(before.tasks.keys() ^ after.tasks.keys())
    for values in (old, new):
        for field in chain.from_iterable(UNRECORDED[name] for name in unrecorded):
            values.pop(field)
        for name in alone:
            values["tasks"].pop(name, None)
    flat_old, flat_new = _flat(old), _flat(new)
    return [f"tasks.{name}: only the {'first' if name in before.tasks else 'second'} has it" for name in alone] + [
        f"{name}: {_short(flat_old.get(name))} -> {_short(flat_new.get(name))}"
        for name in dict.fromkeys(chain(flat_old, flat_new))
        if flat_old.get(name) != flat_new.get(name)
    ]


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {prefix.rstrip("."): values}
    return {k: v for name, inner in values.items() for k, v in _flat(inner, f"{prefix}{name}.").items()}


def _short(value: Any) -> str:
    text = "(none)" if value is None else str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def of_rounds(
    rounds: Mapping[int, Measured], *, tested: Mapping[int, Measured], best: int | None = None
) -> list[RoundDifferences]:
    """Each round that was measured, by its number, against the one before it and against the base, and the last against
    the best, where that is known; `tested` has the test tasks of those rounds that were asked them."""
    numbers = sorted(rounds)
    last = numbers[-1]
    pairs = [(number, against) for before, number in pairwise(numbers) for against in dict.fromkeys((before, 0))]
    if best is not None and best < last and (last, best) not in pairs:
        pairs.append((last, best))
    everything = (rounds, tested)
    return [
        _of_pair(number, against, [(of[against], of[number]) for of in everything if {number, against} <= of.keys()])
        for number, against in pairs
    ]


def _of_pair(number: int, against: int, measured: Iterable[tuple[Measured, Measured]]) -> RoundDifferences:
    found: list[Difference] = []
    refused = []
    for before, after in measured:
        try:
            found += compare(before, after)
        except ProtocolMismatch as error:
            refused.append(str(error))
    return RoundDifferences(round=number, against=against, differences=found, refused="\n".join(refused) or None)


def write_differences(
    run_dir: Path, rounds: Mapping[int, Measured], *, tested: Mapping[int, Measured], best: int | None = None
) -> None:
    """Write `differences.json`, see `of_rounds`; what a longer run has written goes on standing where it still begins
    the same."""
    entries = of_rounds(rounds, tested=tested, best=best)
    try:
        known = read_differences(run_dir)
    except RunDirError:
        known = []
    if known[: len(entries)] != entries:
        _write(run_dir, entries)


def _write(run_dir: Path, entries: Sequence[RoundDifferences]) -> None:
    rounds = [entry.model_dump(mode="json") for entry in entries]
    write_text(run_dir / DIFFERENCES, json.dumps({"rounds": rounds}, indent=1, ensure_ascii=False) + "\n")


def read_differences(run_dir: Path) -> list[RoundDifferences]:
    """What a run's `differences.json` says; nothing where there is none; a RunDirError where the file is not one."""
    path = run_dir / DIFFERENCES
    if not path.is_file():
        return []
    try:
        return [RoundDifferences.model_validate(entry) for entry in load_json(path)["rounds"]]
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise RunDirError(
            f"{path}: not a run's differences ({error}); remove it, and the run writes it anew"
        ) from error


def not_clearly_better(
    best: int, others: Iterable[int], metric: str, differences: Sequence[RoundDifferences]
) -> list[tuple[int, Difference]]:
    """Of other rounds those than which the best is not clearly better, with what it is ahead by: the interval does not
    lie above 0. One that it was not compared with, or that leaves no interval, is not named."""
    pairs = {(entry.against, entry.round): entry.differences for entry in differences}
    found = []
    for other in others:
        ahead = [each for each in pairs.get((other, best), []) if each.key == metric]
        ahead += [each.reversed for each in pairs.get((best, other), []) if each.key == metric]
        found += [(other, each) for each in ahead[:1] if each.low is not None and each.low <= 0.0]
    return found


def forget_differences(run_dir: Path, number: int) -> None:
    """Take out what `differences.json` says of a round and of all later ones; a file that is none goes."""
    try:
        entries = read_differences(run_dir)
    except RunDirError:
        (run_dir / DIFFERENCES).unlink()
        return
    kept = [entry for entry in entries if entry.round < number]
    if kept != entries:
        _write(run_dir, kept)
