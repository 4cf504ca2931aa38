"""The recipe's judge, put to pruning's questions: one prompt file a question, finished answers on disk.

items --appraisals--> judge of a prompt --> points | texts
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from alignloop.config.engine import JudgeConfig
from alignloop.engines.base import Engine
from alignloop.errors import UserError
from alignloop.judging.base import Appraisal, Judge, Points, Texts
from alignloop.judging.judge import open_judge
from alignloop.judging.prompt_file import PointsPrompt, TextsPrompt, load_prompt
from alignloop.progress import Progress, QuietProgress
from alignloop.pruning.items import Item

Answered = TypeVar("Answered", bound=Points | Texts)


@dataclass(frozen=True)
class PruneJudge:
    """Asks `config`'s model by any judging prompt.

    Attributes:
        dir: gets a folder a prompt, in which finished answers are kept and taken over from.
        max_model_len: of the engine; see `open_judge`.
    """

    config: JudgeConfig
    engine: Engine
    dir: Path
    seed: int
    max_model_len: int | None = None
    progress: Progress = field(default_factory=QuietProgress)

    def points(self, prompt: str, items: Sequence[Item]) -> list[Points]:
        """Points per item.

        Raises:
            UserError: the prompt gives none, or not one answer can be read.
        """
        loaded = load_prompt(prompt)
        wants = isinstance(loaded, PointsPrompt) and loaded.wants_completion
        judge = self._judge(prompt)
        return readable(judge.rate(appraisals(items, with_completion=wants)), judge=judge.name, prompt=prompt)

    def texts(self, prompt: str, items: Sequence[Item], *, labels: Sequence[str] = ()) -> list[Texts]:
        """Texts per item; errors as for `points`."""
        loaded = load_prompt(prompt)
        wants = isinstance(loaded, TextsPrompt) and loaded.wants_completion
        judge = self._judge(prompt, labels=labels)
        return readable(judge.describe(appraisals(items, with_completion=wants)), judge=judge.name, prompt=prompt)

    def _judge(self, prompt: str, *, labels: Sequence[str] = ()) -> Judge:
        return open_judge(
            self.config.model_copy(update={"prompt": prompt}),
            self.engine,
            dir=self.dir / Path(prompt).stem,
            seed=self.seed,
            max_model_len=self.max_model_len,
            progress=self.progress,
            labels=labels,
        )


def appraisals(items: Sequence[Item], *, with_completion: bool) -> list[Appraisal]:
    """What the judge sees of each: the dialog, its completion apart where the prompt grades it.

    Without, the completion is not shown: a topic, a difficulty and intentions are the prompt's.
    """
    return [Appraisal(item.id, item.messages, item.completion if with_completion else None) for item in items]


def readable(given: list[Answered], *, judge: str, prompt: str) -> list[Answered]:
    """The answers, where there is one among them.

    Raises:
        UserError: not one can be read.
    """
    found = [one.points if isinstance(one, Points) else one.texts for one in given]
    if given and all(answer is None for answer in found):
        raise UserError(
            f"judge {judge}, prompt {prompt}: none of its {len(given)} answers can be read. The first: "
            f"{given[0].reason}\nTake another judge.model, prompt or judge.max_tokens. (On vLLM answers are held to "
            "the prompt's schema; elsewhere the model must write such JSON by itself.)"
        )
    return given
