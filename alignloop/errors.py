"""One small exception tree. Every message says what, which value, where and what to do.

A `UserError` is something the person at the terminal can put right: the command line prints it
without a traceback and exits with 2. Anything else is a defect of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from alignloop.records import RejectedRow


class AlignloopError(Exception):
    """Base of everything alignloop raises on purpose."""


class UserError(AlignloopError):
    """Something outside the code is wrong and the user can fix it."""


class RecipeError(UserError):
    """A recipe is wrong. Holds *all* problems found, one line each: `field: what is wrong (value) - what to do`."""

    def __init__(self, problems: Sequence[str], *, where: str) -> None:
        self.problems = tuple(problems)
        lines = "\n".join(f"  - {problem}" for problem in self.problems)
        plural = "problem" if len(self.problems) == 1 else "problems"
        super().__init__(f"{where}: {len(self.problems)} {plural} in the recipe\n{lines}")


class DataError(UserError):
    """An input file or row is wrong. The message names file, line, field and what to do; `rejected` has the unreadable
    rows."""

    def __init__(self, message: str, *, rejected: Sequence[RejectedRow] = ()) -> None:
        super().__init__(message)
        self.rejected = tuple(rejected)


class ModelError(UserError):
    """A path or id holds no usable model or tokenizer, or a template cannot be rendered."""


class RunDirError(UserError):
    """A run directory is locked, belongs to another recipe or was written by a newer version."""


class DriftError(RunDirError):
    """A published stage no longer matches the recipe or its inputs; names the changed fields."""


class EngineError(AlignloopError):
    """The engine died too often, disagreed with a plain forward pass, or cannot start."""


class TrainingError(AlignloopError):
    """Training cannot go on: a non-finite loss, no trained token, DPO not starting where it must."""


class DiskFullError(UserError):
    def __init__(
        self,
        path: Path,
        *,
        needed_bytes: int | None = None,
        free_bytes: int | None = None,
        reason: str = "the disk is full",
    ):
        needed = "" if needed_bytes is None else f"; about {needed_bytes / 1e6:,.0f} MB are needed"
        free = "" if free_bytes is None else f", {free_bytes / 1e6:,.0f} MB are free"
        super().__init__(
            f"{path}: {reason}{needed}{free}. Free some space (or choose another --run-dir) and run the "
            "same command again: nothing half-written was published."
        )
        self.path = path
        self.reason = reason


class PeopleNeeded(AlignloopError):
    """The run waits for people: nothing is wrong, and the same command goes on when they are done (exit code 3).

    Args:
        questions: the pairs to compare, a line each.
        num_asked, num_answered: pairs, and those of them that have an answer.
        num_needed: answers without which it does not go on.
    """

    def __init__(
        self, message: str, *, questions: Path, num_asked: int, num_answered: int = 0, num_needed: int | None = None
    ) -> None:
        super().__init__(message)
        self.questions = questions
        self.num_asked = num_asked
        self.num_answered = num_answered
        self.num_needed = num_asked if num_needed is None else num_needed


class Interrupted(AlignloopError):
    """The user asked to stop (Ctrl-C). Everything published so far stays."""


def did_you_mean(name: str, known: Iterable[str], *, most: int = 1, cutoff: float = 0.6, quote: str = "") -> str:
    """`did you mean a or b?` of the nearest names; empty where none is like `name` by at least `cutoff` (0 to 1,
    `difflib`)."""
    near = difflib.get_close_matches(name, list(known), n=most, cutoff=cutoff)
    return f"did you mean {' or '.join(f'{quote}{name}{quote}' for name in near)}?" if near else ""
