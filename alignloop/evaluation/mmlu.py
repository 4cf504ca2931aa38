"""MMLU: local folders in the published form as lm-eval tasks, one a subject and a group over them.

The published form is `test/<subject>_test.csv` and, for few-shot examples, `dev/<subject>_dev.csv`; rows are question,
four options and the letter of the right one, without a header.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from alignloop.errors import DataError

LETTERS = "ABCD"
AnswerForm = Literal["letter", "option_text"]
"""What is scored after the question.

`letter`: the options are shown with letters and the letter is scored: MMLU as published, and lm-eval's `mmlu`.
`option_text`: the question alone is shown and each option's text is scored, as lm-eval's `mmlu_continuation` does: for
models too small to know letters. `acc` compares sums of logprobs, which favours the shorter of options of unequal
length; `acc_norm` divides by the number of characters, which favours the longer one where its end follows from its
beginning. Both are reported. `acc` is lm-eval's headline and unbiased where a question's options are of like length.
"""
METRICS: dict[AnswerForm, tuple[str, ...]] = {"letter": ("acc",), "option_text": ("acc", "acc_norm")}
"""Letters are of equal length: there is nothing to normalise."""


@dataclass(frozen=True)
class Subject:
    """One subject's questions.

    Attributes:
        name: for example `anatomy`.
        test: dicts of `question`, `choices` (4 texts) and `answer` (0-3), as in the `cais/mmlu` data set.
        dev: the few-shot examples, in the same form; empty where there are none.
    """

    name: str
    test: tuple[dict[str, Any], ...]
    dev: tuple[dict[str, Any], ...]


def read_mmlu(folder: Path) -> list[Subject]:
    """All subjects of a folder in MMLU's published form, sorted by name.

    Raises:
        DataError: no `test/*_test.csv`, an empty file, or a row that is not a question (file and line).
    """
    files = sorted((folder / "test").glob("*_test.csv"))
    if not files:
        raise DataError(f"{folder}: no test/<subject>_test.csv in it. MMLU data are test/*.csv and dev/*.csv.")
    return [_read_subject(file, folder=folder) for file in files]


def task_config(subject: Subject, *, form: AnswerForm, num_fewshot: int, version: str) -> dict[str, Any]:
    """lm-eval's configuration of one subject."""
    return {
        "task": f"mmlu_{subject.name}",
        "custom_dataset": _dataset_of(subject),
        "test_split": "test",
        "fewshot_split": "dev" if subject.dev else None,
        "fewshot_config": {"sampler": "first_n"},
        "num_fewshot": min(num_fewshot, len(subject.dev)),
        "output_type": "multiple_choice",
        "doc_to_target": "answer",
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in METRICS[form]
        ],
        "metadata": {"version": version},
        **_form_config(subject.name, form=form),
    }


def _form_config(subject: str, *, form: AnswerForm) -> dict[str, Any]:
    if form == "option_text":
        return {"doc_to_text": "{{question.strip()}}", "doc_to_choice": "choices"}
    options = "\n".join(f"{letter}. {{{{choices[{index}]}}}}" for index, letter in enumerate(LETTERS))
    about = subject.replace("_", " ")
    return {
        "description": f"The following are multiple choice questions (with answers) about {about}.\n\n",
        "doc_to_text": f"{{{{question.strip()}}}}\n{options}\nAnswer:",
        "doc_to_choice": list(LETTERS),
    }


def _dataset_of(subject: Subject) -> Callable[..., dict[str, Any]]:
    """What lm-eval calls in place of `datasets.load_dataset`: rows in memory, nothing cached on disk."""

    def load(**_: object) -> dict[str, Any]:
        from datasets import Dataset

        splits = {"test": subject.test, "dev": subject.dev}
        return {name: Dataset.from_list(list(rows)) for name, rows in splits.items() if rows}

    return load


def _read_subject(file: Path, *, folder: Path) -> Subject:
    name = file.stem.removesuffix("_test")
    dev = folder / "dev" / f"{name}_dev.csv"
    return Subject(name=name, test=_read_rows(file), dev=_read_rows(dev) if dev.is_file() else ())


def _read_rows(path: Path) -> tuple[dict[str, Any], ...]:
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file)
        rows = tuple(_question(row, where=f"{path}, line {reader.line_num}") for row in reader if row)
    if not rows:
        raise DataError(f"{path}: the file has no rows.")
    return rows


def _question(row: list[str], *, where: str) -> dict[str, Any]:
    if len(row) != 2 + len(LETTERS):
        raise DataError(f"{where}: {len(row)} columns; expected 6: question, A, B, C, D, the answer's letter.")
    question, *choices, letter = row
    if letter.strip() not in tuple(LETTERS):
        raise DataError(f"{where}: column 6: the answer is {letter!r}; expected one of A, B, C, D (and no header row).")
    empty = [letter for letter, choice in zip(LETTERS, choices, strict=True) if not choice.strip()]
    if not question.strip() or empty:
        raise DataError(f"{where}: {'the question' if not question.strip() else 'option ' + empty[0]} is empty.")
    return {"question": question, "choices": choices, "answer": LETTERS.index(letter.strip())}
