"""What a judge is asked about, how it is asked, and what it makes of it. Torch-free, and pure.

    PairToCompare, Appraisal, PairToEdit --> QuestionUnit --Asker--> JudgeAnswers --> Verdict, Points, JudgeTexts

An answer that cannot be read is `unreadable`, never a tie and never a number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from pydantic import ConfigDict

from alignloop.records import STRENGTHS, Message, Strength, Winner

_SWAPPED: dict[str, Literal["first", "second", "tie"]] = {"first": "second", "second": "first", "tie": "tie"}


@dataclass(frozen=True)
class PairToCompare:
    id: str
    messages: tuple[Message, ...]
    first: str
    second: str


@dataclass(frozen=True)
class PairToEdit:
    """A pair as it was compared, which of the two is to be improved, and what the judge gave as its reason."""

    pair: PairToCompare
    better: Literal["first", "second"]
    criticism: str

    @property
    def completion(self) -> str:
        """What is to be improved."""
        return self.pair.first if self.better == "first" else self.pair.second


@dataclass(frozen=True)
class Appraisal:
    """A dialog to give points to: its completion, or the dialog itself where `completion` is None."""

    id: str
    messages: tuple[Message, ...]
    completion: str | None = None


@dataclass(frozen=True)
class Verdict:
    """A judge's verdict on a pair.

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
class Points:
    """`points` is None where no answer could be read, and `reason` says why."""

    id: str
    points: int | None
    reason: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class JudgeTexts:
    """The texts in the fields of an answer, in order; `texts` is None where no answer could be read."""

    id: str
    texts: tuple[str, ...] | None
    reason: str
    answers: tuple[str, ...]


class Judge(Protocol):
    """Asks a model by a judging prompt. What is finished is kept on disk and not asked again.

    Each of the four answers every item, in order, and wants a prompt of its own kind.

    Raises:
        UserError: the prompt is of another kind.
        EngineError: the engine or the endpoint failed; says how much is finished, and where it is kept.
    """

    @property
    def name(self) -> str:
        """What rows name as their annotator."""

    def compare(self, items: Sequence[PairToCompare]) -> list[Verdict]: ...
    def rate(self, items: Sequence[Appraisal]) -> list[Points]: ...
    def describe(self, items: Sequence[Appraisal]) -> list[JudgeTexts]: ...
    def edit(self, items: Sequence[PairToEdit]) -> list[JudgeTexts]: ...


@dataclass(frozen=True)
class Question:
    """What is put to the model once: a system message where the prompt has one, and the user's."""

    messages: tuple[Message, ...]
    seed: int


@dataclass(frozen=True)
class JudgeAnswer:
    """A question's outcome.

    Attributes:
        value: which completion, `tie`, points, or texts; None where nothing could be read.
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
class QuestionUnit:
    """Finished as a whole: one question, or two with the completions swapped; `key` has all that answers depend on."""

    id: str
    key: str
    questions: tuple[Question, ...]


Finished = tuple[QuestionUnit, tuple[JudgeAnswer, ...]]
Keep = Callable[[Sequence[Finished]], None]


class Asker(Protocol):
    """Puts questions to a model and reads the answers, asking again where one cannot be read."""

    def ask(self, units: Sequence[QuestionUnit], *, done: Collection[str], keep: Keep) -> None:
        """Answer all units whose key is not in `done`; `keep` gets them as they are finished."""


class AskerFailed(Exception):
    """The asker cannot go on; what `keep` got is kept."""


def verdict_of(item_id: str, answers: Sequence[JudgeAnswer]) -> Verdict:
    """The verdict of one answer, or of two, the second given with the completions swapped.

    Two that can be read and do not agree, tie against a winner included, are a tie: the judge went by the order. One
    that cannot be read leaves the pair unreadable. Where they agree, the strength is the mean of the two, the weaker of
    two between which it lies: what a leaning to one place adds in one order it takes away in the other.
    """
    texts = tuple(text for answer in answers for text in answer.texts)
    unreadable = next((answer for answer in answers if answer.value is None), None)
    if unreadable is not None:
        return Verdict(item_id, "unreadable", unreadable.reason, texts)
    first, *swapped = [str(answer.value) for answer in answers]
    winners = [first, *(_SWAPPED[value] for value in swapped)]
    if len(set(winners)) > 1:
        return Verdict(item_id, "tie", f"the two orders disagree: {winners[0]}, then {winners[1]}", texts)
    winner = _SWAPPED[_SWAPPED[first]]
    ranks = [STRENGTHS.index(answer.strength) for answer in answers if answer.strength is not None]
    strength = STRENGTHS[math.ceil(sum(ranks) / len(ranks))] if ranks else None
    return Verdict(item_id, winner, answers[0].reason, texts, strength)
