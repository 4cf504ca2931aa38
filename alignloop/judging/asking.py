"""Questions to a model and their answers, finished ones on disk: what the two kinds of askers have in common.

    Comparison, Appraisal --> Unit of Questions --Asker--> Answers --> Verdict, Points, Texts

An answer that cannot be read is `unreadable`, never a tie and never a number.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from pydantic import ConfigDict, ValidationError

from alignloop.artifacts import disk_errors_named
from alignloop.errors import DataError
from alignloop.records import Message, Row, Strength

FILE = "finished.jsonl"
RETRY_TEMPERATURE = 0.3
"""An unreadable answer is asked for again with another seed and at least this temperature: at 0 it would be the
same again."""


@dataclass(frozen=True)
class Question:
    """What is put to the model once: a system message where the prompt has one, and the user's."""

    messages: tuple[Message, ...]
    seed: int


@dataclass(frozen=True)
class Answer:
    """What came of a question.

    Attributes:
        value: what was read: a completion's place, `tie`, points, or texts; None where nothing could be.
        reason: the model's own, or why nothing could be read.
        texts: what the model wrote, one for each time it was asked.
        strength: how much better the completion is, where the prompt asks that.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    value: Literal["first", "second", "tie"] | int | tuple[str, ...] | None
    reason: str
    texts: tuple[str, ...] = ()
    strength: Strength | None = None


@dataclass(frozen=True)
class Unit:
    """What is finished or not as a whole: one question, or two with the completions swapped.

    `key` stands for all that its answers depend on.
    """

    id: str
    key: str
    questions: tuple[Question, ...]


Finished = tuple[Unit, tuple[Answer, ...]]
Keep = Callable[[Sequence[Finished]], None]


class Asker(Protocol):
    """Puts questions to a model and reads the answers, asking again where one cannot be read."""

    def ask(self, units: Sequence[Unit], *, done: Collection[str], keep: Keep) -> None:
        """Answer all units whose key is not in `done`, handing them to `keep` as they are finished."""


class AskerFailed(Exception):
    """The asker cannot go on; what it handed to `keep` is kept."""


class FinishedRow(Row):
    """A finished unit."""

    key: str
    id: str
    answers: tuple[Answer, ...]


class FinishedFile:
    """The finished units of one stage: lines appended and synced, so that a crash costs at most what was in flight."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        folder.mkdir(parents=True, exist_ok=True)
        self._answers: dict[str, tuple[Answer, ...]] = {}
        self._size = self._take_over() if self.path.is_file() else 0

    @property
    def answers(self) -> Mapping[str, tuple[Answer, ...]]:
        """Key -> answers of all that is finished."""
        return self._answers

    def append(self, finished: Sequence[Finished]) -> None:
        """Add units: on disk before this returns.

        Raises:
            DiskFullError: no space left; what was kept before stays readable.
        """
        rows = [FinishedRow(key=unit.key, id=unit.id, answers=answers) for unit, answers in finished]
        text = "".join(row.model_dump_json() + "\n" for row in rows).encode("utf-8")
        with disk_errors_named(self.path, needed_bytes=len(text)), self.path.open("ab") as file:
            file.truncate(self._size)  # what a failed append or a crash left of a line
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        self._size += len(text)
        self._answers |= {unit.key: answers for unit, answers in finished}

    def _take_over(self) -> int:
        """Read the whole lines; the bytes they take. A line that a crash cut is not one.

        Where no answer at all can be read, the judge, its prompt or its server was not right: all are asked anew.
        """
        whole, newline, _ = self.path.read_bytes().rpartition(b"\n")
        for number, line in enumerate(whole.split(b"\n") if newline else (), start=1):
            try:
                row = FinishedRow.model_validate_json(line)
            except ValidationError:
                raise DataError(
                    f"{self.path}, line {number}: not what a judge wrote there; the file was changed from outside: "
                    "remove it and run again, and everything is judged anew"
                ) from None
            self._answers[row.key] = row.answers
        if not any(answer.value is not None for answers in self._answers.values() for answer in answers):
            self._answers = {}
            return 0
        return len(whole) + len(newline)
