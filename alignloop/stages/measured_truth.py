"""How many answers are right, where a truth is known (`measure.truth`): of what a round picks among, and what trains.

scored candidates --truth--> right or wrong --by reward--> a random one, the pick, the oracle, pairs of right and wrong
preferences, SFT rows, DPO's pairs --truth--> shares that are right

The truth is asked here, after all training of the round, and nowhere else: nothing that trains ever sees it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

from alignloop.chat.reasoning import has_answer
from alignloop.data.jsonl import load_jsonl
from alignloop.data.split import prompt_key
from alignloop.errors import UserError
from alignloop.evaluation.measures import Figures, is_right
from alignloop.evaluation.standard_error import clustered, mean
from alignloop.records import CandidateRow, Message, PairRow, PreferenceRow, SftRow
from alignloop.sampling.best_of_k import eligible, pick_best
from alignloop.sampling.candidate_values import function_values
from alignloop.sampling.reward_functions import LoadedFunction, load, require_columns
from alignloop.stages.facts import Facts
from alignloop.stages.select import reward_of

if TYPE_CHECKING:
    from alignloop.stages.measure import RoundRows

CHECKERS = "checkers"
RIGHT = 1.0
"""The least value of an answer that is right: it meets all demands."""
_FUNCTIONS = {CHECKERS: "alignloop.quickstart.annotator:demands_met"}
_BATCH = 1024


class JudgedCandidate(NamedTuple):
    """`truncated`, `empty` and `failed` (gates) as for `pick_best`."""

    reward: float
    is_right: bool
    truncated: bool = False
    empty: bool = False
    failed: int = 0

    @property
    def order(self) -> tuple[int, float]:
        """Higher is better: by gates, then by reward."""
        return -self.failed, self.reward


def load_truth(truth: str) -> LoadedFunction:
    """Raises UserError where the function cannot be loaded."""
    try:
        return load(_FUNCTIONS.get(truth, truth))
    except UserError as error:
        raise UserError(f"measure.truth: {error}") from error


def check_truth(truth: str, facts: Facts) -> None:
    """Raises UserError where the function wants columns that the prompts do not have."""
    prompts = facts.rows.prompts
    columns = sorted({key for prompt in prompts for key in prompt.meta})
    if truth == CHECKERS and prompts and not {"instruction_id_list", "answer"}.intersection(columns):
        facts.findings.notes.append(
            "measure.truth: checkers judge prompts that say how (instruction_id_list or answer), and none of the "
            f"{len(prompts):,} does: nothing is measured by them"
        )
    try:
        require_columns(_FUNCTIONS.get(truth, truth), [prompt.meta for prompt in prompts])
    except UserError as error:
        raise UserError(f"measure.truth: {error}") from error


def add_truth(figures: Figures, rows: RoundRows, *, truth: str) -> None:
    """Adds `truth/...` (docs/measures.md), of what the truth says something about."""
    if rows.scored is not None:
        add_picks(figures, _judged(load_jsonl(rows.scored.path, CandidateRow), truth=truth))
    values, prompts = defaultdict[str, list[float]](list), defaultdict[str, list[int]](list)
    for name, row, right in _verdicts(_that_train(rows), truth=truth):
        if right is not None:
            values[name].append(float(right))
            prompts[name].append(prompt_key(row.messages, seed=0))
    for name, found in values.items():
        figures.add(f"truth/{name}", clustered(found, clusters=prompts[name]))


def add_picks(figures: Figures, prompts: Sequence[Sequence[JudgedCandidate]]) -> None:
    """Share of right answers among those that the best is picked from: of a random one, of the pick and of the best
    there is. And how often gates and reward put a right one above a wrong one of the same prompt."""
    if not prompts:
        return
    random, picked, oracle, ordered = list[float](), list[float](), list[float](), list[float]()
    for candidates in prompts:
        ends = {name: [getattr(one, name) for one in candidates] for name in ("truncated", "empty", "failed")}
        among = [candidates[k] for k in eligible(**ends)]
        right = [one for one in among if one.is_right]
        wrong = [one for one in among if not one.is_right]
        random.append(len(right) / len(among))
        picked.append(float(candidates[pick_best([one.reward for one in candidates], **ends)].is_right))
        oracle.append(float(bool(right)))
        if right and wrong:
            ordered.append(fmean(_in_order(good, bad) for good in right for bad in wrong))
    figures.add("truth/random", mean(random))
    figures.add("truth/pick", mean(picked))
    figures.add("truth/oracle", mean(oracle))
    figures.add("truth/pick_over_random", mean([pick - one for pick, one in zip(picked, random, strict=True)]))
    if ordered:
        figures.add("truth/pair_accuracy", mean(ordered))
    figures.details["truth/prompts"] = float(len(prompts))


def _in_order(right: JudgedCandidate, wrong: JudgedCandidate) -> float:
    """1 where the right one is above the wrong one, 0.5 where they are level."""
    if right.failed == wrong.failed:
        return is_right(right.reward - wrong.reward)
    return float(right.order > wrong.order)


def _judged(rows: Iterable[CandidateRow], *, truth: str) -> list[list[JudgedCandidate]]:
    """The candidates of each prompt; prompts that the truth says nothing about, or not of all candidates, left out."""
    found, unknown = dict[str, list[JudgedCandidate]](), set[str]()
    for prompt, row, right in _verdicts(((row.prompt_id, row) for row in rows), truth=truth):
        if right is None:
            unknown.add(prompt)
            continue
        is_cut, is_empty = row.finish_reason == "length", not has_answer(row.completion)
        one = JudgedCandidate(reward_of(row), right, is_cut, is_empty, len(row.failed_gates))
        found.setdefault(prompt, []).append(one)
    return [candidates for prompt, candidates in found.items() if prompt not in unknown]


def _verdicts(
    named: Iterable[tuple[str, CandidateRow]], *, truth: str
) -> Iterator[tuple[str, CandidateRow, bool | None]]:
    """Each row, its ids unique, with whether it is right; None where the truth does not apply, or asks for columns that
    the row does not have."""
    named = iter(named)
    while batch := list(islice(named, _BATCH)):
        values = _values(truth, [row for _, row in batch])
        for name, row in batch:
            value = values.get(row.id)
            yield name, row, None if value is None else value >= RIGHT


def _values(truth: str, rows: list[CandidateRow]) -> dict[str, float]:
    try:
        return function_values(_FUNCTIONS.get(truth, truth), [rows])
    except UserError as error:
        raise UserError(f"measure.truth: {error}") from error


def _that_train(rows: RoundRows) -> Iterator[tuple[str, CandidateRow]]:
    """Every text of the round's rows, by the name of the figure that it counts for."""
    if rows.preferences is not None:
        for preference in load_jsonl(rows.preferences.path, PreferenceRow):
            origin = "annotated" if preference.source.is_round else "file"
            for kind in ("edited", "chosen", "rejected"):
                if (text := getattr(preference, kind)) is not None:
                    yield _named(f"{kind}_{origin}", preference, preference.messages, text)
    if rows.sft_rows is not None:
        for sft in load_jsonl(rows.sft_rows.path, SftRow):
            yield _named("sft", sft, sft.messages[:-1], sft.target.text)
    if rows.pairs is not None:
        for pair in load_jsonl(rows.pairs.path, PairRow):
            for kind, completion in zip(("chosen", "rejected"), pair.ranked, strict=True):
                yield _named(f"dpo_{kind}", pair, pair.messages, completion.text)


def _named(
    figure: str, row: PreferenceRow | SftRow | PairRow, messages: Sequence[Message], text: str
) -> tuple[str, CandidateRow]:
    """A text as functions are asked about one."""
    return figure, CandidateRow(
        id=f"{figure} {row.id}",
        prompt_id=row.id,
        messages=list(messages),
        completion=text,
        completion_ids=[],
        finish_reason="stop",
        round=0,
        policy="",
        meta=row.meta,
    )
