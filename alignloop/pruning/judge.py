"""The recipe's judge, asked pruning's questions: one prompt file a question, finished answers on disk.

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
from alignloop.judging.judge import open_judge
from alignloop.judging.prompt_file import PointsPrompt, TextsPrompt, load_prompt
from alignloop.judging.verdicts import Appraisal, Judge, JudgeTexts, Points
from alignloop.progress import Progress, QuietProgress
from alignloop.pruning.items import Item

Answer = TypeVar("Answer", bound=Points | JudgeTexts)


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
        judge = self._judge(prompt)
        return _some_readable(judge.rate(_appraisals(prompt, items)), judge=judge.name, prompt=prompt)

    def texts(self, prompt: str, items: Sequence[Item], *, labels: Sequence[str] = ()) -> list[JudgeTexts]:
        """Texts per item; errors as for `points`."""
        judge = self._judge(prompt, labels=labels)
        return _some_readable(judge.describe(_appraisals(prompt, items)), judge=judge.name, prompt=prompt)

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


def prompt_name(prompt: str) -> str:
    """A prompt's name in the rows: that of a file without its path."""
    return prompt.rpartition("/")[2].removesuffix(".yaml")


def _appraisals(prompt: str, items: Sequence[Item]) -> list[Appraisal]:
    """What the judge sees of each: the dialog, its completion apart where the prompt grades it.

    Without, the completion is not shown: a topic, a difficulty and intentions are the prompt's.
    """
    loaded = load_prompt(prompt)
    graded = isinstance(loaded, PointsPrompt | TextsPrompt) and loaded.wants_completion
    return [Appraisal(item.id, item.messages, item.completion if graded else None) for item in items]


def _some_readable(answers: list[Answer], *, judge: str, prompt: str) -> list[Answer]:
    found = [one.points if isinstance(one, Points) else one.texts for one in answers]
    if answers and all(answer is None for answer in found):
        raise UserError(
            f"judge {judge}, prompt {prompt}: none of its {len(answers)} answers can be read. The first: "
            f"{answers[0].reason}\nTake another judge.model, prompt or judge.max_tokens. (On vLLM answers are held to "
            "the prompt's schema; elsewhere the model must write such JSON by itself.)"
        )
    return answers
