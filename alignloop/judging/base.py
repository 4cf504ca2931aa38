"""What a judge takes and gives. Torch-free.

    Comparison --compare--> Verdict           Appraisal --rate--> Points, --describe--> Texts
        |                      ^                  |                 ^
        +--> Unit of Questions +-- Answers <------+-----------------+
                  |                 ^
                  +----- Asker -----+     (the run's engine, or an endpoint)

An answer that cannot be read is `unreadable`, never a tie and never a number.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from alignloop.records import Message, Strength, Winner


@dataclass(frozen=True)
class Comparison:
    """Two completions of one prompt; `id` names the pair."""

    id: str
    messages: tuple[Message, ...]
    first: str
    second: str


@dataclass(frozen=True)
class Verdict:
    """What a judge made of a comparison.

    Attributes:
        reason: the judge's own words, or why there is no winner.
        answers: every text the judge wrote about it, in the order asked; a retry's after what it repeats.
        strength: how much better the winner is; None where its prompt does not ask that.
    """

    id: str
    winner: Winner
    reason: str
    answers: tuple[str, ...]
    strength: Strength | None = None


@dataclass(frozen=True)
class Appraisal:
    """A dialog to give points to: its completion, or the dialog itself where `completion` is None."""

    id: str
    messages: tuple[Message, ...]
    completion: str | None = None


@dataclass(frozen=True)
class Points:
    """What a judge gave; `points` is None where no answer could be read, and `reason` says why."""

    id: str
    points: int | None
    reason: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Texts:
    """What a judge wrote in the fields of its answer, in order; `texts` is None where no answer could be read."""

    id: str
    texts: tuple[str, ...] | None
    reason: str
    answers: tuple[str, ...]


class Judge(Protocol):
    """Asks a model by a judging prompt. What is finished is kept on disk and not asked again."""

    @property
    def name(self) -> str:
        """What rows name as their annotator."""

    def compare(self, items: Sequence[Comparison]) -> list[Verdict]:
        """A verdict per comparison, in order.

        Raises:
            UserError: the prompt gives points.
            EngineError: the engine or the endpoint failed; says how much is finished, and where it is kept.
        """

    def rate(self, items: Sequence[Appraisal]) -> list[Points]:
        """Points per item, in order; errors as for `compare`."""

    def describe(self, items: Sequence[Appraisal]) -> list[Texts]:
        """Texts per item, in order: a topic, a list of intentions; errors as for `compare`."""


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


RETRY_TEMPERATURE = 0.3
"""An unreadable answer is asked for again with another seed and at least this temperature: at 0 it would be the
same again."""
