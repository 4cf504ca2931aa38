"""Benchmarks named in the recipe, as far as they can be known without lm-eval, whose import takes seconds.

Local data and the bundled ones are read, and their questions measured in tokens, shots included.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from alignloop.chat.format import ChatFormat
from alignloop.chat.system_turn import in_first_user_turn, takes_system_turn
from alignloop.config import Recipe
from alignloop.config.bundled import benchmark_data
from alignloop.errors import UserError
from alignloop.evaluation.ifeval import ACCURACIES, read_form
from alignloop.evaluation.mmlu import AnswerForm, prompt_messages, read_mmlu, task_name
from alignloop.evaluation.room import TooLong, refuse
from alignloop.evaluation.tasks import LOCAL, MMLU_SHOTS, check_task_files, not_local
from alignloop.records import Message
from alignloop.stages.facts import Facts, Findings

SLACK = 8
"""Tokens that a tokenizer may add to a text, such as a space before its first word."""
BUNDLED = ("ifeval", "mmlu")
_METRICS = {
    "ifeval": (*ACCURACIES, "mean", "stop_rate", "mean_tokens"),
    "mmlu": ("acc", "acc_macro"),
    "mmlu_generative": (
        "exact_match,get_response",
        "exact_match_macro,get_response",
    ),
}
"""What each local benchmark reports, but for IFEval's `type/...`; a task of another name has lm-eval's metrics."""
_TASK_NAME = re.compile(r"^(?:task|group|tag): *[\"']?([\w.-]+)", re.MULTILINE)


def check(facts: Facts) -> None:
    """Local data is in its form and fits the context, names are not misspelt, and metrics are of tasks that run."""
    recipe, chat, findings = facts.recipe, facts.base.chat, facts.findings
    config = recipe.evaluate
    known: tuple[str, ...] = ()
    if config.include_path == "quickstart":
        known = BUNDLED
    elif config.include_path is not None:
        folder = Path(config.include_path).expanduser()
        if not folder.is_dir():
            findings.problems.append(f"evaluate.include_path: {config.include_path} is no folder of lm-eval task files")
        known = _task_names(folder)
        with findings.collecting():
            check_task_files(folder)
    if not config.tasks:
        findings.problems.append("evaluate.tasks: no task is named")
    found: list[TooLong] = []
    for name in config.tasks:
        _check_task(name, known, findings)
        found += _too_long(name, recipe, chat=chat, findings=findings)
    with findings.collecting():
        refuse(found, max_model_len=recipe.engine.max_model_len)
    names = [name.partition("=")[0] for name in config.tasks]
    if names:
        metrics = [("best_metric", recipe.best_metric), *(("gate.metrics", metric) for metric in recipe.gate.metrics)]
        for field, metric in metrics:
            _check_metric(field, metric, names, findings)
            if wrong := _misspelt(metric, config.tasks, bundled=config.include_path == "quickstart"):
                findings.problems.append(f"{field}: {wrong}")
    if recipe.gate.metrics and recipe.gate.max_regression is None:
        findings.notes.append("gate.metrics are named, but gate.max_regression is not set: every round passes")


def _check_metric(field: str, metric: str, names: Sequence[str], findings: Findings) -> None:
    task = metric.partition("/")[0]
    if not any(task == name or task.startswith(f"{name.removesuffix('_generative')}_") for name in names):
        findings.problems.append(
            f"{field}: {metric!r} is of none of the tasks ({', '.join(names)}) - name a metric as task/metric"
        )


def _misspelt(metric: str, configured: Sequence[str], *, bundled: bool) -> str | None:
    """What to say of a metric that a local or bundled benchmark does not report."""
    task, _, name = metric.partition("/")
    ours = {part for part in configured if "=" in part or bundled}
    for kind, metrics in _METRICS.items():
        if task != kind or not any(part.partition("=")[0] == kind for part in ours):
            continue
        if name in metrics or (kind == "ifeval" and name.startswith("type/")):
            return None
        near = difflib.get_close_matches(name, metrics, n=1, cutoff=0.5)
        return f"{metric!r}: {kind} reports {', '.join(metrics)}" + (
            f" - did you mean {kind}/{near[0]}?" if near else ""
        )
    return None


def _too_long(name: str, recipe: Recipe, *, chat: ChatFormat | None, findings: Findings) -> list[TooLong]:
    """What does not fit of a local or bundled benchmark; wrong data goes to `findings`."""
    try:
        tasks = local_prompts(name, bundled=recipe.evaluate.include_path == "quickstart")
        if chat is None:
            return []
        limit = recipe.evaluate.limit
        return [
            long
            for task in tasks
            if (long := too_long(task, chat=chat, limit=limit, max_model_len=recipe.engine.max_model_len))
        ]
    except UserError as error:
        findings.problems.append(f"evaluate.tasks: {error}")
        return []


def _check_task(name: str, known: tuple[str, ...], findings: Findings) -> None:
    kind, has_path, path = name.partition("=")
    if has_path:
        if kind not in LOCAL:
            findings.problems.append(not_local(kind, path=Path(path)))
        return
    near = [] if name in known else difflib.get_close_matches(name, known, n=2, cutoff=0.75)
    if near:
        findings.problems.append(f"evaluate.tasks: {name!r} is unknown - did you mean {' or '.join(near)}?")
    elif name not in known:
        findings.notes.append(f"evaluate.tasks: {name} is taken for lm-eval's own and looked up when the run starts")


def _task_names(folder: Path) -> tuple[str, ...]:
    files = [file for file in sorted(folder.rglob("*.y*ml")) if file.is_file()]
    texts = [file.read_text(encoding="utf-8", errors="replace") for file in files]
    return tuple(name for text in texts for name in _TASK_NAME.findall(text))


@dataclass(frozen=True)
class TaskPrompts:
    """What a local task asks.

    Attributes:
        name: lm-eval's of the task.
        shots: the messages before every question.
        questions: the last user message of each prompt.
        num_shots: examples among `shots`.
        answer_tokens: that the shortest answer needs: the first that is sampled, and before it what is scored.
    """

    name: str
    shots: tuple[Message, ...]
    questions: tuple[str, ...]
    num_shots: int = 0
    answer_tokens: int = 1


def local_prompts(name: str, *, bundled: bool) -> list[TaskPrompts]:
    """The prompts of `kind=PATH`, or of a bundled task; none for others, which lm-eval alone can build.

    Args:
        name: as in the recipe.
        bundled: whether `ifeval` and `mmlu` are the bundled ones.

    Raises:
        DataError: wrong data: file, line and field.
    """
    local = benchmark_data(name, bundled=bundled)
    if local is None:
        return []
    kind, data = local
    has_path = "=" in name
    if kind == "ifeval":
        return [TaskPrompts("ifeval", (), tuple(row.prompt for _, row in read_form(data)))]
    if kind == "mmlu":
        return _mmlu(data, form="letter" if has_path else "option_text", num_shots=MMLU_SHOTS if has_path else 0)
    return _mmlu(data, form="generated", num_shots=0) if kind == "mmlu_generative" else []


def too_long(task: TaskPrompts, *, chat: ChatFormat, limit: int | None, max_model_len: int) -> TooLong | None:
    """How many of a task's questions leave no room for an answer; None where all of them do.

    A message's tokens do not depend on its neighbours, so the shots are tokenised once; and a text has hardly more
    tokens than bytes, so most questions need not be.
    """

    in_turn = tuple if takes_system_turn(chat) else in_first_user_turn

    def num_tokens(*messages: Message) -> int:
        return len(chat.prompt_ids(in_turn(messages)))

    questions = task.questions[:limit]
    short = Message(role="user", content="a")
    before = num_tokens(*task.shots, short) - num_tokens(short) + task.answer_tokens
    sure = before + num_tokens(short) + SLACK
    lengths = [
        before + num_tokens(Message(role="user", content=question))
        for question in questions
        if sure + len(question.encode()) > max_model_len
    ]
    num_long = sum(length > max_model_len for length in lengths)
    if not num_long:
        return None
    return TooLong(task.name, num_long, len(questions), task.num_shots, max(lengths))


def _mmlu(folder: Path, *, form: AnswerForm, num_shots: int) -> list[TaskPrompts]:
    found = []
    for subject in read_mmlu(folder):
        prompts = [prompt_messages(subject, row, form=form, num_fewshot=num_shots) for row in subject.test]
        questions = _contents(prompts)
        name = task_name(subject.name, form=form)
        answer_tokens = 1 if form == "generated" else 2
        num_here = min(num_shots, len(subject.dev))
        found.append(TaskPrompts(name, tuple(prompts[0][:-1]), questions, num_here, answer_tokens))
    return found


def _contents(prompts: Sequence[Sequence[Message]]) -> tuple[str, ...]:
    return tuple(messages[-1].content for messages in prompts)
