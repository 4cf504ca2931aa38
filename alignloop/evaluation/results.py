"""lm-eval's results -> our report: figures with standard errors and counts, the protocol, one sample a question."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from alignloop.engines.base import Completion
from alignloop.evaluation import ifeval
from alignloop.evaluation.report import EvalReport, EvalSample, Protocol, TaskProtocol, sha256_of
from alignloop.evaluation.standard_error import Estimate, mean

if TYPE_CHECKING:
    from alignloop.evaluation.lm import EngineLM

Results = Mapping[str, Any]
"""What `lm_eval.evaluate` returns."""
Generations = Mapping[tuple[str, int], Completion]


class _Figures:
    """The three mappings of a report while they are filled."""

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}
        self.stderr: dict[str, float] = {}
        self.counts: dict[str, int] = {}

    def add(self, key: str, *, value: float, stderr: float | None, count: int) -> None:
        self.metrics[key] = float(value)
        self.counts[key] = count
        if stderr is not None:
            self.stderr[key] = stderr


def build_report(results: Results, *, lm: EngineLM, seed: int) -> EvalReport:
    """The report of one evaluation."""
    figures = _Figures()
    for name in results["results"]:
        _add_metrics(figures, name, results=results)
    for name, samples in results["samples"].items():
        if _is_ifeval(samples):
            _add_ifeval(figures, name, samples=_of_first_filter(samples))
        _add_generation(figures, name, samples=_of_first_filter(samples), generations=lm.generations)
    protocol = Protocol(
        lm_eval_version=version("lm_eval"),
        seed=seed,
        max_model_len=lm.limits.max_model_len,
        tasks={name: _protocol(name, results=results, lm=lm) for name in results["samples"]},
    )
    return EvalReport(metrics=figures.metrics, stderr=figures.stderr, counts=figures.counts, protocol=protocol)


def eval_samples(results: Results, *, generations: Generations) -> Iterator[EvalSample]:
    """One sample a question (and named filter), in task order."""
    for name, samples in results["samples"].items():
        for sample in samples:
            yield _eval_sample(name, sample, completion=generations.get((name, sample["doc_id"])))


def _add_metrics(figures: _Figures, name: str, *, results: Results) -> None:
    """lm-eval's own figures of a task or group; the errors are ours."""
    leaves = _leaves(name, results=results)
    for key, value in results["results"][name].items():
        metric, comma, filter_name = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, (int, float)):
            continue
        per_task = [_scalars(results["samples"][leaf], metric=metric, filter_name=filter_name) for leaf in leaves]
        figures.add(
            f"{name}/{metric}" if filter_name == "none" else f"{name}/{key}",
            value=value,
            stderr=_stderr_of_mean(value, per_task=per_task),
            count=sum(results["n-samples"][leaf]["effective"] for leaf in leaves),
        )


def _stderr_of_mean(value: float, *, per_task: Sequence[Sequence[float]]) -> float | None:
    """Of a mean over questions, or of an unweighted mean over tasks; None where `value` is neither."""
    if not per_task or not all(per_task):
        return None
    over_questions = mean([number for numbers in per_task for number in numbers])
    if math.isclose(over_questions.value, value, abs_tol=1e-9):
        return over_questions.stderr
    tasks: list[Estimate] = [mean(numbers) for numbers in per_task]
    errors = [task.stderr for task in tasks if task.stderr is not None]
    over_tasks = math.fsum(task.value for task in tasks) / len(tasks)
    if len(errors) == len(tasks) and math.isclose(over_tasks, value, abs_tol=1e-9):
        return math.sqrt(math.fsum(error * error for error in errors)) / len(tasks)
    return None


def _add_ifeval(figures: _Figures, name: str, *, samples: Sequence[Mapping[str, Any]]) -> None:
    instruction_ids = [sample["doc"]["instruction_id_list"] for sample in samples]
    num_instructions = sum(map(len, instruction_ids))
    types = ifeval.by_type(samples, instruction_ids=instruction_ids)
    for metric, estimate in ifeval.estimates(samples, instruction_ids=instruction_ids).items():
        count = num_instructions if metric.startswith("inst_level") else len(samples)
        if metric.startswith("type/"):
            count = sum(map(len, types[metric.removeprefix("type/")]))
        figures.add(f"{name}/{metric}", value=estimate.value, stderr=estimate.stderr, count=count)


def _add_generation(
    figures: _Figures, name: str, *, samples: Sequence[Mapping[str, Any]], generations: Generations
) -> None:
    completions = [generations[key] for sample in samples if (key := (name, sample["doc_id"])) in generations]
    if not completions:
        return
    stopped = mean([float(completion.finish_reason == "stop") for completion in completions])
    lengths = mean([float(len(completion.token_ids)) for completion in completions])
    for metric, estimate in (("stop_rate", stopped), ("mean_tokens", lengths)):
        figures.add(f"{name}/{metric}", value=estimate.value, stderr=estimate.stderr, count=len(completions))


def _protocol(name: str, *, results: Results, lm: EngineLM) -> TaskProtocol:
    config = results["configs"][name]
    samples = _of_first_filter(results["samples"][name])
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
    )


def _eval_sample(name: str, sample: Mapping[str, Any], *, completion: Completion | None) -> EvalSample:
    from alignloop.evaluation.lm import unpack_messages

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


def _is_ifeval(samples: Sequence[Mapping[str, Any]]) -> bool:
    return set(ifeval.ACCURACIES) <= set(samples[0]["metrics"])


def _of_first_filter(samples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [sample for sample in samples if sample["filter"] == samples[0]["filter"]]


def _scalars(samples: Sequence[Mapping[str, Any]], *, metric: str, filter_name: str) -> list[float]:
    """The metric's value of each question; empty where it is not one number a question."""
    values = [sample.get(metric) for sample in samples if sample["filter"] == filter_name]
    numbers = [float(value) for value in values if isinstance(value, (bool, int, float))]
    return numbers if len(numbers) == len(values) else []


def _leaves(name: str, *, results: Results) -> list[str]:
    """The tasks of a group, of its groups too; a task is its own leaf."""
    children = results["group_subtasks"].get(name)
    if not children:
        return [name]
    return [leaf for child in children for leaf in _leaves(child, results=results)]
