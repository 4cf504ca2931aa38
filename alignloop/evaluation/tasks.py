"""Task names of a recipe -> lm-eval task objects.

A name is one of
    ifeval=FILE.jsonl   local data in IFEval's published form, measured as lm-eval's `ifeval`
    mmlu=FOLDER         local data in MMLU's published form (letters, up to 5 shots)
    ifeval, mmlu        with include_path `quickstart`: the bundled ones
    anything else       an lm-eval task, group or tag: of include_path first, then lm-eval's own
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignloop.errors import DataError
from alignloop.evaluation.ifeval import load_checkers, read_ifeval
from alignloop.evaluation.mmlu import METRICS, AnswerForm, read_mmlu, task_config

QUICKSTART = "quickstart"
MMLU_SHOTS = 5
"""The paper's number (section 5.1)."""


@dataclass(frozen=True)
class LoadedTasks:
    """lm-eval's objects by name; `groups` hold some of `tasks`."""

    tasks: dict[str, Any] = field(default_factory=dict)
    groups: dict[str, Any] = field(default_factory=dict)

    def joined(self, other: LoadedTasks) -> LoadedTasks:
        """Both. Raises DataError where a name is in both: its figures could not be told apart."""
        for name in [*other.tasks, *other.groups]:
            if name in self.tasks or name in self.groups:
                raise DataError(f"evaluate.tasks: {name} is named twice (a group contains its tasks); name it once.")
        return LoadedTasks({**self.tasks, **other.tasks}, {**self.groups, **other.groups})


def load_tasks(names: Sequence[str], *, include_path: str | Path | None) -> LoadedTasks:
    """Everything `names` ask for, data included.

    Raises:
        DataError: an unknown name (with near ones), wrong local data, or hub data that cannot be had.
    """
    if not names:
        raise DataError("evaluate.tasks: no task is named.")
    load_checkers()
    bundled = str(include_path) == QUICKSTART
    loaded = LoadedTasks()
    registered = []
    for name in names:
        kind, has_path, path = name.partition("=")
        if has_path:
            loaded = loaded.joined(_local(kind, path=Path(path)))
        elif bundled and name in ("ifeval", "mmlu"):
            loaded = loaded.joined(quickstart_task(name))
        else:
            registered.append(name)
    if registered:
        loaded = loaded.joined(_registered(registered, include_path=None if bundled else include_path))
    return loaded


def local_ifeval(path: Path) -> LoadedTasks:
    """lm-eval's `ifeval` task over a local file in its published form."""
    import lm_eval.tasks
    from datasets import Dataset

    rows = [row.as_doc() for row in read_ifeval(path)]
    try:
        dataset = Dataset.from_list(rows)
    except (TypeError, ValueError) as error:  # pyarrow's errors are ValueErrors
        raise DataError(f"{path}: kwargs: the same argument has different types in different rows: {error}") from error
    folder = Path(lm_eval.tasks.__file__).parent / "ifeval"
    manager = lm_eval.tasks.TaskManager(include_defaults=False, include_path=str(folder))
    # A group with one changed member is lm-eval's way to load a registered task over other data.
    local = {"task": "ifeval", "custom_dataset": lambda **_: {"train": dataset}}
    return LoadedTasks(dict(manager.load({"group": "local", "task": [local]})["tasks"]))


def local_mmlu(folder: Path, *, form: AnswerForm = "letter", num_fewshot: int = MMLU_SHOTS) -> LoadedTasks:
    """A group `mmlu` (mean over questions) with a task `mmlu_<subject>` a subject, over a local folder.

    Args:
        folder: in MMLU's published form.
        form: what is scored (see `AnswerForm`).
        num_fewshot: examples from `dev/`, as many as there are.
    """
    from lm_eval.api.group import Group
    from lm_eval.api.task import ConfigurableTask

    version = f"{form}-1"
    metrics = [{"metric": metric, "weight_by_size": True} for metric in METRICS[form]]
    group = Group.from_config({"group": "mmlu", "aggregate_metric_list": metrics, "metadata": {"version": version}})
    tasks = {}
    for subject in read_mmlu(folder):
        config = task_config(subject, form=form, num_fewshot=num_fewshot, version=version)
        task = ConfigurableTask(config=config)
        tasks[config["task"]] = task
        group.add(task)
    return LoadedTasks(tasks, {"mmlu": group})


def quickstart_task(name: str) -> LoadedTasks:
    """The bundled `ifeval` or `mmlu` about the quickstart's world; option texts, no shots."""
    import alignloop.quickstart

    data = Path(alignloop.quickstart.__file__).parent / "data"
    if name == "ifeval":
        return local_ifeval(data / "ifeval.jsonl")
    return local_mmlu(data / "mmlu", form="option_text", num_fewshot=0)


def check_names(names: Sequence[str], *, known: Sequence[str]) -> None:
    """Raise a DataError with near names for the first of `names` that is not `known`."""
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
            hint = f"; near: {', '.join(near)}" if near else ""
            raise DataError(f"evaluate.tasks: lm-eval has no task {name!r}{hint}. `lm-eval ls tasks` lists them all.")


def _local(kind: str, *, path: Path) -> LoadedTasks:
    if kind == "ifeval":
        return local_ifeval(path)
    if kind == "mmlu":
        return local_mmlu(path)
    raise DataError(f"evaluate.tasks: {kind}={path}: only ifeval=FILE and mmlu=FOLDER read local data.")


def _registered(names: Sequence[str], *, include_path: str | Path | None) -> LoadedTasks:
    from lm_eval.tasks import TaskManager

    if include_path is not None and not Path(include_path).is_dir():
        raise DataError(f"evaluate.include_path: {include_path} is no folder of lm-eval task files.")
    # lm-eval's own index takes seconds to build: only where the folder does not have all the names.
    manager = None if include_path is None else TaskManager(include_defaults=False, include_path=str(include_path))
    if manager is None or not set(names) <= set(manager.all_tasks):
        manager = TaskManager(include_path=None if include_path is None else str(include_path))
    check_names(names, known=manager.all_tasks)
    try:
        loaded = manager.load(list(names))
    except (OSError, ConnectionError) as error:
        raise DataError(
            f"evaluate.tasks: the data of {', '.join(names)} cannot be had: {error}. Without a hub, name local data: "
            "ifeval=FILE.jsonl, mmlu=FOLDER, or a folder of task files (evaluate.include_path)."
        ) from error
    return LoadedTasks(dict(loaded["tasks"]), dict(loaded.get("groups", {})))
