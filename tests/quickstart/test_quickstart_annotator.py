"""The simulated annotator, on cases worked by hand."""

from __future__ import annotations

from typing import Any

import pytest

from alignloop.errors import DataError
from alignloop.judging.annotate import Pair
from alignloop.judging.by_function import annotate as annotate_by
from alignloop.judging.by_function import strength_of
from alignloop.quickstart.annotator import SIMULATED, check, demands_met, num_flaws, quality, quality_of, repeats
from alignloop.records import CandidateRow, Message, PreferenceRow, PromptRow, Source

TITLE_AND_COMMA = {
    "instruction_id_list": ["detectable_format:title", "punctuation:no_comma"],
    "kwargs": [{}, {}],
    "topics": ["otter"],
}
QUESTION = {"answer": "The river", "options": ["The river", "The cave"]}
GOOD, HALF, BAD = "<<Otter>>\nThe otter swims.", "The otter swims.", "The otter swims, and eats."
AWAY = "<<Swimmer>>\nThe animal swims."
THOUGHT = "<think>\nA title, then no comma.\n</think>\n\n"
MESSAGES = [Message(role="user", content="About the otter.")]


def pair(meta: dict[str, Any], *texts: str, number: int = 0) -> tuple[PromptRow, CandidateRow, CandidateRow]:
    prompt = PromptRow(id="p1", messages=MESSAGES, source=Source(file="prompts.jsonl"), meta=meta)
    first, second = (
        CandidateRow(
            id=f"p1/2/{number + k}",
            prompt_id="p1",
            messages=MESSAGES,
            completion=text,
            completion_ids=[1],
            finish_reason="stop",
            round=2,
            policy="digest",
        )
        for k, text in enumerate(texts)
    )
    return prompt, first, second


def annotate(pairs: list[Pair], *, seed: int) -> list[PreferenceRow]:
    return annotate_by(pairs, by=SIMULATED, seed=seed).rows


def test_demands_met_is_called_as_a_reward_function() -> None:
    """A column for each key of any row; half of the demands, all, none to check. The answer counts, not the thought."""
    texts = [HALF, THOUGHT + GOOD, "The river.", "Hello."]
    metas = [TITLE_AND_COMMA, TITLE_AND_COMMA, {"answer": "The river"}, {"topic": "otter"}]
    given: dict[str, Any] = {
        "prompts": [[{"role": "user", "content": "About the otter."}]] * 4,
        "completions": [[{"role": "assistant", "content": text}] for text in texts],
        **{key: [meta.get(key) for meta in metas] for key in ("instruction_id_list", "kwargs", "answer", "options")},
    }
    assert demands_met(**given) == [0.5, 1.0, 1.0, None]
    # One point for all of them: 0.5, then 1 + 1.
    assert quality(**given) == [0.5, 2.0, 2.0, None]


@pytest.mark.parametrize(
    ("meta", "answer", "flags"),
    [
        (TITLE_AND_COMMA, GOOD, [True, True]),
        (TITLE_AND_COMMA, HALF, [False, True]),
        (TITLE_AND_COMMA, BAD, [False, False]),
        (TITLE_AND_COMMA, AWAY, [True, True]),
        (QUESTION, "The otter lives in the river.", [True]),
        (QUESTION, "The cave", [False]),
        (QUESTION, "The river or the cave", [False]),
    ],
)
def test_check_gives_a_flag_for_each_instruction_or_the_answer(
    meta: dict[str, Any], answer: str, flags: list[bool]
) -> None:
    assert check(meta, answer) == flags


@pytest.mark.parametrize(
    ("meta", "first", "second", "expected"),
    [
        (TITLE_AND_COMMA, GOOD, BAD, "significantly_better"),
        (TITLE_AND_COMMA, GOOD, HALF, "significantly_better"),  # all against half: (1 + 1) - 0.5 = 1.5
        (TITLE_AND_COMMA, GOOD, AWAY, "better"),  # a flaw weighs one point
        (QUESTION, "The river", "The cave", "significantly_better"),
        # a thought with a comma, and without a title, is not what was asked for: the answer alone is checked
        (TITLE_AND_COMMA, THOUGHT + GOOD, BAD, "significantly_better"),
        (TITLE_AND_COMMA, GOOD, THOUGHT + BAD, "significantly_better"),
        (TITLE_AND_COMMA, THOUGHT + GOOD, GOOD, None),
        (TITLE_AND_COMMA, GOOD, "<<Otter>>\nAn otter eats.", None),
        (TITLE_AND_COMMA, GOOD, GOOD, None),
    ],
)
def test_the_better_answer_is_chosen_whatever_the_order_and_ties_are_left_out(
    meta: dict[str, Any], first: str, second: str, expected: str | None
) -> None:
    for two in ((first, second), (second, first)):
        rows = annotate([pair(meta, *two)], seed=0)
        found = [(row.chosen, row.rejected, row.strength) for row in rows]
        assert found == ([] if expected is None else [(first, second, expected)])


@pytest.mark.parametrize(
    ("first", "second", "flaw_gap", "expected"),
    [
        ([True, True], [True, False], 0, "significantly_better"),  # 1 + 1 against 0.5
        ([True, False], [False, False], 0, "better"),
        ([True, True], [True, True], 1, "better"),
        ([True, False], [False, True], 0, None),
    ],
)
def test_strengths_by_hand(first: list[bool], second: list[bool], flaw_gap: int, expected: str | None) -> None:
    gap = quality_of(first, num_flaws=max(flaw_gap, 0)) - quality_of(second, num_flaws=max(-flaw_gap, 0))
    assert strength_of(abs(gap), least=SIMULATED.strength_gaps) == expected


def test_flaws_of_a_completion() -> None:
    texts = (GOOD, "The otter likes to swim. " * 3, "It swims.")
    assert [num_flaws(TITLE_AND_COMMA, text) for text in texts] == [0, 1, 1]
    # Three of the same four words.
    assert [repeats(words.split()) for words in ("a b c d " * 3, "a b c d " * 2, "")] == [True, False, False]


def test_a_row_says_who_compared_and_where_it_comes_from() -> None:
    (row,) = annotate([pair(TITLE_AND_COMMA, BAD, GOOD)], seed=0)
    assert (row.annotator, row.source.file, row.id) == ("simulated", "round-02", "annotated/p1/2/1/p1/2/0")
    assert row.meta == TITLE_AND_COMMA


def test_noise_turns_some_round_and_says_some_too_low() -> None:
    pairs = [pair(TITLE_AND_COMMA, BAD, GOOD, number=2 * n) for n in range(400)]
    rows = annotate(pairs, seed=1)
    assert rows == annotate(pairs, seed=1)
    turned = sum(row.chosen == BAD for row in rows)
    low = sum(row.strength == "better" for row in rows)
    assert {row.strength for row in rows} == {"significantly_better", "better"}
    # Of 400 one expects 20 and 80; three standard deviations either way.
    assert abs(turned - 400 * SIMULATED.slips.turned) < 3 * (400 * SIMULATED.slips.turned) ** 0.5
    assert abs(low - 400 * SIMULATED.slips.understated) < 3 * (400 * SIMULATED.slips.understated) ** 0.5


def test_some_equally_good_answers_are_told_apart_by_taste() -> None:
    pairs = [pair(TITLE_AND_COMMA, GOOD, "<<Otter>>\nAn otter eats.", number=2 * n) for n in range(400)]
    rows = annotate(pairs, seed=1)
    assert {row.strength for row in rows} == {"marginally_better"}
    assert abs(len(rows) - 400 * SIMULATED.slips.taste) < 3 * (400 * SIMULATED.slips.taste) ** 0.5
    assert {row.chosen for row in rows} == {GOOD, "<<Otter>>\nAn otter eats."}


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"instruction_id_list": ["poetry:rhyme"], "kwargs": [{}]}, "poetry:rhyme"),
        (TITLE_AND_COMMA | {"kwargs": [{}]}, "2 instructions but 1 kwargs"),
    ],
)
def test_wrong_demands_are_an_error(meta: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        annotate([pair(meta, GOOD, BAD)], seed=0)


def test_prompts_that_say_nothing_to_check_are_counted() -> None:
    with pytest.raises(DataError, match="neither `instruction_id_list`"):
        check({"topics": ["otter"]}, GOOD)
    made = annotate_by([pair({"topics": ["otter"]}, GOOD, BAD)], by=SIMULATED, seed=0)
    assert (made.rows, made.counts) == ([], {"annotated": 0, "ties": 0, "inapplicable": 1})
