"""A judge compares what two models answer to the same held-out prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from alignloop.artifacts import derive_seed
from alignloop.evaluation.measures.figures import Figures
from alignloop.evaluation.measures.winning import LOSS, TIE, WIN, win_rate, without_asking
from alignloop.judging.verdicts import Comparison, Judge, Verdict
from alignloop.progress import Progress
from alignloop.records import MeasuredRow, VerdictRow
from alignloop.stages.measure.answers import key_of

_OUTCOME = {"first": WIN, "second": LOSS, "tie": TIE}


def add_judged(
    figures: Figures,
    ours: Sequence[MeasuredRow],
    theirs: Mapping[int, MeasuredRow],
    *,
    names: Sequence[str],
    judge: Judge,
    progress: Progress,
) -> list[VerdictRow]:
    """`judge_win_rate/<name>`: this model's answers against another's; what cannot be read is left out, its share told.

    Args:
        theirs: by the prompt's key.
        names: what the other model is called in the figures.

    Returns:
        Every verdict asked for.
    """
    pairs = [(row, theirs[key_of(row)]) for row in ours if key_of(row) in theirs]
    if not pairs:
        return []
    known = [without_asking(mine.completion, rival.completion) for mine, rival in pairs]
    asked = [pair for pair, outcome in zip(pairs, known, strict=True) if outcome is None]
    # Which of the two comes first is drawn: a judge that leans to a place, asked in one order, must not decide.
    comparisons = [_comparison(*pair, name=names[0]) for pair in asked]
    verdicts = judge.compare(comparisons)
    rows = [_row(*found, judge=judge.name) for found in zip(asked, comparisons, verdicts, strict=True)]
    judged = [_outcome(mine, verdict) for (mine, _), verdict in zip(asked, verdicts, strict=True)]
    outcomes = [outcome for outcome in [*known, *judged] if outcome is not None]
    unreadable = judged.count(None)
    if judged and unreadable == len(judged):
        progress.say(
            f"  none of the judge's {len(judged)} answers about {' and '.join(names)} can be read, the first: "
            f"{verdicts[0].reason}"
        )
        return rows
    for name in names:
        won = win_rate(outcomes)
        figures.add(f"judge_win_rate/{name}", won.rate)
        figures.values[f"judge_win_rate/{name}_ties"] = won.ties
        figures.values[f"judge_win_rate/{name}_unreadable"] = unreadable / len(pairs)
    return rows


def _is_first(row: MeasuredRow) -> bool:
    return derive_seed(0, "measure", "order", key_of(row)) % 2 == 0


def _comparison(mine: MeasuredRow, rival: MeasuredRow, *, name: str) -> Comparison:
    two = (mine, rival) if _is_first(mine) else (rival, mine)
    return Comparison(f"{mine.id}/{name}", tuple(mine.messages), two[0].completion, two[1].completion)


def _outcome(mine: MeasuredRow, verdict: Verdict) -> float | None:
    """For this model; None where the answer cannot be read."""
    outcome = _OUTCOME.get(verdict.winner)
    return outcome if outcome is None or _is_first(mine) else 1.0 - outcome


def _row(pair: tuple[MeasuredRow, MeasuredRow], asked: Comparison, verdict: Verdict, *, judge: str) -> VerdictRow:
    mine, rival = pair
    two = (mine, rival) if _is_first(mine) else (rival, mine)
    return VerdictRow(
        id=asked.id,
        first=f"{two[0].id}/{two[0].round}",
        second=f"{two[1].id}/{two[1].round}",
        winner=verdict.winner,
        strength=verdict.strength,
        reason=verdict.reason,
        answers=list(verdict.answers),
        judge=judge,
    )
