"""The questions of a run's benchmarks, as decontamination compares rows with them.

task names --load_tasks--> lm-eval tasks --doc_to_text, options--> BenchmarkText
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignloop.artifacts import Artifact
from alignloop.bundled import QUICKSTART
from alignloop.selection.cleaning import num_words

if TYPE_CHECKING:
    from alignloop.selection.benchmark_index import BenchmarkText

MIN_WORDS = 8
"""A shorter question says too little to be told from others: its options stand with it."""


@lru_cache(maxsize=4)
def benchmark_texts(tasks: tuple[str, ...], include_path: str | None) -> tuple[BenchmarkText, ...]:
    """Every question of the tasks: IFEval's prompts, MMLU's questions, and any other task's through lm-eval.

    Raises:
        DataError: as for evaluation: an unknown task, or data that cannot be had.
    """
    from alignloop.evaluation.tasks import load_tasks

    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it explains its own options for each task
    try:
        loaded = load_tasks(tasks, include_path=include_path).tasks
        return tuple(text for name, task in loaded.items() for text in task_texts(name, task))
    finally:
        logger.setLevel(level)


def task_texts(name: str, task: Any) -> list[BenchmarkText]:
    """The questions of one lm-eval task, without shots and description: what the model is asked, row by row."""
    from alignloop.selection.benchmark_index import BenchmarkText

    texts = []
    for number, doc in enumerate(task.eval_docs):
        text = question_text(task, doc)
        if text.strip():
            texts.append(BenchmarkText(name, str(number), text))
    return texts


def question_text(task: Any, doc: Any) -> str:
    """A question; with its options where it is too short to stand alone."""
    choices = options(task, doc)
    asked = doc.get("question") if isinstance(doc.get("choices"), list) else None
    text = asked if isinstance(asked, str) else task.doc_to_text(doc)
    if isinstance(text, int):  # of tasks that fill a gap: which of the options begins the text
        text = choices[text] if 0 <= text < len(choices) else ""
    if isinstance(text, list):
        text = "\n".join(str(part) for part in text)
    if num_words(str(text)) >= MIN_WORDS:
        return str(text)
    return "\n".join([str(text), *choices])


def options(task: Any, doc: Any) -> list[str]:
    """The texts of a question's options; letters alone are no text."""
    if task.OUTPUT_TYPE != "multiple_choice":
        return []
    given = doc.get("choices") if isinstance(doc.get("choices"), list) else task.doc_to_choice(doc)
    return [str(choice) for choice in given or [] if len(str(choice).strip()) > 1]


def benchmark_files(tasks: Sequence[str], include_path: str | None) -> tuple[Artifact, ...]:
    """The local data of the tasks, with digests: what a stage that depends on them is known by.

    Tasks of lm-eval's own have none: their names stand in the stage's config.
    """
    paths = []
    for name in tasks:
        _, has_path, path = name.partition("=")
        if has_path:
            paths.append(Path(path).expanduser())
        elif include_path == "quickstart" and name in ("ifeval", "mmlu"):
            paths.append(QUICKSTART / "data" / ("ifeval.jsonl" if name == "ifeval" else "mmlu"))
    if include_path is not None and include_path != "quickstart":
        paths.append(Path(include_path).expanduser())
    return tuple(Artifact.of(path) for path in paths if path.exists())
