"""Two evaluations, question by question: what one gained on the other, and how sure that is.

    report.json + samples.jsonl --measured--> Measured (the protocol, estimates with every question's share)
    Measured before, after --compare--> Difference a figure, with its 95 % interval

Figures of different protocols say nothing about each other: they are refused, and what differs is named.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from alignloop.artifacts import load_json, write_text
from alignloop.data.jsonl import load_jsonl
from alignloop.errors import RunDirError, UserError
from alignloop.evaluation.figures import estimate_of, estimates_of
from alignloop.evaluation.report import EvalReport, EvalSample, Protocol, read_report, sha256_of
from alignloop.evaluation.standard_error import Estimate, difference

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
    """An evaluation as far as comparing needs it: small, however long the answers were.

    Attributes:
        name: what messages call it.
        values: the report's figures.
        estimates: those of them that are means over questions.
        questions: digest of which questions were asked, in order.
    """

    name: str
    protocol: Protocol
    values: Mapping[str, float]
    estimates: Mapping[str, Estimate]
    questions: str


def measured(report: EvalReport, samples: Iterable[EvalSample], *, name: str) -> Measured:
    """What a report and its samples say, ready to be compared."""
    rows = list(samples)
    found, _ = estimates_of(rows, groups=report.protocol.groups)
    estimates = {key: estimate_of(key, value, found) for key, value in report.metrics.items()}
    return Measured(
        name=name,
        protocol=report.protocol,
        values=report.metrics,
        estimates={key: estimate for key, estimate in estimates.items() if estimate is not None},
        questions=sha256_of([[row.task, row.filter, row.index] for row in rows]),
    )


def read_measured(report_file: Path, samples_file: Path, *, name: str) -> Measured:
    """`measured` of published files.

    Raises:
        DataError: one of them is not what an evaluation writes.
    """
    return measured(read_report(report_file), load_jsonl(samples_file, EvalSample), name=name)


def compare(before: Measured, after: Measured) -> list[Difference]:
    """Every figure that both report and that is a mean over questions, in the report's order.

    Raises:
        ProtocolMismatch: they were not measured alike.
    """
    require_same_protocol(before, after)
    return [
        _difference(key, before, after) for key in after.values if key in after.estimates and key in before.estimates
    ]


def require_same_protocol(before: Measured, after: Measured) -> None:
    """Raise a ProtocolMismatch that names the fields in which two evaluations differ, if there are any."""
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
    unrecorded = {
        field for name, fields in UNRECORDED.items() if old[name] in absent or new[name] in absent for field in fields
    }
    for name in before.tasks.keys() & after.tasks.keys():
        if not (before.tasks[name].rendered_digest and after.tasks[name].rendered_digest):
            for values in (old, new):
                values["tasks"][name].pop("rendered_digest")
    alone = sorted(before.tasks.keys() ^ after.tasks.keys())
    for values in (old, new):
        for name in unrecorded:
            values.pop(name)
        for name in alone:
            values["tasks"].pop(name, None)
    flat_old, flat_new = _flat(old), _flat(new)
    return [f"tasks.{name}: only the {'first' if name in before.tasks else 'second'} has it" for name in alone] + [
        f"{name}: {_short(flat_old.get(name))} -> {_short(flat_new.get(name))}"
        for name in dict.fromkeys(chain(flat_old, flat_new))
        if flat_old.get(name) != flat_new.get(name)
    ]


def of_rounds(rounds: Sequence[Measured]) -> list[RoundDifferences]:
    """Each round against the one before it and against the base, which is the first."""
    found = []
    for number in range(1, len(rounds)):
        found += [
            _of_pair(rounds[against], rounds[number], number=number, against=against)
            for against in dict.fromkeys((number - 1, 0))
        ]
    return found


def write_differences(run_dir: Path, rounds: Sequence[Measured]) -> None:
    """Write `differences.json`; what a longer run has written goes on standing where it still begins the same."""
    entries = [entry.model_dump(mode="json") for entry in of_rounds(rounds)]
    path = run_dir / DIFFERENCES
    if path.is_file():
        try:
            known = load_json(path)["rounds"]
        except (ValueError, KeyError, TypeError):
            known = []
        if known[: len(entries)] == entries:
            return
    _write(path, entries)


def _write(path: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    write_text(path, json.dumps({"rounds": entries}, indent=1, ensure_ascii=False) + "\n")


def read_differences(run_dir: Path) -> list[RoundDifferences]:
    """What a run's `differences.json` says; nothing where there is none.

    Raises:
        RunDirError: the file is not one.
    """
    path = run_dir / DIFFERENCES
    if not path.is_file():
        return []
    try:
        entries = load_json(path)["rounds"]
        return [RoundDifferences.model_validate(entry) for entry in entries]
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise RunDirError(
            f"{path}: not a run's differences ({error}); remove it, and the run writes it anew"
        ) from error


def forget_differences(run_dir: Path, number: int) -> None:
    """Take out what `differences.json` says of a round and of all later ones; a file that is none goes."""
    path = run_dir / DIFFERENCES
    if not path.is_file():
        return
    try:
        entries = read_differences(run_dir)
    except RunDirError:
        path.unlink()
        return
    kept = [entry for entry in entries if entry.round < number]
    if kept != entries:
        _write(path, [entry.model_dump(mode="json") for entry in kept])


def marks(entries: Iterable[RoundDifferences]) -> dict[tuple[int, str], Literal["+", "-"]]:
    """(round, key) -> `+` or `-` where the difference to the round before is clear of 0."""
    return {
        (entry.round, found.key): "+" if found.difference > 0 else "-"
        for entry in entries
        if entry.against == entry.round - 1
        for found in entry.differences
        if found.is_clear
    }


def _of_pair(before: Measured, after: Measured, *, number: int, against: int) -> RoundDifferences:
    try:
        return RoundDifferences(round=number, against=against, differences=compare(before, after))
    except ProtocolMismatch as error:
        return RoundDifferences(round=number, against=against, refused=str(error))


def _difference(key: str, before: Measured, after: Measured) -> Difference:
    change = difference(before.estimates[key], after.estimates[key])
    low, high = change.interval or (None, None)
    return Difference(
        key=key,
        before=before.values[key],
        after=after.values[key],
        difference=after.values[key] - before.values[key],
        low=low,
        high=high,
        num_pairs=len(change.influence),
    )


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {prefix.rstrip("."): values}
    return {k: v for name, inner in values.items() for k, v in _flat(inner, f"{prefix}{name}.").items()}


def _short(value: Any) -> str:
    text = "(none)" if value is None else str(value)
    return text if len(text) <= 40 else text[:37] + "..."
