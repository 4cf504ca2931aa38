"""A round's new annotations by a judge: pairs of candidates in, preferences and a row of every verdict out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from alignloop.chat.reasoning import answer_of
from alignloop.errors import UserError
from alignloop.judging.edits import Edit, edit_counts, edited_completion, edits_of
from alignloop.judging.verdicts import Judge, PairToCompare, Verdict
from alignloop.records import (
    CandidateRow,
    ComparedBy,
    PreferenceRow,
    PromptRow,
    Source,
    Strength,
    VerdictRow,
    Winner,
    annotation_id,
    verdict_id,
)

Pair = tuple[PromptRow, CandidateRow, CandidateRow]


@dataclass(frozen=True)
class Annotations:
    """Of the counts, `judged` == `annotated` + `ties` + `unreadable`; `metrics` are shares of the judged pairs. Where
    edits were asked for, `annotated` == `edited` + those of `edits_` and a fault."""

    rows: list[PreferenceRow]
    verdicts: list[VerdictRow]
    counts: dict[str, int]
    metrics: dict[str, float]


def annotate(pairs: Sequence[Pair], *, judge: Judge, both_orders: bool, editor: Judge | None = None) -> Annotations:
    """Have a judge compare pairs of completions, and the `editor` improve what it chose; ties and unreadable answers
    become no preference, and an edit that improves nothing leaves its preference without one.

    It sees the answers alone, without the reasoning before them. The strength is the judge's own. Where its prompt asks
    for none, it is `better` if the judge was asked in both orders, for then it answered the same twice, and None if it
    was asked once; both train.

    Raises:
        UserError: not one answer can be read.
        EngineError: the engine or the endpoint failed; what is finished is kept.
    """
    compared = [
        PairToCompare(
            verdict_id(first.id, second.id),
            tuple(prompt.messages),
            answer_of(first.completion),
            answer_of(second.completion),
        )
        for prompt, first, second in pairs
    ]
    verdicts = judge.compare(compared)
    judged = list(zip(pairs, verdicts, strict=True))
    won = Counter(verdict.winner for verdict in verdicts)
    if verdicts and won["unreadable"] == len(verdicts):
        raise UserError(
            f"judge {judge.name}: none of its {len(verdicts)} answers can be read. The first: {verdicts[0].reason}\n"
            "Take another judge.model, judge.prompt or judge.max_tokens. (On vLLM answers are held to the prompt's "
            "schema; elsewhere the model must write such JSON by itself.)"
        )
    edits = {} if editor is None else edits_of(compared, {each.id: each for each in verdicts}, editor=editor)
    unsaid: Strength | None = "better" if both_orders else None
    rows = [
        _with_edit(
            preference(
                *best_first(pair, verdict.winner),
                strength=verdict.strength or unsaid,
                annotator=judge.name,
                compared_by="judge",
            ),
            edits.get(verdict.id),
        )
        for pair, verdict in judged
        if verdict.winner in ("first", "second")
    ]
    counts = {
        "annotated": len(rows),
        "judged": len(verdicts),
        "ties": won["tie"],
        "unreadable": won["unreadable"],
    }
    shares = {f"{name}_share": counts[name] / len(verdicts) for name in ("ties", "unreadable")} if verdicts else {}
    if editor is not None:
        counts |= edit_counts(edits)
    verdict_rows = [_verdict_row(pair, verdict, edits.get(verdict.id), judge=judge.name) for pair, verdict in judged]
    return Annotations(rows, verdict_rows, counts, shares)


def _with_edit(row: PreferenceRow, edit: Edit | None) -> PreferenceRow:
    """The preference with its edit, which is another text than the one that has a reward."""
    text = None if edit is None else edited_completion(row.chosen, edit.text)
    return row if text is None else row.model_copy(update={"edited": text, "chosen_reward": None})


def _verdict_row(pair: Pair, verdict: Verdict, edit: Edit | None, *, judge: str) -> VerdictRow:
    _, first, second = pair
    return VerdictRow(
        id=verdict.id,
        first=first.id,
        second=second.id,
        winner=verdict.winner,
        strength=verdict.strength,
        reason=verdict.reason,
        answers=list(verdict.answers),
        judge=judge,
        edit_dropped=None if edit is None or edit.fault is None else f"{edit.fault}: {edit.reason}",
        edit_answers=[] if edit is None else list(edit.answers),
    )


def best_first(pair: Pair, winner: Winner) -> Pair:
    prompt, first, second = pair
    return pair if winner == "first" else (prompt, second, first)


def preference(
    prompt: PromptRow,
    chosen: CandidateRow,
    rejected: CandidateRow,
    *,
    strength: Strength | None,
    annotator: str,
    compared_by: ComparedBy,
) -> PreferenceRow:
    """The row of an annotator's choice, of whatever kind, between two of a round's candidates."""
    return PreferenceRow(
        id=annotation_id(chosen.id, rejected.id),
        messages=prompt.messages,
        chosen=chosen.completion,
        rejected=rejected.completion,
        strength=strength,
        source=Source.of_round(chosen.round),
        annotator=annotator,
        compared_by=compared_by,
        chosen_ids=chosen.completion_ids or None,
        chosen_finish_reason=chosen.finish_reason,
        rejected_ids=rejected.completion_ids or None,
        rejected_finish_reason=rejected.finish_reason,
        chosen_reward=chosen.reward if chosen.total_reward is None else chosen.total_reward,
        meta=dict(prompt.meta),
    )
