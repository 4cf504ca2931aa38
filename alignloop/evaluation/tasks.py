"""Task names of a recipe -> lm-eval task objects.

A name is one of
    ifeval=FILE.jsonl   local data in IFEval's published form, measured as lm-eval's `ifeval`
    ifeval_NAME=FILE.jsonl    the same under a name of its own: a dev half beside a test half
    mmlu=FOLDER         local data in MMLU's published form (letters by log-likelihood, up to 5 shots)
    mmlu_generative=FOLDER    the same data, answers written by the model, no shots
    ifeval, ifeval_dev, ifeval_unseen, mmlu    with include_path `quickstart`: the bundled ones
    anything else       an lm-eval task, group or tag: of include_path first, then lm-eval's own
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignloop.config.bundled import LocalBenchmark, benchmark_data
from alignloop.config.yaml_values import YamlProblem, read_yaml
from alignloop.errors import DataError
from alignloop.evaluation.ifeval import load_checkers, read_ifeval
from alignloop.evaluation.mmlu import GROUPS, METRICS, AnswerForm, read_mmlu, task_config

QUICKSTART = "quickstart"
MMLU_SHOTS = 5
"""The paper's number (section 5.1)."""
LOCAL = {"ifeval": "ifeval=FILE.jsonl", "mmlu": "mmlu=FOLDER", "mmlu_generative": "mmlu_generative=FOLDER"}
"""Kinds that read local data, and how each is written."""
NAMED = "ifeval_NAME=FILE.jsonl"
"""How a kind that may have a name of its own is written with it."""


@dataclass(frozen=True)
class LoadedTasks:
    """lm-eval's objects by name; `groups` hold some of `tasks`."""

    tasks: dict[str, Any] = field(default_factory=dict)
    groups: dict[str, Any] = field(default_factory=dict)

    def add(self, other: LoadedTasks) -> None:
        """Raises DataError where a name is in both: its figures could not be told apart."""
        for name in [*other.tasks, *other.groups]:
            if name in self.tasks or name in self.groups:
                raise _named_twice(name)
        self.tasks.update(other.tasks)
        self.groups.update(other.groups)


def load_tasks(names: Sequence[str], *, include_path: str | Path | None) -> LoadedTasks:
    """Everything `names` ask for, data included; DataError: an unknown name (with near ones), wrong local data, or hub
    data that cannot be had."""
    if not names:
        raise DataError("evaluate.tasks: no task is named.")
    plain = [name.partition("=")[0] for name in names]
    if twice := next((name for name in plain if plain.count(name) > 1), None):
        raise _named_twice(twice)  # before anything is downloaded
    load_checkers()
    is_bundled = str(include_path) == QUICKSTART
    loaded = LoadedTasks()
    registered = []
    for name in names:
        local = benchmark_data(name, bundled=is_bundled)
        if local is None:
            registered.append(name)
        else:
            loaded.add(_local(local))
    if registered:
        loaded.add(_registered(registered, include_path=None if is_bundled else include_path))
    return loaded


def _named_twice(name: str) -> DataError:
    return DataError(f"evaluate.tasks: {name} is named twice (a group contains its tasks); name it once.")


def local_ifeval(path: Path, *, name: str = "ifeval") -> LoadedTasks:
    """lm-eval's `ifeval` task over a local file in its published form, under a name."""
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
    (task,) = manager.load({"group": "local", "task": [local]})["tasks"].values()
    task.set_config(key="task", value=name)
    return LoadedTasks({name: task})


def local_mmlu(folder: Path, *, form: AnswerForm = "letter", num_fewshot: int = MMLU_SHOTS) -> LoadedTasks:
    """A group `mmlu` or `mmlu_generative` (mean over questions) with a task a subject, over a local folder.
    `num_fewshot` examples come from `dev/`, or as many as there are; none for the form `generated`."""
    import lm_eval.tasks
    from lm_eval.api.group import Group
    from lm_eval.api.task import ConfigurableTask

    template, version = {}, f"{form}-1"
    if form == "generated":  # what lm-eval's own have in common: question, stop rules, filter and metric
        folder_of_theirs = Path(lm_eval.tasks.__file__).parent / "mmlu" / "generative"
        template = read_yaml(folder_of_theirs / "_default_template_yaml")
        version = str(template["metadata"]["version"])
    filters = [entry["name"] for entry in template.get("filter_list", [{"name": "none"}])]
    metrics = [{"metric": metric, "weight_by_size": True, "filter_list": filters} for metric in METRICS[form]]
    name = GROUPS[form]
    group = Group.from_config({"group": name, "aggregate_metric_list": metrics, "metadata": {"version": version}})
    tasks = {}
    for subject in read_mmlu(folder):
        config = task_config(subject, form=form, num_fewshot=num_fewshot, version=version, template=template)
        task = ConfigurableTask(config=config)
        tasks[config["task"]] = task
        group.add(task)
    return LoadedTasks(tasks, {name: group})


def check_names(names: Sequence[str], *, known: Sequence[str]) -> None:
    """Raise a DataError with near names for the first of `names` that is not `known`."""
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
            hint = f"; near: {', '.join(near)}" if near else ""
            raise DataError(f"evaluate.tasks: lm-eval has no task {name!r}{hint}. `lm-eval ls tasks` lists them all.")


def _local(data: LocalBenchmark) -> LoadedTasks:
    """The quickstart's questions are asked by their option texts, without shots."""
    if data.kind not in LOCAL:
        raise DataError(not_local(data))
    if data.kind == "ifeval":
        return local_ifeval(data.path, name=data.name)
    if data.bundled:
        return local_mmlu(data.path, form="option_text", num_fewshot=0)
    return local_mmlu(data.path, form="letter" if data.kind == "mmlu" else "generated")


def not_local(data: LocalBenchmark, *, field: str = "evaluate.tasks") -> str:
    """What is wrong with data of a kind that is none, and which kinds there are, near ones first."""
    near = difflib.get_close_matches(data.kind, LOCAL, n=1, cutoff=0.5)
    hint = f" - did you mean {LOCAL[near[0]]}?" if near else ""
    return f"{field}: {data.name}={data.path}: only {', '.join([*LOCAL.values(), NAMED])} read local data{hint}"


def check_task_files(folder: Path) -> None:
    """lm-eval reads every task file of a folder whatever is in it: without bounds, and YAML 1.1's numbers. DataError:
    one of them is no YAML, is too large, or holds a value that can be read in two ways."""
    for path in sorted(folder.rglob("*.yaml")):
        try:
            read_yaml(path, tags=("!function",))
        except YamlProblem as error:
            raise DataError(f"evaluate.include_path: {path}: {error}") from error


def _registered(names: Sequence[str], *, include_path: str | Path | None) -> LoadedTasks:
    from lm_eval.tasks import TaskManager

    if include_path is not None and not Path(include_path).is_dir():
        raise DataError(f"evaluate.include_path: {include_path} is no folder of lm-eval task files.")
    if include_path is not None:
        check_task_files(Path(include_path))
    # lm-eval's own index takes seconds to build: only where the folder does not have all the names.
    manager = None if include_path is None else TaskManager(include_defaults=False, include_path=str(include_path))
    if manager is None or not set(names) <= set(manager.all_tasks):
        manager = TaskManager(include_path=None if include_path is None else str(include_path))
    check_names(names, known=manager.all_tasks)
    with _load_errors_named(names):
        loaded = manager.load(list(names))
    return LoadedTasks(dict(loaded["tasks"]), dict(loaded.get("groups", {})))


@contextmanager
def _load_errors_named(names: Sequence[str]) -> Iterator[None]:
    """What a task wants and this machine lacks, with the remedy."""
    what = ", ".join(names)
    try:
        yield
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        remedy = f"`pip install {package}`" if package else "install it (`pip install 'lm_eval[...]'` names the extras)"
        raise DataError(f"evaluate.tasks: {what} needs a package that is not installed: {error} - {remedy}.") from error
    except LookupError as error:
        # nltk's data are the one thing that tasks look up rather than open; its own text is a screen long.
        text = " ".join(str(error).split())
        found = re.search(r"nltk\.download\('([\w-]+)'\)", text)
        if found is None:
            raise
        raise DataError(
            f"evaluate.tasks: {what} needs nltk's {found[1]}. With a network: python -m nltk.downloader {found[1]}. "
            "Without: copy it from another machine and set NLTK_DATA to the folder it lies in."
        ) from error
    except (OSError, ValueError) as error:  # no connection, no such data set, none in the cache
        raise DataError(
            f"evaluate.tasks: the data of {what} cannot be had: {error}. Without a hub, name local data "
            f"({', '.join(LOCAL.values())}), a folder of task files (evaluate.include_path; `quickstart`: the bundled "
            "ones), or copy the data set's cache from a machine that has run the task (HF_HOME) and set "
            "HF_HUB_OFFLINE=1."
        ) from error
