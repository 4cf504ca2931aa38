"""What counts as an answer, and what is unreadable."""

from __future__ import annotations

import json

import pytest

from alignloop.judging.prompt_file import load_prompt
from alignloop.judging.reading import UnreadableAnswer, VerdictReader
from alignloop.judging.verdicts import JudgeAnswer, verdict_of
from alignloop.records import STRENGTHS, Strength

PAIRWISE = VerdictReader(load_prompt("pairwise"))
GENERAL = VerdictReader(load_prompt("quality_general"))
CODE = VerdictReader(load_prompt("quality_code"))
A = '{"reason": "shorter", "verdict": "A better"}'


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (A, "first"),
        ('  {"reason": "", "verdict": "B better"}\n', "second"),
        ('{"verdict": "tie", "reason": "equal"}', "tie"),
        (f"```json\n{A}\n```", "first"),
        (f"```\n{A}```", "first"),
        (f"Let me see.\n\n{A}", "first"),
        (f"Answer A says {{x}} and [y].\n{A}", "first"),
        (f"I thought:\n```json\n{A}\n```\nSo it is.", "first"),  # the one fenced block, text after it
        (f'<think>{A}</think>\n{{"reason": "after all", "verdict": "B better"}}', "second"),  # the end counts
        (f'```json\n{A}\n```\nNo:\n```json\n{{"reason": "", "verdict": "B better"}}\n```', "second"),
        ('{"reason": "it has a } and a { and \\"quotes\\"", "verdict": "A better"}', "first"),
    ],
)
def test_readable_answers(text: str, value: str) -> None:
    assert PAIRWISE.read(text).value == value


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("A", "no JSON object"),
        ("The better answer is A.", "no JSON object"),
        ('"A"', "no JSON object"),
        ("[1]", "no JSON object"),
        ('{"reason": "short", "verd', "no JSON object"),
        (f"{A} I am sure.", "no JSON object"),  # text after an object that is not fenced
        (f'{A} {{"oh": 1', "no JSON object"),
        (
            f'```json\n{A}\n```\n```json\n{{"reason": "", "verdict": "B better"}}\n```\nhm',
            "no JSON object",
        ),  # which one?
        ('{"reason": "", "verdict": "A better", "verdict": "B better"}', "no JSON object"),  # a key twice
        ("{'reason': '', 'verdict': 'A'}", "no JSON object"),
        ('{"reason": NaN, "verdict": "A better"}', "no JSON object"),
        ('{"reason": "", "verdict": "a"}', "'a' is not one of"),
        ('{"reason": "", "verdict": "C"}', "'C' is not one of"),
        ('{"verdict": "A better"}', "'reason' is a required property"),
        ('{"reason": "", "verdict": "A better", "more": 1}', "Additional properties"),
        ('{"reason": "", "verdict": ["A"]}', "not of type 'string'"),
        ('{"a":' * 100_000, "no JSON object"),
    ],
)
def test_unreadable_answers(text: str, why: str) -> None:
    with pytest.raises(UnreadableAnswer, match=why):
        PAIRWISE.read(text)


def test_an_answer_cut_at_its_limit_says_so() -> None:
    with pytest.raises(UnreadableAnswer, match=r"judge\.max_tokens"):
        PAIRWISE.read('{"reason": "the first', cut=True)


def test_points_are_whole_numbers_of_the_scale() -> None:
    assert GENERAL.read('{"reason": "fine", "points": 3}') == JudgeAnswer(3, "fine")
    assert CODE.read('{"reason": "", "points": 2}') == JudgeAnswer(2, "")
    for reader, points in ((CODE, "3"), (GENERAL, "0"), (GENERAL, '"3"'), (GENERAL, "true"), (GENERAL, "2.5")):
        with pytest.raises(UnreadableAnswer):
            reader.read(f'{{"reason": "", "points": {points}}}')


def answer(value: object, reason: str = "", *texts: str) -> JudgeAnswer:
    return JudgeAnswer(value, reason, texts)  # type: ignore[arg-type]


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize(("letter", "place"), [("A", "first"), ("B", "second")])
def test_all_strengths_are_read(letter: str, place: str, strength: Strength) -> None:
    said = json.dumps({"reason": "so", "verdict": f"{letter} {strength.replace('_', ' ')}"})
    assert PAIRWISE.read(said) == JudgeAnswer(place, "so", strength=strength)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("asked", "swapped", "strength"),
    [
        ("significantly_better", "significantly_better", "significantly_better"),
        ("significantly_better", "slightly_better", "better"),  # the one between
        ("slightly_better", "significantly_better", "better"),  # the order asked changes nothing
        ("significantly_better", "better", "better"),  # between two: the weaker
        ("better", "marginally_better", "slightly_better"),
        ("significantly_better", "marginally_better", "slightly_better"),
        ("marginally_better", "marginally_better", "marginally_better"),
        (None, None, None),  # a prompt that asks for none
    ],
)
def test_strength_of_both_orders(asked: Strength | None, swapped: Strength | None, strength: Strength | None) -> None:
    verdict = verdict_of("p", [JudgeAnswer("first", "", strength=asked), JudgeAnswer("second", "", strength=swapped)])
    assert (verdict.winner, verdict.strength) == ("first", strength)


def test_what_is_no_preference_has_no_strength() -> None:
    first = JudgeAnswer("first", "", strength="significantly_better")
    for others in (
        [first, first],
        [first, JudgeAnswer("tie", "")],
        [JudgeAnswer("tie", "")],
        [first, JudgeAnswer(None, "")],
    ):
        verdict = verdict_of("p", others)
        assert verdict.winner in ("tie", "unreadable")
        assert verdict.strength is None


@pytest.mark.parametrize(
    ("asked", "swapped", "winner"),
    [
        ("first", "second", "first"),  # the completion that stood first, then second: the same one
        ("second", "first", "second"),
        ("tie", "tie", "tie"),
        ("first", "first", "tie"),  # it always likes the first place
        ("second", "second", "tie"),
        ("first", "tie", "tie"),
        (None, "first", "unreadable"),
        ("first", None, "unreadable"),
        (None, None, "unreadable"),
    ],
)
def test_both_orders(asked: str | None, swapped: str | None, winner: str) -> None:
    assert verdict_of("p", [answer(asked, "", "one"), answer(swapped, "", "two")]).winner == winner


def test_a_verdict_keeps_every_text_and_says_why() -> None:
    both = verdict_of("p", [answer("first", "good", "x", "y"), answer("first", "bad", "z")])
    assert both.answers == ("x", "y", "z")
    assert both.reason == "the two orders disagree: first, then second"
    assert verdict_of("p", [answer("first", "good", "x")]).reason == "good"
    assert verdict_of("p", [answer("first"), answer(None, "no JSON", "q")]).reason == "no JSON"
