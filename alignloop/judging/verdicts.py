"""From answers to a verdict: pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from alignloop.judging.base import Answer, Points, Texts, Verdict
from alignloop.records import STRENGTHS, Strength

_SWAPPED: dict[str, Literal["first", "second", "tie"]] = {"first": "second", "second": "first", "tie": "tie"}


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
    given = [str(answer.value) for answer in answers]
    places = [given[0], *(_SWAPPED[value] for value in given[1:])]
    if len(set(places)) > 1:
        return Verdict(item_id, "tie", f"the two orders disagree: {places[0]}, then {places[1]}", texts)
    winner = _SWAPPED[_SWAPPED[places[0]]]
    return Verdict(item_id, winner, answers[0].reason, texts, _mean_strength(answers))


def _mean_strength(answers: Sequence[Answer]) -> Strength | None:
    """None where the prompt asks for no strength, or the answers say `tie`."""
    ranks = [STRENGTHS.index(answer.strength) for answer in answers if answer.strength is not None]
    return STRENGTHS[math.ceil(sum(ranks) / len(ranks))] if ranks else None


def points_of(item_id: str, answers: Sequence[Answer]) -> Points:
    """The points of the one answer."""
    (answer,) = answers
    return Points(item_id, answer.value if isinstance(answer.value, int) else None, answer.reason, answer.texts)


def texts_of(item_id: str, answers: Sequence[Answer]) -> Texts:
    """The texts of the one answer."""
    (answer,) = answers
    return Texts(item_id, answer.value if isinstance(answer.value, tuple) else None, answer.reason, answer.texts)
