"""Benchmarks named in the recipe, as far as they can be known without lm-eval, whose import takes seconds.

Local data and the bundled ones are read, and their questions measured in tokens, shots included.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

from alignloop.chat.format import ChatFormat
from alignloop.config import Recipe
from alignloop.errors import UserError
from alignloop.evaluation.ifeval import ACCURACIES
from alignloop.evaluation.room import TooLong, refuse
from alignloop.evaluation.tasks import LOCAL, check_task_files, not_local
from alignloop.preflight.benchmarks import local_prompts, too_long
from alignloop.preflight.findings import Findings

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


def check_tasks(recipe: Recipe, *, chat: ChatFormat | None, findings: Findings) -> None:
    """Local data is in its form and fits the context, names are not misspelt, and metrics are of tasks that run.

    Args:
        chat: the base's; None where its tokenizer is not on this machine.
    """
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
