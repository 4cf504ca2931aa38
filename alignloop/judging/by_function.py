"""A round's new annotations by a reward function: of two candidates the one of the higher value is preferred.

pairs --function, each candidate by itself--> two values --gap--> preference and its strength; no gap: a tie, no row
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from alignloop.chat.reasoning import answer_of
from alignloop.judging.annotate import Annotations, Pair, preference
from alignloop.records import STRENGTHS, CandidateRow, ComparedBy, PreferenceRow, Strength
from alignloop.sampling.candidate_values import function_values

STRENGTH_GAPS = (0.75, 0.5, 0.25)
"""The quarters of values from 0 to 1."""
_LEVEL = 1e-9
"""Values this near are equal, and a gap this near a border reaches it: sums of shares are not exact."""


@dataclass(frozen=True)
class Slips:
    """Shares of comparisons that come out as people's do, in place of a function's; none in what a verifier says.

    Attributes:
        turned: the wrong way round.
        understated: their strength said one step too low.
        taste: of ties, those told apart all the same: `marginally_better`, either way.
    """

    turned: float = 0.0
    understated: float = 0.0
    taste: float = 0.0


@dataclass(frozen=True)
class FunctionAnnotator:
    """A reward function that annotates.

    Attributes:
        function: `module:function`.
        name: what stands in the preferences' `annotator`; None: the function.
        strength_gaps: the least gaps of the first three strengths, widest first.
    """

    function: str
    name: str | None = None
    compared_by: ComparedBy = "function"
    strength_gaps: tuple[float, float, float] = STRENGTH_GAPS
    slips: Slips = Slips()


def annotate(pairs: Sequence[Pair], *, by: FunctionAnnotator, seed: int) -> Annotations:
    """Compare pairs of completions by the function's values; ties, and pairs of which it does not know both, give none.

    Two answers that are the same are a tie. Nothing is drawn but slips, by `seed` and the pair.

    Raises:
        UserError: as `function_values`.
    """
    asked = [_asked(number, pair) for number, pair in enumerate(pairs)]
    values = function_values(by.function, asked)
    known = [(pair, own) for pair, own in zip(pairs, asked, strict=True) if all(row.id in values for row in own)]
    compared = (
        _compared(pair, values[first.id] - values[second.id], by=by, seed=seed) for pair, (first, second) in known
    )
    rows = [row for row in compared if row is not None]
    counts = {"annotated": len(rows), "ties": len(known) - len(rows)}
    if len(known) < len(pairs):
        counts["inapplicable"] = len(pairs) - len(known)
    return Annotations(rows, [], counts, {})


def strength_of(gap: float, *, least: Sequence[float]) -> Strength | None:
    """The first strength whose least gap is reached, `marginally_better` where none is; None without a gap."""
    if gap < _LEVEL:
        return None
    return STRENGTHS[sum(gap < border - _LEVEL for border in least)]


def _asked(number: int, pair: Pair) -> tuple[CandidateRow, CandidateRow]:
    """The candidates with the dialog and the columns of the prompt that they are compared on, and ids of their own:
    those of two models' answers to one prompt may be the same."""
    prompt, *rows = pair
    own = {"messages": prompt.messages, "meta": prompt.meta}
    first, second = (
        row.model_copy(update={**own, "id": f"{row.id} ({place} of pair {number})"})
        for place, row in zip(("first", "second"), rows, strict=True)
    )
    return first, second


def _compared(pair: Pair, gap: float, *, by: FunctionAnnotator, seed: int) -> PreferenceRow | None:
    """`gap`: the first one's value less the second's."""
    prompt, first, second = pair
    if answer_of(first.completion).strip() == answer_of(second.completion).strip():
        return None
    strength, first_wins = strength_of(abs(gap), least=by.strength_gaps), gap > 0
    draw = random.Random(f"{seed}/{first.id}/{second.id}")
    if strength is None:
        if draw.random() >= by.slips.taste:
            return None
        strength, first_wins = STRENGTHS[-1], draw.random() < 0.5
    else:
        first_wins ^= draw.random() < by.slips.turned
        if draw.random() < by.slips.understated:
            strength = STRENGTHS[min(STRENGTHS.index(strength) + 1, len(STRENGTHS) - 1)]
    chosen, rejected = (first, second) if first_wins else (second, first)
    annotator = by.name or by.function
    return preference(prompt, chosen, rejected, strength=strength, annotator=annotator, compared_by=by.compared_by)
