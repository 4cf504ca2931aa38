"""Benchmarks of a checkpoint on the warm engine: those that choose, and apart from them those that only report. The
checks read local data without lm-eval, whose import takes seconds."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from alignloop.artifacts import Artifact
from alignloop.chat.format import ChatFormat
from alignloop.chat.load import in_first_user_turn, takes_system_turn
from alignloop.config.bundled import benchmark_data, bundled_benchmarks
from alignloop.config.engine import EngineComputes, computing
from alignloop.config.evaluation import BenchmarkConfig
from alignloop.config.recipe import Recipe
from alignloop.errors import UserError, did_you_mean
from alignloop.evaluation.ifeval import ACCURACIES, read_form
from alignloop.evaluation.mmlu import AnswerForm, prompt_messages, read_mmlu, task_name
from alignloop.evaluation.questions import TooLong, refuse
from alignloop.evaluation.tasks import LOCAL, MMLU_SHOTS, check_task_files, not_local
from alignloop.records import Message
from alignloop.run_dir.stage import Outputs as StageOutputs
from alignloop.run_dir.stage import Stage, StageContext
from alignloop.stages.facts import Facts, Findings

SLACK = 8
"""Tokens that a tokenizer may add to a text, such as a space before its first word."""
_METRICS = {
    "ifeval": (*ACCURACIES, "mean", "stop_rate", "mean_tokens"),
    "mmlu": ("acc", "acc_macro"),
    "mmlu_generative": ("exact_match,get_response", "exact_match_macro,get_response"),
}
"""Of each local benchmark, but for IFEval's `type/...`; other tasks have lm-eval's metrics."""
_TASK_NAME = re.compile(r"^(?:task|group|tag): *[\"']?([\w.-]+)", re.MULTILINE)


@dataclass(frozen=True)
class Inputs:
    policy: Artifact


@dataclass(frozen=True, kw_only=True)
class Outputs(StageOutputs):
    report: Artifact
    """`report.json`: metrics, standard errors and the frozen protocol."""
    samples: Artifact

    @property
    def stderr(self) -> dict[str, float]:
        values = json.loads(self.report.path.read_text(encoding="utf-8"))["stderr"]
        return {str(name): float(value) for name, value in values.items()}


class Settings(BenchmarkConfig, EngineComputes): ...


def settings(recipe: Recipe) -> Settings:
    """What the engine can hold and how it computes counts, too."""
    asked = {name: getattr(recipe.evaluate, name) for name in BenchmarkConfig.model_fields}
    return Settings(**asked, **computing(recipe.engine))


def settings_of_test(recipe: Recipe) -> Settings:
    return settings(recipe).model_copy(update={"tasks": recipe.evaluate.test_tasks})


def run(config: Settings, inputs: Inputs, ctx: StageContext) -> Outputs:
    from alignloop.evaluation.evaluate import evaluate

    with ctx.activity("evaluating"):
        report = evaluate(
            ctx.engine,
            checkpoint=inputs.policy.path,
            tasks=config.tasks,
            include_path=config.include_path,
            limit=config.limit,
            max_gen_tokens=config.max_gen_tokens,
            seed=0,  # greedy decoding: nothing is drawn, and rounds share one protocol
            max_model_len=config.max_model_len,
            samples_file=ctx.dir / "samples.jsonl",
            dtype=config.engine_dtype,
            quantization=config.quantization,
            strip_reasoning=config.strip_reasoning,
            progress=ctx.progress,
        )
    (ctx.dir / "report.json").write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return Outputs(
        report=ctx.artifact("report.json"),
        samples=ctx.artifact("samples.jsonl"),
        metrics=report.metrics,
        facts={"protocol": report.protocol.model_dump(mode="json"), "protocol_digest": report.protocol.digest},
    )


STAGE = Stage("evaluate", Inputs, Outputs, settings, run)
TEST = Stage("evaluate_test", Inputs, Outputs, settings_of_test, run, is_leaf=True)


def check(facts: Facts) -> None:
    """Local data is in its form and fits the context, names are not misspelt, metrics are of tasks that run, and what
    chooses is no test."""
    recipe, findings, config = facts.recipe, facts.findings, facts.recipe.evaluate
    is_bundled = config.include_path == "quickstart"
    known = tuple(bundled_benchmarks()) if is_bundled else ()
    if config.include_path is not None and not is_bundled:
        folder = Path(config.include_path).expanduser()
        if not folder.is_dir():
            findings.problems.append(f"evaluate.include_path: {config.include_path} is no folder of lm-eval task files")
        known = _task_names(folder)
        with findings.collecting():
            check_task_files(folder)
    if not config.tasks:
        findings.problems.append("evaluate.tasks: no task is named")
    found: list[TooLong] = []
    parts: dict[str, set[str]] = {}
    fields = [("evaluate.tasks", name) for name in config.tasks]
    for field, name in [*fields, *(("evaluate.test_tasks", name) for name in config.test_tasks)]:
        _check_task(field, name, known, findings)
        try:
            tasks = local_prompts(name, bundled=is_bundled)
            if tasks:
                parts[name.partition("=")[0]] = {task.name for task in tasks}
            if facts.base.chat is not None:
                found += too_long(
                    tasks, chat=facts.base.chat, limit=config.limit, max_model_len=recipe.engine.max_model_len
                )
        except UserError as error:
            findings.problems.append(f"{field}: {error}")
    with findings.collecting():
        refuse(found, max_model_len=recipe.engine.max_model_len)
    _check_tests(recipe, findings)
    if config.tasks:
        for field, metric in [("best_metric", recipe.best_metric), *(("gate.metrics", m) for m in recipe.gate.metrics)]:
            _check_metric(field, metric, recipe, parts=parts, findings=findings)
    if recipe.gate.metrics and recipe.gate.max_regression is None:
        findings.notes.append("gate.metrics are named, but gate.max_regression is not set: every round passes")


def _task_names(folder: Path) -> tuple[str, ...]:
    files = [file for file in sorted(folder.rglob("*.y*ml")) if file.is_file()]
    texts = [file.read_text(encoding="utf-8", errors="replace") for file in files]
    return tuple(name for text in texts for name in _TASK_NAME.findall(text))


def _check_tests(recipe: Recipe, findings: Findings) -> None:
    """No test is asked for what it chooses, too, under its own name or by its data under another."""
    is_bundled = recipe.evaluate.include_path == "quickstart"
    choosing: dict[object, str] = {}
    for name in recipe.evaluate.tasks:
        local = benchmark_data(name, bundled=is_bundled)
        choosing |= {name.partition("=")[0]: name} | ({} if local is None else {local.path.resolve(): name})
    for name in recipe.evaluate.test_tasks:
        local = benchmark_data(name, bundled=is_bundled)
        same = choosing.get(name.partition("=")[0]) or (local and choosing.get(local.path.resolve()))
        if same:
            findings.problems.append(
                f"evaluate.test_tasks: {name}: evaluate.tasks has {same}, and what rounds are chosen by is no test of "
                "them - name it in one of the two"
            )


def _check_task(field: str, name: str, known: tuple[str, ...], findings: Findings) -> None:
    local = benchmark_data(name, bundled=False)
    if local is not None:
        if local.kind not in LOCAL:
            findings.problems.append(not_local(local, field=field))
    elif name not in known:
        if near := did_you_mean(name, known, most=2, cutoff=0.75):
            findings.problems.append(f"{field}: {name!r} is unknown - {near}")
        else:
            findings.notes.append(f"{field}: {name} is taken for lm-eval's own and looked up when the run starts")


def _check_metric(
    field: str, metric: str, recipe: Recipe, *, parts: Mapping[str, set[str]], findings: Findings
) -> None:
    """A metric is of a task that runs, and one that the task reports, as far as its metrics are known. `parts` has the
    tasks of each benchmark with local data."""
    task, _, measure = metric.partition("/")
    names, tests = (
        {name.partition("=")[0]: name for name in tasks}
        for tasks in (recipe.evaluate.tasks, recipe.evaluate.test_tasks)
    )
    # Of other groups lm-eval alone knows the tasks, which begin with the group's name; IFEval is none.
    others = tuple(f"{name.removesuffix('_generative')}_" for name in names if name not in (*parts, "ifeval"))
    if task in {*tests, *chain.from_iterable(parts.get(name, ()) for name in tests)}:
        findings.problems.append(
            f"{field}: {metric!r} is of a test task (evaluate.test_tasks), which chooses nothing - name a metric of "
            f"{', '.join(names)}"
        )
    elif task not in {*names, *chain.from_iterable(parts.values())} and not task.startswith(others):
        findings.problems.append(
            f"{field}: {metric!r} is of none of the tasks ({', '.join(names)}) - name a metric as task/metric"
        )
    local = benchmark_data(names.get(task, ""), bundled=recipe.evaluate.include_path == "quickstart")
    reported = () if local is None else _METRICS.get(local.kind, ())
    if local is None or not reported or measure in reported or (local.kind == "ifeval" and measure.startswith("type/")):
        return
    near = difflib.get_close_matches(measure, reported, n=1, cutoff=0.5)
    hint = f" - did you mean {task}/{near[0]}?" if near else ""
    findings.problems.append(f"{field}: {metric!r}: {task} reports {', '.join(reported)}{hint}")


@dataclass(frozen=True)
class TaskPrompts:
    """What a local task asks.

    Attributes:
        name: lm-eval's of the task.
        shots: the messages before every question.
        questions: the last user message of each prompt.
        num_shots: examples among `shots`.
        answer_tokens: of the shortest answer: the first that is sampled, and before it what is scored.
    """

    name: str
    shots: tuple[Message, ...]
    questions: tuple[str, ...]
    num_shots: int = 0
    answer_tokens: int = 1


def local_prompts(name: str, *, bundled: bool) -> list[TaskPrompts]:
    """The prompts of `name=PATH` or of a bundled task (`bundled`: the quickstart's names are its own); none for others,
    which lm-eval alone can build. Raises DataError with file, line and field of wrong data."""
    local = benchmark_data(name, bundled=bundled)
    if local is None:
        return []
    if local.kind == "ifeval":
        return [TaskPrompts(local.name, (), tuple(row.prompt for _, row in read_form(local.path)))]
    if local.kind == "mmlu":
        form: AnswerForm = "option_text" if local.bundled else "letter"
        return _mmlu(local.path, form=form, num_shots=0 if local.bundled else MMLU_SHOTS)
    return _mmlu(local.path, form="generated", num_shots=0) if local.kind == "mmlu_generative" else []


def _mmlu(folder: Path, *, form: AnswerForm, num_shots: int) -> list[TaskPrompts]:
    found = []
    for subject in read_mmlu(folder):
        prompts = [prompt_messages(subject, row, form=form, num_fewshot=num_shots) for row in subject.test]
        found.append(
            TaskPrompts(
                task_name(subject.name, form=form),
                shots=tuple(prompts[0][:-1]),
                questions=tuple(messages[-1].content for messages in prompts),
                num_shots=min(num_shots, len(subject.dev)),
                answer_tokens=1 if form == "generated" else 2,
            )
        )
    return found


def too_long(tasks: Sequence[TaskPrompts], *, chat: ChatFormat, limit: int | None, max_model_len: int) -> list[TooLong]:
    """The tasks with questions that leave no room for an answer, and how many. A message's tokens do not depend on its
    neighbours, so the shots are tokenised once; and a text has hardly more tokens than bytes, so most questions need
    not be."""
    in_turn = tuple if takes_system_turn(chat) else in_first_user_turn

    def num_tokens(*messages: Message) -> int:
        return len(chat.prompt_ids(in_turn(messages)))

    short = Message(role="user", content="a")
    found = []
    for task in tasks:
        questions = task.questions[:limit]
        before = num_tokens(*task.shots, short) - num_tokens(short) + task.answer_tokens
        sure = before + num_tokens(short) + SLACK
        lengths = [
            before + num_tokens(Message(role="user", content=question))
            for question in questions
            if sure + len(question.encode()) > max_model_len
        ]
        if num_long := sum(length > max_model_len for length in lengths):
            found.append(TooLong(task.name, num_long, len(questions), task.num_shots, max(lengths)))
    return found
