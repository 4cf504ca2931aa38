"""What is known of a run before any model is loaded, and what the stages' checks find wrong with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from alignloop.config.recipe import Recipe
from alignloop.errors import RecipeError, UserError
from alignloop.records import DroppedRow, PreferenceRow, PromptRow, RejectedRow, SftRow
from alignloop.run_dir.reader import all_published

if TYPE_CHECKING:
    from alignloop.chat.format import ChatFormat


class ProblemsError(UserError):
    """All that the checks found wrong, in one message: `problems` has a text each, with what to do."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        plural = "problem" if len(self.problems) == 1 else "problems"
        lines = "\n".join("  - " + problem.replace("\n", "\n    ") for problem in self.problems)
        super().__init__(f"{len(self.problems)} {plural} found before anything was trained\n{lines}")


@dataclass
class Findings:
    """What the checks found.

    Attributes:
        problems: each stops the run; a sentence with what to do.
        notes: worth knowing, stop nothing.
        left_out: notes on rows that hold a benchmark's question, which the stage that leaves them out prints too.
    """

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """A `UserError` inside becomes a problem; what follows the block goes on."""
        try:
            yield
        except (RecipeError, ProblemsError) as error:
            self.problems += error.problems
        except UserError as error:
            self.problems.append(str(error))

    def raise_problems(self) -> None:
        if self.problems:
            raise ProblemsError(self.problems)


@dataclass(frozen=True)
class Rows:
    """What the recipe's files hold.

    Attributes:
        train, heldout: preferences on either side of the split.
        prompts: to sample for; those of the held-out rows left out.
        rejected: rows that cannot be read, with file, line, field and reason.
        dropped: preferences that hold a question of the local benchmarks.
        demonstrations: entry of `sft.data` -> its rows, without those of benchmarks' questions and held-out prompts.
        forms: file -> the form its rows have.
    """

    train: list[PreferenceRow] = field(default_factory=list)
    heldout: list[PreferenceRow] = field(default_factory=list)
    prompts: list[PromptRow] = field(default_factory=list)
    rejected: list[RejectedRow] = field(default_factory=list)
    forms: dict[str, str] = field(default_factory=dict)
    dropped: list[DroppedRow] = field(default_factory=list)
    demonstrations: dict[str, list[SftRow]] = field(default_factory=dict)


@dataclass(frozen=True)
class BaseFacts:
    """What is known of the base.

    Attributes:
        num_parameters: None where it cannot be told without loading.
        max_positions: longest sequence of the model, in tokens; None where its config does not say.
        had_template: whether it brings its own chat template, or the tokens of the recipe's; None for a hub id that is
            not on this machine.
        chat: its format, with the recipe's template and kwargs; None where it cannot be had.
        folder: its config.json and weights (an adapter's base); None where they cannot be used, or are not on this
            machine.
    """

    num_parameters: int | None = None
    max_positions: int | None = None
    had_template: bool | None = None
    chat: ChatFormat | None = None
    folder: Path | None = None


@dataclass(frozen=True)
class Facts:
    """What a stage's check looks at, and where it puts what it finds. `recipe` has files instead of patterns; `run_dir`
    is None where there is no run yet."""

    recipe: Recipe
    findings: Findings
    rows: Rows = field(default_factory=Rows)
    base: BaseFacts = field(default_factory=BaseFacts)
    run_dir: Path | None = None

    def is_published(self, stage: str, *, first_round: int = 1) -> bool:
        """Whether a stage is published in all rounds from `first_round` on: what it asks is not asked again."""
        return all_published(self.run_dir, range(first_round, self.recipe.rounds + 1), stage=stage)
