"""Benchmarks named in the recipe, as far as they can be known without lm-eval, whose import takes seconds."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from alignloop.config import Recipe
from alignloop.preflight.findings import Findings

BUNDLED = ("ifeval", "mmlu")
LOCAL = ("ifeval", "mmlu")
"""Kinds that read local data, as `kind=PATH`."""
_TASK_NAME = re.compile(r"^(?:task|group|tag): *[\"']?([\w.-]+)", re.MULTILINE)


def check_tasks(recipe: Recipe, *, findings: Findings) -> None:
    """Local data lies where it should, names are not misspelt, and `best_metric` is of a task that runs."""
    config = recipe.evaluate
    known: tuple[str, ...] = ()
    if config.include_path == "quickstart":
        known = BUNDLED
    elif config.include_path is not None:
        folder = Path(config.include_path).expanduser()
        if not folder.is_dir():
            findings.problems.append(f"evaluate.include_path: {config.include_path} is no folder of lm-eval task files")
        known = _task_names(folder)
    if not config.tasks:
        findings.problems.append("evaluate.tasks: no task is named")
    for name in config.tasks:
        _check_task(name, known, findings)
    names = [name.partition("=")[0] for name in config.tasks]
    task = recipe.best_metric.partition("/")[0]
    if names and not any(task == name or task.startswith(f"{name}_") for name in names):
        findings.problems.append(
            f"best_metric: {recipe.best_metric!r} is of none of the tasks ({', '.join(names)}) - name a metric as "
            "task/metric"
        )


def _check_task(name: str, known: tuple[str, ...], findings: Findings) -> None:
    kind, has_path, path = name.partition("=")
    if has_path:
        if kind not in LOCAL:
            findings.problems.append(f"evaluate.tasks: {name}: only ifeval=FILE and mmlu=FOLDER read local data")
        elif not Path(path).expanduser().exists():
            findings.problems.append(f"evaluate.tasks: {name}: no such file or folder")
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
