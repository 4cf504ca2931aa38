"""Problems and notes, collected while looking on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from alignloop.errors import RecipeError, UserError


class PreflightError(UserError):
    """Everything that preflight found wrong, in one message.

    Args:
        problems: one text each, with what to do.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        plural = "problem" if len(self.problems) == 1 else "problems"
        lines = "\n".join("  - " + problem.replace("\n", "\n    ") for problem in self.problems)
        super().__init__(f"{len(self.problems)} {plural} found before anything was trained\n{lines}")


@dataclass
class Findings:
    """What preflight found.

    Attributes:
        problems: each stops the run; a sentence with what to do.
        notes: worth knowing, stop nothing.
        left_out: the same of rows that hold a benchmark's question, which the stage that leaves them out says too.
    """

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """A `UserError` inside becomes a problem; what follows the block goes on."""
        try:
            yield
        except (RecipeError, PreflightError) as error:
            self.problems += error.problems
        except UserError as error:
            self.problems.append(str(error))

    def raise_problems(self) -> None:
        """Raise all problems as one `PreflightError`, if there are any."""
        if self.problems:
            raise PreflightError(self.problems)
