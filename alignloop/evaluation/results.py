"""lm-eval's results -> samples -> estimates -> our report.

samples of a task --one number a question--> mean;  of IFEval's lists --> ratios by prompt (see evaluation.ifeval)
estimates of a group's tasks --> `acc`: mean over their questions;  `acc_macro`: mean over the tasks
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from alignloop.engines.base import Completion
from alignloop.evaluation import ifeval
from alignloop.evaluation.questions import unpack_messages
from alignloop.evaluation.report import EvalReport, EvalSample, Protocol, TaskProtocol, sha256_of
from alignloop.evaluation.standard_error import Estimate, mean, mean_over

if TYPE_CHECKING:
    from alignloop.evaluation.lm import EngineLM

Results = Mapping[str, Any]
"""What `lm_eval.evaluate` returns."""
Counted = tuple[Estimate, int]
"""A figure, and what it counts: questions, or instructions."""
MACRO = "_macro"
NO_FILTER = "none"


def metric_key(name: str, metric: str, *, filter_name: str) -> str:
    """`task/metric`, with `,filter` where the task has named filters."""
    return f"{name}/{metric}" if filter_name == NO_FILTER else f"{name}/{metric},{filter_name}"


def macro_key(key: str) -> str:
    """The macro average's key beside a group's: `mmlu/acc` -> `mmlu/acc_macro`."""
    metric, comma, filter_name = key.partition(",")
    return f"{metric}{MACRO}{comma}{filter_name}"


def estimates_of(samples: Iterable[EvalSample], *, groups: Mapping[str, Sequence[str]]) -> dict[str, Counted]:
    """Every figure that is a mean over questions, by key, with each question's share in it. `samples` are of whole
    tasks, in order; `groups` maps a name to its leaf tasks."""
    found: dict[str, Counted] = {}
    scalars: dict[tuple[str, str, str], list[float]] = {}
    by_task: dict[tuple[str, str], list[EvalSample]] = {}
    for sample in samples:
        by_task.setdefault((sample.task, sample.filter), []).append(sample)
    first_filters: dict[str, list[EvalSample]] = {}
    for (task, filter_name), rows in by_task.items():
        first_filters.setdefault(task, rows)
        for metric, values in _scalars(rows).items():
            scalars[task, metric, filter_name] = values
            found[metric_key(task, metric, filter_name=filter_name)] = mean(values), len(values)
    for task, rows in first_filters.items():
        for metric, counted in {**_of_ifeval(rows), **_of_generation(rows)}.items():
            found[f"{task}/{metric}"] = counted
    for name, leaves in groups.items():
        for key, pooled, parts in _of_group(name, leaves, scalars):
            found[key] = pooled, len(pooled.influence)
            found[macro_key(key)] = parts, len(pooled.influence)
    return found


def estimate_of(key: str, value: float, estimates: Mapping[str, Counted]) -> Counted | None:
    """What is behind a reported figure: over questions, or in a group over tasks; None where it is neither."""
    found = [estimates[name] for name in (key, macro_key(key)) if name in estimates]
    return next((one for one in found if math.isclose(one[0].value, value, abs_tol=1e-9)), None)


def _scalars(rows: Sequence[EvalSample]) -> dict[str, list[float]]:
    """Metric -> one number a question, of metrics that have one for each."""
    columns = {metric: [row.verdicts.get(metric) for row in rows] for metric in rows[0].verdicts}
    return {
        metric: numbers
        for metric, values in columns.items()
        if len(numbers := [float(value) for value in values if isinstance(value, (int, float))]) == len(values)
    }


def _of_ifeval(rows: Sequence[EvalSample]) -> dict[str, Counted]:
    if not set(ifeval.ACCURACIES) <= rows[0].verdicts.keys():
        return {}
    return ifeval.estimates([row.verdicts for row in rows], instruction_ids=[row.instruction_ids for row in rows])


def _of_generation(rows: Sequence[EvalSample]) -> dict[str, Counted]:
    written = [row for row in rows if row.finish_reason is not None]
    if not written:
        return {}
    stopped = mean([float(row.finish_reason == "stop") for row in written])
    lengths = mean([float(row.num_tokens or 0) for row in written])
    return {"stop_rate": (stopped, len(written)), "mean_tokens": (lengths, len(written))}


def _of_group(
    name: str, leaves: Sequence[str], scalars: Mapping[tuple[str, str, str], list[float]]
) -> Iterator[tuple[str, Estimate, Estimate]]:
    """(key, mean over questions, mean over tasks) of each metric that all tasks of the group have."""
    first = [(metric, filter_name) for task, metric, filter_name in scalars if leaves and task == leaves[0]]
    for metric, filter_name in first:
        values = [part for leaf in leaves if (part := scalars.get((leaf, metric, filter_name)))]
        if len(values) == len(leaves):
            pooled = mean([value for part in values for value in part])
            yield metric_key(name, metric, filter_name=filter_name), pooled, mean_over([mean(part) for part in values])


def build_report(
    results: Results,
    *,
    samples: Sequence[EvalSample],
    lm: EngineLM,
    seed: int,
    dtype: str | None,
    quantization: str | None,
) -> EvalReport:
    """The report of one evaluation: `results` are lm-eval's, `samples` those of `eval_samples`; for the rest see
    `evaluate`."""
    groups = {name: _leaves(name, results) for name in results["group_subtasks"] if name in results["results"]}
    groups = {name: leaves for name, leaves in groups.items() if leaves != [name]}
    estimates = estimates_of(samples, groups=groups)
    metrics, counts = _reported(results)
    behind = {key: estimate_of(key, value, estimates) for key, value in metrics.items()}
    for key, counted in behind.items():
        if counted is not None and key.partition("/")[2].startswith("inst_level"):
            counts[key] = counted[1]
    # What lm-eval does not report: IFEval's mean and types, how answers ended, and macro averages of what it does.
    macros = {macro_key(key) for key in metrics}
    for key, (estimate, count) in estimates.items():
        if key not in metrics and (key.partition("/")[0] not in groups or key in macros):
            metrics[key], behind[key], counts[key] = estimate.value, (estimate, count), count
    protocol = Protocol(
        lm_eval_version=version("lm_eval"),
        seed=seed,
        max_model_len=lm.max_model_len,
        tasks={name: _protocol(name, results, lm=lm) for name in results["samples"]},
        groups=groups,
        engine_dtype=dtype,
        quantization=quantization,
        stop_token_ids=list(lm.stop_token_ids),
        system_turn=lm.takes_system_turn,
        strip_reasoning=lm.strip_reasoning,
        chat_template_kwargs=dict(lm.template_kwargs),
    )
    errors = {key: counted[0].stderr for key, counted in behind.items() if counted is not None}
    stderr = {key: error for key, error in errors.items() if error is not None}
    return EvalReport(metrics=metrics, stderr=stderr, counts=counts, protocol=protocol)


def _reported(results: Results) -> tuple[dict[str, float], dict[str, int]]:
    """lm-eval's own figures of its tasks and groups, and how many questions each counts."""
    metrics, counts = {}, {}
    for name, figures in results["results"].items():
        count = sum(results["n-samples"][leaf]["effective"] for leaf in _leaves(name, results))
        for key, value in figures.items():
            metric, comma, filter_name = key.partition(",")
            if comma and not metric.endswith("_stderr") and isinstance(value, (int, float)):
                own = metric_key(name, metric, filter_name=filter_name)
                metrics[own], counts[own] = float(value), count
    return metrics, counts


def _leaves(name: str, results: Results) -> list[str]:
    """The tasks of a group, of its groups too; a task is its own leaf."""
    children = results["group_subtasks"].get(name)
    return [leaf for child in children for leaf in _leaves(child, results)] if children else [name]


def _protocol(name: str, results: Results, *, lm: EngineLM) -> TaskProtocol:
    config = results["configs"][name]
    samples = [row for row in results["samples"][name] if row["filter"] == results["samples"][name][0]["filter"]]
    generates = config["output_type"] == "generate_until"
    return TaskProtocol(
        task=name,
        version=str(results["versions"].get(name)),
        output_type=config["output_type"],
        num_fewshot=int(results["n-shot"].get(name) or 0),
        num_samples=len(samples),
        num_available=int(results["n-samples"][name]["original"]),
        generation=lm.effective_kwargs(config.get("generation_kwargs") or {}) if generates else {},
        chat_template_digest=lm.chat_template_digest,
        data_digest=sha256_of([sample["doc_hash"] for sample in samples]),
        prompt_digest=sha256_of([sample["prompt_hash"] for sample in samples]),
        rendered_digest=lm.rendered.digest(name),
    )


def eval_samples(results: Results, *, lm: EngineLM) -> Iterator[EvalSample]:
    """One sample a question (and named filter), in task order."""
    for name, samples in results["samples"].items():
        for sample in samples:
            question = (name, sample["doc_id"])
            completion, reasoning = lm.generations.get(question), lm.reasonings.get(question)
            yield _eval_sample(name, sample, completion=completion, reasoning=reasoning)


def _eval_sample(
    name: str, sample: Mapping[str, Any], *, completion: Completion | None, reasoning: str | None
) -> EvalSample:
    arguments = sample["arguments"]
    messages = unpack_messages(arguments[0][0]) or ()
    asked = [message.content for message in messages if message.role == "user"]
    scored = completion is None and len(arguments[0]) == 2
    target = sample["target"] if scored else None
    return EvalSample(
        task=name,
        index=sample["doc_id"],
        filter=sample["filter"],
        messages=list(messages),
        prompt=asked[-1] if asked else str(arguments[0][0]),
        response=None if completion is None else str(sample["resps"][0][0]),
        reasoning=reasoning,
        finish_reason=None if completion is None else completion.finish_reason,
        num_tokens=None if completion is None else len(completion.token_ids),
        options=[argument[1] for argument in arguments] if scored else [],
        option_logprobs=[response[0][0] for response in sample["resps"]] if scored else [],
        target=target if isinstance(target, (str, int)) else None,
        instruction_ids=list(sample["doc"].get("instruction_id_list", [])),
        verdicts={metric: value for metric in sample["metrics"] if (value := _verdict(sample[metric])) is not None},
    )


def _verdict(value: Any) -> float | list[bool] | None:
    if isinstance(value, (list, tuple)):
        return [bool(item) for item in value] if all(isinstance(item, bool) for item in value) else None
    return float(value) if isinstance(value, (bool, int, float)) else None
