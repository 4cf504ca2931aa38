"""lm-eval's results -> our report: figures with standard errors and counts, the protocol, one sample a question."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from alignloop.engines.base import Completion
from alignloop.evaluation.figures import estimate_of, estimates_of, macro_key, metric_key
from alignloop.evaluation.packed import unpack_messages
from alignloop.evaluation.report import EvalReport, EvalSample, Protocol, TaskProtocol, sha256_of
from alignloop.evaluation.standard_error import Estimate

if TYPE_CHECKING:
    from alignloop.evaluation.lm import EngineLM

Results = Mapping[str, Any]
"""What `lm_eval.evaluate` returns."""


@dataclass(frozen=True)
class Asked:
    """Attributes:
    seed: of few-shot draws, and of tasks that sample.
    dtype: what the engine computes in; None where it is not known.
    quantization: as the engine was given it.
    """

    seed: int
    dtype: str | None = None
    quantization: str | None = None


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


def build_report(results: Results, *, samples: Sequence[EvalSample], lm: EngineLM, asked: Asked) -> EvalReport:
    """The report of one evaluation.

    Args:
        results: lm-eval's.
        samples: the questions, as `eval_samples` gives them.
        asked: how, as far as neither of them knows.
    """
    groups = {name: _leaves(name, results=results) for name in results["group_subtasks"] if name in results["results"]}
    groups = {name: leaves for name, leaves in groups.items() if leaves != [name]}
    estimates, counts = estimates_of(samples, groups=groups)
    figures = _Figures()
    for name in results["results"]:
        _add_metrics(figures, name, results=results, estimates=estimates)
    # What lm-eval does not report: IFEval's mean and types, how answers ended, and macro averages of what it does.
    macros = {macro_key(key) for key in figures.metrics}
    for key, estimate in estimates.items():
        if key not in figures.metrics and (key.partition("/")[0] not in groups or key in macros):
            figures.add(key, value=estimate.value, stderr=estimate.stderr, count=counts[key])
    protocol = Protocol(
        lm_eval_version=version("lm_eval"),
        seed=asked.seed,
        max_model_len=lm.limits.max_model_len,
        tasks={name: _protocol(name, results=results, lm=lm) for name in results["samples"]},
        groups=groups,
        engine_dtype=asked.dtype,
        quantization=asked.quantization,
        stop_token_ids=list(lm.stop_token_ids),
        system_turn=lm.takes_system_turn,
        strip_reasoning=lm.strip_reasoning,
        chat_template_kwargs=dict(lm.template_kwargs),
    )
    return EvalReport(metrics=figures.metrics, stderr=figures.stderr, counts=figures.counts, protocol=protocol)


def eval_samples(results: Results, *, lm: EngineLM) -> Iterator[EvalSample]:
    """One sample a question (and named filter), in task order."""
    for name, samples in results["samples"].items():
        for sample in samples:
            question = (name, sample["doc_id"])
            row = _eval_sample(name, sample, completion=lm.generations.get(question))
            yield row.model_copy(update={"reasoning": lm.reasonings.get(question)})


def _add_metrics(figures: _Figures, name: str, *, results: Results, estimates: Mapping[str, Estimate]) -> None:
    """lm-eval's own figures of a task or group; the errors are ours."""
    count = sum(results["n-samples"][leaf]["effective"] for leaf in _leaves(name, results=results))
    for key, value in results["results"][name].items():
        metric, comma, filter_name = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, (int, float)):
            continue
        own = metric_key(name, metric, filter_name=filter_name)
        estimate = estimate_of(own, value, estimates)
        is_instructions = estimate is not None and metric.startswith("inst_level")
        figures.add(
            own,
            value=value,
            stderr=None if estimate is None else estimate.stderr,
            count=_num_instructions(results["samples"][name]) if is_instructions else count,
        )


def _num_instructions(samples: Sequence[Mapping[str, Any]]) -> int:
    return sum(len(sample["doc"].get("instruction_id_list", ())) for sample in samples)


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
        rendered_digest=lm.rendered.digest(name),
    )


def _eval_sample(name: str, sample: Mapping[str, Any], *, completion: Completion | None) -> EvalSample:
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


def _of_first_filter(samples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [sample for sample in samples if sample["filter"] == samples[0]["filter"]]


def _leaves(name: str, *, results: Results) -> list[str]:
    """The tasks of a group, of its groups too; a task is its own leaf."""
    children = results["group_subtasks"].get(name)
    if not children:
        return [name]
    return [leaf for child in children for leaf in _leaves(child, results=results)]
