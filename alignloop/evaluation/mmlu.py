"""MMLU: local folders in the published form as lm-eval tasks, one a subject and a group over them.

The published form is `test/<subject>_test.csv` and, for few-shot examples, `dev/<subject>_dev.csv`; rows are question,
four options and the letter of the right one, without a header.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from alignloop.errors import DataError
from alignloop.records import Message

LETTERS = "ABCD"
AnswerForm = Literal["letter", "generated", "option_text"]
"""What is scored after the question.

`letter`: the options are shown with letters and the letter is scored: MMLU as published, and lm-eval's `mmlu`.
`generated`: the same question, without shots; the model writes its answer, and lm-eval's filter takes it from the first
line: lm-eval's `mmlu_generative`.
`option_text`: the question alone is shown and each option's text is scored, as lm-eval's `mmlu_continuation` does: for
models too small to know letters. `acc` compares sums of logprobs, which favours the shorter of options of unequal
length; `acc_norm` divides by the number of characters, which favours the longer one where its end follows from its
beginning. Both are reported. `acc` is lm-eval's headline and unbiased where a question's options are of like length.
"""
METRICS: dict[AnswerForm, tuple[str, ...]] = {
    "letter": ("acc",),
    "generated": ("exact_match",),
    "option_text": ("acc", "acc_norm"),
}
"""Letters are of equal length: there is nothing to normalise."""
GROUPS: dict[AnswerForm, str] = {"letter": "mmlu", "generated": "mmlu_generative", "option_text": "mmlu"}


@dataclass(frozen=True)
class Subject:
    """Questions are dicts of `question`, `choices` (4 texts) and `answer` (0-3), as in the `cais/mmlu` data set."""

    name: str
    test: tuple[dict[str, Any], ...]
    dev: tuple[dict[str, Any], ...]
    """The few-shot examples; empty where there are none."""


def read_mmlu(folder: Path) -> list[Subject]:
    """All subjects of a folder in MMLU's published form, sorted by name; DataError where there is no `test/*_test.csv`,
    a file is empty, or a row is not a question (file and line)."""
    files = sorted((folder / "test").glob("*_test.csv"))
    if not files:
        what = "a file" if folder.is_file() else "a folder" if folder.is_dir() else "no such folder"
        raise DataError(
            f"{folder}: {what}, and no test/<subject>_test.csv in it. MMLU's published form is a folder of "
            "test/<subject>_test.csv (and dev/<subject>_dev.csv for the shots): question, A, B, C, D, the answer's "
            "letter, without a header."
        )
    subjects = []
    for file in files:
        name = file.stem.removesuffix("_test")
        dev = folder / "dev" / f"{name}_dev.csv"
        subjects.append(Subject(name=name, test=_read_rows(file), dev=_read_rows(dev) if dev.is_file() else ()))
    return subjects


def task_name(subject: str, *, form: AnswerForm) -> str:
    """As lm-eval has it."""
    return f"mmlu_{subject}_generative" if form == "generated" else f"mmlu_{subject}"


def prompt_messages(subject: Subject, row: Mapping[str, Any], *, form: AnswerForm, num_fewshot: int) -> list[Message]:
    """What lm-eval makes of a question: its lengths are known without lm-eval, whose import takes seconds."""
    shots = [
        message
        for shot in subject.dev[:num_fewshot]
        for message in (_asked(shot, form=form), Message(role="assistant", content=_answer(shot, form=form)))
    ]
    system = [] if form == "option_text" else [Message(role="system", content=_description(subject.name))]
    return [*system, *shots, _asked(row, form=form)]


def task_config(
    subject: Subject, *, form: AnswerForm, num_fewshot: int, version: str, template: Mapping[str, Any]
) -> dict[str, Any]:
    """lm-eval's configuration of one subject; `template` is its own of `mmlu_generative`, for the form `generated`."""
    own = {"task": task_name(subject.name, form=form), "custom_dataset": _dataset_of(subject)}
    described = {"description": _description(subject.name)}
    if form == "generated":
        return {**template, "dataset_path": None, **own, "fewshot_split": None, "num_fewshot": 0, **described}
    asked: dict[str, Any] = {"doc_to_text": "{{question.strip()}}", "doc_to_choice": "choices"}
    if form == "letter":
        options = "\n".join(f"{letter}. {{{{choices[{index}]}}}}" for index, letter in enumerate(LETTERS))
        text = f"{{{{question.strip()}}}}\n{options}\nAnswer:"
        asked = {**described, "doc_to_text": text, "doc_to_choice": list(LETTERS)}
    return {
        **own,
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
        **asked,
    }


def _description(subject: str) -> str:
    return f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"


def _asked(row: Mapping[str, Any], *, form: AnswerForm) -> Message:
    question = row["question"].strip()
    if form == "option_text":
        return Message(role="user", content=question)
    options = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, row["choices"], strict=True))
    return Message(role="user", content=f"{question}\n{options}\nAnswer:")


def _answer(row: Mapping[str, Any], *, form: AnswerForm) -> str:
    return str(row["choices"][row["answer"]]) if form == "option_text" else LETTERS[row["answer"]]


def _dataset_of(subject: Subject) -> Callable[..., dict[str, Any]]:
    """What lm-eval calls in place of `datasets.load_dataset`: rows in memory, nothing cached on disk."""

    def load(**_: object) -> dict[str, Any]:
        from datasets import Dataset

        splits = {"test": subject.test, "dev": subject.dev}
        return {name: Dataset.from_list(list(rows)) for name, rows in splits.items() if rows}

    return load


def _read_rows(path: Path) -> tuple[dict[str, Any], ...]:
    if not path.is_file():
        raise DataError(f"{path}: a folder, not a file.")
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line}: not UTF-8 (byte {error.start} of the file).") from error
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        rows = tuple(_question(row, where=f"{path}, line {reader.line_num}") for row in reader if row)
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: no CSV: {error}.") from error
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
