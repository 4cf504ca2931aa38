"""What a judge is asked about, and what it makes of it. Torch-free, and pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from alignloop.judging.asking import Answer
from alignloop.records import STRENGTHS, Message, Strength, Winner

_SWAPPED: dict[str, Literal["first", "second", "tie"]] = {"first": "second", "second": "first", "tie": "tie"}


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
    """Asks a model by a judging prompt. What is finished is kept on disk and not asked again.

    Each of the three answers every item, in order, and wants a prompt of its own kind.

    Raises:
        UserError: the prompt is of another kind.
        EngineError: the engine or the endpoint failed; says how much is finished, and where it is kept.
    """

    @property
    def name(self) -> str:
        """What rows name as their annotator."""

    def compare(self, items: Sequence[Comparison]) -> list[Verdict]: ...
    def rate(self, items: Sequence[Appraisal]) -> list[Points]: ...
    def describe(self, items: Sequence[Appraisal]) -> list[Texts]: ...


def verdict_of(item_id: str, answers: Sequence[Answer]) -> Verdict:
    """The verdict of one answer, or of two, the second given with the completions swapped.

    Two that can be read and do not agree, tie against a winner included, are a tie: the judge went by the order. One
    that cannot be read leaves the comparison unreadable. Where they agree, the strength is the mean of the two, the
    weaker of two between which it lies: what a leaning to one place adds in one order it takes away in the other.
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
    return Verdict(item_id, winner, answers[0].reason, texts, _mean_strength(answers))


def _mean_strength(answers: Sequence[Answer]) -> Strength | None:
    """None where the prompt asks for no strength, or the answers say `tie`."""
    ranks = [STRENGTHS.index(answer.strength) for answer in answers if answer.strength is not None]
    return STRENGTHS[math.ceil(sum(ranks) / len(ranks))] if ranks else None
