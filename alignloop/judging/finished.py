"""What a judge has finished, on disk: lines appended and synced, so that a crash costs at most what was in flight."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from alignloop.artifacts import disk_errors_named
from alignloop.errors import DataError
from alignloop.judging.base import Answer, Finished
from alignloop.records import Row, Strength

FILE = "finished.jsonl"


class AnswerRow(Row):
    """An `Answer` on disk."""

    value: Literal["first", "second", "tie"] | int | tuple[str, ...] | None
    reason: str
    texts: list[str]
    strength: Strength | None = None


class FinishedRow(Row):
    """A finished unit: its key stands for all that its answers depend on."""

    key: str
    id: str
    answers: list[AnswerRow]


class FinishedFile:
    """The finished units of one stage, by key."""

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
        rows = [
            FinishedRow(
                key=unit.key,
                id=unit.id,
                answers=[
                    AnswerRow(value=a.value, reason=a.reason, texts=list(a.texts), strength=a.strength) for a in answers
                ],
            )
            for unit, answers in finished
        ]
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
            self._answers[row.key] = tuple(Answer(a.value, a.reason, tuple(a.texts), a.strength) for a in row.answers)
        if not any(answer.value is not None for answers in self._answers.values() for answer in answers):
            self._answers = {}
            return 0
        return len(whole) + len(newline)
