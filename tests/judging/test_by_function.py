"""A reward function as annotator: two candidates of a prompt, compared by its values."""

from __future__ import annotations

from typing import Any

import pytest

from alignloop.judging.annotate import Pair
from alignloop.judging.by_function import FunctionAnnotator, Slips, annotate, strength_of
from alignloop.records import CandidateRow, Message, PromptRow, Source

ASK = [Message(role="user", content="How many words?")]
BRIEF = FunctionAnnotator("alignloop.rewards:at_most_words")


def pair(*texts: str, name: str = "p", **meta: Any) -> Pair:
    first, second = (
        CandidateRow(
            id=f"{name}/1/{k}",
            prompt_id=name,
            messages=ASK,
            completion=text,
            completion_ids=[k + 1],
            finish_reason="stop",
            round=1,
            policy="sha256:x",
            total_reward=float(k),
            meta=meta,
        )
        for k, text in enumerate(texts)
    )
    return PromptRow(id=name, messages=ASK, source=Source(file="f"), meta=meta), first, second


@pytest.mark.parametrize(
    ("gap", "strength"),
    [
        (1.0, "significantly_better"),
        (0.75, "significantly_better"),
        (0.1 + 0.2 + 0.45, "significantly_better"),  # 0.75 but for rounding
        (0.6, "better"),
        (0.25, "slightly_better"),
        (0.01, "marginally_better"),
        (0.0, None),
        (1e-12, None),
    ],
)
def test_strength_is_the_quarter_that_the_gap_reaches(gap: float, strength: str | None) -> None:
    assert strength_of(gap, least=BRIEF.strength_gaps) == strength


def test_the_higher_value_is_chosen_in_either_order_and_no_gap_gives_no_row() -> None:
    pairs = [
        pair("one two three", "one", name="a", max_words=2),
        pair("one", "one two three", name="b", max_words=2),
        pair("one", "two", name="tie", max_words=2),
        pair("one", "<think>\nHm.\n</think>\n\none", name="same", max_words=2),
        pair("one", "one two three", name="unasked"),
    ]
    made = annotate(pairs, by=BRIEF, seed=0)
    assert [(row.chosen, row.rejected, row.strength) for row in made.rows] == [
        ("one", "one two three", "significantly_better"),
        ("one", "one two three", "significantly_better"),
    ]
    assert made.counts == {"annotated": 2, "ties": 2, "inapplicable": 1}
    row = made.rows[0]
    assert (row.annotator, row.compared_by, row.id) == (BRIEF.function, "function", "annotated/a/1/1/a/1/0")
    assert (row.chosen_ids, row.chosen_reward, row.meta) == ([2], 1.0, {"max_words": 2})


def test_answers_of_two_models_with_one_id_are_two() -> None:
    """As two runs of `alignloop sample` on one file of prompts give them."""
    prompt, long, brief = pair("one two three", "one", max_words=2)
    made = annotate([(prompt, long, brief.model_copy(update={"id": long.id}))], by=BRIEF, seed=0)
    assert [(row.chosen, row.rejected) for row in made.rows] == [("one", "one two three")]


def test_a_function_makes_no_slips_and_a_person_does() -> None:
    pairs = [pair("one two three", "one", name=f"p{n}", max_words=2) for n in range(50)]
    assert {row.chosen for row in annotate(pairs, by=BRIEF, seed=1).rows} == {"one"}
    always = FunctionAnnotator(BRIEF.function, slips=Slips(turned=1.0, understated=1.0))
    assert {(row.chosen, row.strength) for row in annotate(pairs, by=always, seed=1).rows} == {
        ("one two three", "better")
    }
