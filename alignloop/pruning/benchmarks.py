"""The questions of a run's benchmarks, as decontamination compares rows with them.

local data --read--> BenchmarkText
other task names --load_tasks--> lm-eval tasks --doc_to_text, options--> BenchmarkText
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from alignloop.artifacts import Artifact
from alignloop.config.bundled import benchmark_data
from alignloop.errors import DataError
from alignloop.evaluation.measures import words
from alignloop.pruning.benchmark_index import BenchmarkText

MIN_WORDS = 8
"""A shorter question tells too little to be known from others: its options stand with it."""
BUNDLED = "quickstart"
"""The `include_path` under which `ifeval` and `mmlu` are the bundled ones."""


@lru_cache(maxsize=4)
def benchmark_texts(tasks: tuple[str, ...], include_path: str | None) -> tuple[BenchmarkText, ...]:
    """Every question of the tasks: IFEval's prompts, MMLU's questions, and any other task's through lm-eval.

    Raises:
        DataError: as for evaluation: an unknown task, or data that cannot be had.
    """
    local = local_texts(tasks, include_path)
    others = [task for task in tasks if not is_local(task, include_path)]
    if not others:
        return local
    from alignloop.evaluation.tasks import load_tasks

    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it explains its own options for each task
    try:
        loaded = load_tasks(others, include_path=include_path).tasks
        return (*local, *(text for name, task in loaded.items() for text in task_texts(name, task)))
    finally:
        logger.setLevel(level)


def is_local(task: str, include_path: str | None) -> bool:
    """Whether a task's questions are read from a file or folder, without lm-eval."""
    return benchmark_data(task, bundled=include_path == BUNDLED) is not None


@lru_cache(maxsize=4)
def local_texts(tasks: tuple[str, ...], include_path: str | None) -> tuple[BenchmarkText, ...]:
    """The questions of the tasks with local data; lm-eval, whose import takes seconds, is not needed for them.

    Raises:
        DataError: wrong data: file, line and field; or a kind that reads no local data.
    """
    found = [benchmark_data(task, bundled=include_path == BUNDLED) for task in tasks]
    return tuple(text for kind, path in filter(None, found) for text in _local_texts(kind, path))


def _local_texts(kind: str, path: Path) -> Iterator[BenchmarkText]:
    from alignloop.evaluation.ifeval import read_form
    from alignloop.evaluation.mmlu import read_mmlu, task_name
    from alignloop.evaluation.tasks import LOCAL, not_local

    if kind not in LOCAL:
        raise DataError(not_local(kind, path=path))
    if kind == "ifeval":
        yield from _numbered(kind, [row.prompt for _, row in read_form(path)])
        return
    # lm-eval's generative tasks have no options to score: there a short question stands alone.
    scored = kind == "mmlu"
    for subject in read_mmlu(path):
        questions = [standing_alone(row["question"], row["choices"] if scored else []) for row in subject.test]
        yield from _numbered(task_name(subject.name, form="letter" if scored else "generated"), questions)


def _numbered(task: str, questions: Sequence[str]) -> list[BenchmarkText]:
    return [BenchmarkText(task, str(number), text) for number, text in enumerate(questions) if text.strip()]


def task_texts(name: str, task: Any) -> list[BenchmarkText]:
    """The questions of one lm-eval task, without shots and description: what the model is asked, row by row."""
    return _numbered(name, [_question_text(task, doc) for doc in task.eval_docs])


def _question_text(task: Any, doc: Any) -> str:
    """A question; with its options where it is too short to stand alone."""
    listed = isinstance(doc.get("choices"), list)
    choices: list[str] = []
    if task.OUTPUT_TYPE == "multiple_choice":
        options = (doc["choices"] if listed else task.doc_to_choice(doc)) or []
        choices = [str(choice) for choice in options if _is_option(choice)]
    question = doc.get("question") if listed else None
    text = question if isinstance(question, str) else task.doc_to_text(doc)
    if isinstance(text, int):  # of tasks that fill a gap: which of the options begins the text
        text = choices[text] if 0 <= text < len(choices) else ""
    if isinstance(text, list):
        text = "\n".join(str(part) for part in text)
    return standing_alone(str(text), choices)


def standing_alone(text: str, choices: Sequence[Any]) -> str:
    """A question; with its options where it is too short."""
    if len(words(text)) >= MIN_WORDS:
        return text
    return "\n".join([text, *(str(choice) for choice in choices if _is_option(choice))])


def _is_option(choice: Any) -> bool:
    """Letters alone are no option."""
    return len(str(choice).strip()) > 1


def benchmark_files(tasks: Sequence[str], include_path: str | None) -> tuple[Artifact, ...]:
    """The local data of the tasks, with digests: what a stage that depends on them is known by.

    Tasks of lm-eval's own have none: their names stand in the stage's config.
    """
    found = [benchmark_data(task, bundled=include_path == BUNDLED) for task in tasks]
    paths = [path for _, path in filter(None, found)]
    if include_path is not None and include_path != BUNDLED:
        paths.append(Path(include_path).expanduser())
    return tuple(Artifact.of(path) for path in paths if path.exists())
