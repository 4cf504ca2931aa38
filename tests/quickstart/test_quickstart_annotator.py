"""The simulated annotator, on cases worked by hand."""

from __future__ import annotations

from typing import Any

import pytest

from alignloop.errors import DataError
from alignloop.quickstart.annotator import annotate, check, num_flaws, repeats, strength_of
from alignloop.records import CandidateRow, Message, PromptRow, Source

TITLE_AND_COMMA = {
    "instruction_id_list": ["detectable_format:title", "punctuation:no_comma"],
    "kwargs": [{}, {}],
    "topic": "otter",
}
QUESTION = {"answer": "The river", "options": ["The river", "The cave"], "topic": "otter"}


def _prompt(meta: dict[str, Any]) -> PromptRow:
    return PromptRow(
        id="p1",
        messages=[Message(role="user", content="About the otter.")],
        source=Source(file="prompts.jsonl"),
        meta=meta,
    )


def _candidate(number: int, text: str) -> CandidateRow:
    return CandidateRow.model_validate(
        {
            "id": f"p1/2/{number}",
            "prompt_id": "p1",
            "messages": [{"role": "user", "content": "About the otter."}],
            "completion": text,
            "completion_ids": [1],
            "finish_reason": "stop",
            "round": 2,
            "policy": "digest",
        }
    )


def _annotated(meta: dict[str, Any], first: str, second: str) -> list[tuple[str, str, str | None]]:
    rows = annotate([(_prompt(meta), _candidate(0, first), _candidate(1, second))], seed=0)
    return [(row.chosen, row.rejected, row.strength) for row in rows]


GOOD, HALF, BAD = "<<Otter>>\nThe otter swims.", "The otter swims.", "The otter swims, and eats."


def test_check_gives_a_flag_for_each_instruction() -> None:
    assert check(TITLE_AND_COMMA, GOOD) == [True, True]
    assert check(TITLE_AND_COMMA, HALF) == [False, True]
    assert check(TITLE_AND_COMMA, BAD) == [False, False]


def test_the_answer_that_follows_more_is_chosen_whatever_the_order() -> None:
    assert _annotated(TITLE_AND_COMMA, GOOD, BAD) == [(GOOD, BAD, "significantly_better")]
    assert _annotated(TITLE_AND_COMMA, BAD, GOOD) == [(GOOD, BAD, "significantly_better")]
    # all against half: (1 + 1) - 0.5 = 1.5
    assert _annotated(TITLE_AND_COMMA, HALF, GOOD) == [(GOOD, HALF, "better")]


def test_the_answer_alone_is_checked() -> None:
    """A thought with a comma, and without a title, is not what was asked for."""
    thought = "<think>\nA title, then no comma.\n</think>\n\n"
    for first, second in ((thought + GOOD, BAD), (GOOD, thought + BAD)):
        assert _annotated(TITLE_AND_COMMA, first, second) == [(first, second, "significantly_better")]
    assert _annotated(TITLE_AND_COMMA, thought + GOOD, GOOD) == []


def test_half_against_nothing_is_slightly_better() -> None:
    assert strength_of([True, False], [False, False], 0) == "slightly_better"


def test_a_flaw_weighs_one_point() -> None:
    away = "<<Swimmer>>\nThe animal swims."
    assert check(TITLE_AND_COMMA, away) == [True, True]
    assert _annotated(TITLE_AND_COMMA, away, GOOD) == [(GOOD, away, "better")]


def test_ties_are_left_out() -> None:
    assert _annotated(TITLE_AND_COMMA, GOOD, "<<Otter>>\nAn otter eats.") == []
    assert _annotated(TITLE_AND_COMMA, GOOD, GOOD) == []


def test_flaws_of_a_completion() -> None:
    assert num_flaws(TITLE_AND_COMMA, GOOD) == 0
    assert num_flaws(TITLE_AND_COMMA, "The otter likes to swim. " * 3) == 1
    assert num_flaws(TITLE_AND_COMMA, "It swims.") == 1


def test_repeats_needs_three_of_the_same_four_words() -> None:
    assert repeats("a b c d a b c d a b c d".split())
    assert not repeats("a b c d a b c d".split())
    assert not repeats([])


def test_questions_are_judged_by_their_answer() -> None:
    assert check(QUESTION, "The otter lives in the river.") == [True]
    assert check(QUESTION, "The cave") == [False]
    assert check(QUESTION, "The river or the cave") == [False]
    assert _annotated(QUESTION, "The cave", "The river") == [("The river", "The cave", "significantly_better")]


def test_a_row_says_who_compared_and_where_it_comes_from() -> None:
    (row,) = annotate([(_prompt(TITLE_AND_COMMA), _candidate(0, BAD), _candidate(1, GOOD))], seed=0)
    assert row.annotator == "simulated"
    assert row.source.file == "round-02"
    assert row.id == "annotated/p1/2/1/p1/2/0"
    assert row.meta == TITLE_AND_COMMA


def test_the_same_seed_gives_the_same_rows() -> None:
    pairs = [(_prompt(TITLE_AND_COMMA), _candidate(2 * n, BAD), _candidate(2 * n + 1, HALF)) for n in range(60)]
    first, again = annotate(pairs, seed=1), annotate(pairs, seed=1)
    assert first == again
    reversed_rows = [row for row in first if row.chosen == BAD]
    # one close call in twenty is turned round: 3 of 60 expected
    assert 0 < len(reversed_rows) < 12
    assert {row.strength for row in first} == {"slightly_better"}


def test_a_prompt_without_anything_to_check_is_an_error() -> None:
    with pytest.raises(DataError, match="instruction_id_list"):
        annotate([(_prompt({"topic": "otter"}), _candidate(0, GOOD), _candidate(1, BAD))], seed=0)


def test_unknown_instruction_types_are_named() -> None:
    with pytest.raises(DataError, match="poetry:rhyme"):
        check({"instruction_id_list": ["poetry:rhyme"], "kwargs": [{}]}, GOOD)


def test_each_instruction_needs_its_kwargs() -> None:
    with pytest.raises(DataError, match="2 instructions but 1 kwargs"):
        check({"instruction_id_list": ["punctuation:no_comma", "startend:quotation"], "kwargs": [{}]}, GOOD)
