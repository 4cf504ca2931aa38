"""Samples -> estimates: every figure of a report that is a mean over its questions, with each question's share in it.

samples of a task --one number a question--> mean;  of IFEval's lists --> ratios by prompt (see evaluation.ifeval)
estimates of a group's tasks --> `acc`: mean over their questions;  `acc_macro`: mean over the tasks
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from alignloop.evaluation import ifeval
from alignloop.evaluation.report import EvalSample
from alignloop.evaluation.standard_error import Estimate, mean, mean_over

MACRO = "_macro"
NO_FILTER = "none"


def metric_key(name: str, metric: str, *, filter_name: str) -> str:
    """`task/metric`, with `,filter` where the task has named filters."""
    return f"{name}/{metric}" if filter_name == NO_FILTER else f"{name}/{metric},{filter_name}"


def macro_key(key: str) -> str:
    """The macro average's key beside a group's: `mmlu/acc` -> `mmlu/acc_macro`."""
    metric, comma, filter_name = key.partition(",")
    return f"{metric}{MACRO}{comma}{filter_name}"


def estimates_of(
    samples: Iterable[EvalSample], *, groups: Mapping[str, Sequence[str]]
) -> tuple[dict[str, Estimate], dict[str, int]]:
    """Estimates and what each counts, by key.

    Args:
        samples: of whole tasks, in order.
        groups: name -> its leaf tasks.
    """
    found: dict[str, Estimate] = {}
    counts: dict[str, int] = {}
    scalars: dict[tuple[str, str, str], list[float]] = {}
    for (task, filter_name), rows in _by_task(samples).items():
        for metric, values in _scalars(rows).items():
            scalars[task, metric, filter_name] = values
            key = metric_key(task, metric, filter_name=filter_name)
            found[key], counts[key] = mean(values), len(values)
    for task, rows in _first_filters(samples).items():
        for key, (estimate, count) in {**_of_ifeval(task, rows), **_of_generation(task, rows)}.items():
            found[key], counts[key] = estimate, count
    for name, leaves in groups.items():
        for key, pooled, parts in _of_group(name, leaves, scalars):
            found[key], counts[key] = pooled, len(pooled.influence)
            found[macro_key(key)], counts[macro_key(key)] = parts, len(pooled.influence)
    return found, counts


def estimate_of(key: str, value: float, estimates: Mapping[str, Estimate]) -> Estimate | None:
    """The estimate behind a reported figure: over questions, or in a group over tasks; None where it is neither."""
    for name in (key, macro_key(key)):
        estimate = estimates.get(name)
        if estimate is not None and math.isclose(estimate.value, value, abs_tol=1e-9):
            return estimate
    return None


def _by_task(samples: Iterable[EvalSample]) -> dict[tuple[str, str], list[EvalSample]]:
    found: dict[tuple[str, str], list[EvalSample]] = {}
    for sample in samples:
        found.setdefault((sample.task, sample.filter), []).append(sample)
    return found


def _first_filters(samples: Iterable[EvalSample]) -> dict[str, list[EvalSample]]:
    found: dict[str, list[EvalSample]] = {}
    for (task, _), rows in _by_task(samples).items():
        found.setdefault(task, rows)
    return found


def _scalars(rows: Sequence[EvalSample]) -> dict[str, list[float]]:
    """Metric -> one number a question, of metrics that have one for each."""
    columns = {metric: [row.verdicts.get(metric) for row in rows] for metric in rows[0].verdicts}
    return {
        metric: numbers
        for metric, values in columns.items()
        if len(numbers := [float(value) for value in values if isinstance(value, (int, float))]) == len(values)
    }


def _of_ifeval(task: str, rows: Sequence[EvalSample]) -> dict[str, tuple[Estimate, int]]:
    if not set(ifeval.ACCURACIES) <= rows[0].verdicts.keys():
        return {}
    verdicts, instruction_ids = [row.verdicts for row in rows], [row.instruction_ids for row in rows]
    num_instructions = sum(map(len, instruction_ids))
    types = ifeval.by_type(verdicts, instruction_ids=instruction_ids)
    found = {}
    for metric, estimate in ifeval.estimates(verdicts, instruction_ids=instruction_ids).items():
        count = num_instructions if metric.startswith("inst_level") else len(rows)
        if metric.startswith("type/"):
            count = sum(map(len, types[metric.removeprefix("type/")]))
        found[f"{task}/{metric}"] = (estimate, count)
    return found


def _of_generation(task: str, rows: Sequence[EvalSample]) -> dict[str, tuple[Estimate, int]]:
    written = [row for row in rows if row.finish_reason is not None]
    if not written:
        return {}
    stopped = mean([float(row.finish_reason == "stop") for row in written])
    lengths = mean([float(row.num_tokens or 0) for row in written])
    return {f"{task}/stop_rate": (stopped, len(written)), f"{task}/mean_tokens": (lengths, len(written))}


def _of_group(
    name: str, leaves: Sequence[str], scalars: Mapping[tuple[str, str, str], list[float]]
) -> Iterable[tuple[str, Estimate, Estimate]]:
    """(key, mean over questions, mean over tasks) of each metric that all tasks of the group have."""
    first = [(metric, filter_name) for task, metric, filter_name in scalars if leaves and task == leaves[0]]
    for metric, filter_name in first:
        parts = [scalars.get((leaf, metric, filter_name)) for leaf in leaves]
        values = [part for part in parts if part]
        if len(values) == len(leaves):
            pooled = mean([value for part in values for value in part])
            yield metric_key(name, metric, filter_name=filter_name), pooled, mean_over([mean(part) for part in values])
