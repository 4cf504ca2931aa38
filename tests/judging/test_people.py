"""People's answers: what becomes of each, and what is said of a line that is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignloop.errors import DataError
from alignloop.judging.people import annotations_of, answered_ids, questions, read_answers
from alignloop.records import CandidateRow, Message, PromptRow, Source

ASK = [Message(role="user", content="Name a tree.")]


def candidate(prompt: str, k: int, text: str, reward: float) -> CandidateRow:
    return CandidateRow(
        id=f"{prompt}/1/{k}", prompt_id=prompt, messages=ASK, completion=text, completion_ids=[1],
        finish_reason="stop", round=1, policy="sha256:0", reward=reward,
    )  # fmt: skip


def pair(prompt: str) -> tuple[PromptRow, CandidateRow, CandidateRow]:
    row = PromptRow(id=prompt, messages=ASK, source=Source(file="round-01"), meta={"topic": "trees"})
    return row, candidate(prompt, 4, "An oak.", 2.5), candidate(prompt, 1, "An elm.", -1.5)


PAIRS = [pair("p"), pair("q"), pair("r")]
ASKED = questions(PAIRS)


def answers(folder: Path, *rows: dict[str, Any] | str) -> Path:
    path = folder / "annotated.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_questions_do_not_show_rewards() -> None:
    assert questions(PAIRS)[0].id == "p/1/4-1"
    assert ASKED[0].model_dump() == {
        "id": "p/1/4-1",
        "messages": [{"role": "user", "content": "Name a tree."}],
        "first": "An oak.",
        "second": "An elm.",
    }


def test_answers_become_preferences_and_are_counted(tmp_path: Path) -> None:
    file = answers(
        tmp_path,
        {"id": "p/1/4-1", "choice": "Second", "strength": "Significantly better", "edited": "An elm, \u2028say.",
         "annotator": "ada", "comment": "short"},
        "",
        {"id": "q/1/4-1", "choice": "tie"},
        {"id": "r/1/4-1", "choice": None},
    )  # fmt: skip
    said = read_answers(file, asked=ASKED)
    made = annotations_of(PAIRS, said)
    assert made.counts == {"asked": 3, "annotated": 1, "ties": 1, "unanswered": 1}
    (row,) = made.rows
    assert (row.chosen, row.rejected, row.edited) == ("An elm.", "An oak.", "An elm, \u2028say.")
    assert (row.strength, row.annotator) == ("significantly_better", "ada")
    assert row.meta == {"topic": "trees", "annotation": {"comment": "short"}}
    assert row.id == "annotated/p/1/1/p/1/4"
    assert [(verdict.id, verdict.winner) for verdict in made.verdicts] == [("p/1/4-1", "second"), ("q/1/4-1", "tie")]


def test_a_question_handed_back_with_its_answer_is_read(tmp_path: Path) -> None:
    file = answers(tmp_path, ASKED[0].model_dump() | {"choice": "first", "edited": " An oak. ", "strength": ""})
    (row,) = annotations_of(PAIRS, read_answers(file, asked=ASKED)).rows
    assert (row.chosen, row.edited, row.strength) == ("An oak.", None, None)  # who changed nothing edited nothing


GOOD = {"id": "q/1/4-1", "choice": "first"}


NO_ANSWERS = [
    *yaml.safe_load((Path(__file__).parent / "no_answers.yaml").read_text(encoding="utf-8")),
    ('{"id": "p/1/4-1", "note": ' + "9" * 5000 + "}", "line 2: invalid JSON: Exceeds the limit"),
    ('{"id": "p/1/4-1", "note": ' + "[" * 500 + "]" * 500 + "}", "line 2: is nested more than 64 levels deep"),
    ("[" * 900 + "]" * 900, "line 2: must be a JSON object"),
    ("[" * 100_000, "line 2: invalid JSON"),
]


@pytest.mark.parametrize(("row", "message"), NO_ANSWERS)
def test_a_line_that_is_no_answer_is_named(tmp_path: Path, row: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_answers(answers(tmp_path, GOOD, row), asked=ASKED)


def test_all_wrong_lines_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"(?s)12 lines are no answers.*line 1, .*line 8, .*and 4 more"):
        read_answers(answers(tmp_path, *[{"id": "x"}] * 12), asked=ASKED)


def thought(of: str, answer: str) -> str:
    return f"<think>\nA thought about {of}.\n</think>\n\n{answer}"


def thinking_pair() -> tuple[PromptRow, CandidateRow, CandidateRow]:
    row, first, second = pair("t")
    return (
        row,
        first.model_copy(update={"completion": thought("oaks", "An oak."), "completion_ids": [7, 8]}),
        second.model_copy(update={"completion": thought("elms", "An elm."), "completion_ids": [9]}),
    )


def test_people_compare_answers_and_what_they_choose_is_the_whole_completion(tmp_path: Path) -> None:
    asked = questions([thinking_pair()])
    assert (asked[0].first, asked[0].second) == ("An oak.", "An elm.")
    file = answers(tmp_path, asked[0].model_dump() | {"choice": "second", "edited": "An elm."})
    (row,) = annotations_of([thinking_pair()], read_answers(file, asked=asked)).rows
    assert (row.chosen, row.rejected) == (thought("elms", "An elm."), thought("oaks", "An oak."))
    assert (row.chosen_ids, row.rejected_ids) == ([9], [7, 8])
    assert row.edited is None  # the answer as it was shown is no edit of it


@pytest.mark.parametrize(
    ("edited", "trained"),
    [
        ("An elm tree.", thought("elms", "An elm tree.")),
        (thought("trees", "An elm tree."), thought("trees", "An elm tree.")),  # a thought of the person's own
        (thought("elms", "An elm."), None),
    ],
)
def test_an_edited_answer_keeps_the_reasoning_of_the_one_it_improves(
    tmp_path: Path, edited: str, trained: str | None
) -> None:
    asked = questions([thinking_pair()])
    file = answers(tmp_path, {"id": asked[0].id, "choice": "second", "edited": edited})
    (row,) = annotations_of([thinking_pair()], read_answers(file, asked=asked)).rows
    assert row.edited == trained


def test_an_edit_without_an_answer_is_refused(tmp_path: Path) -> None:
    row = {"id": "p/1/4-1", "choice": "first", "edited": "<think>\nOaks.\n</think>\n"}
    with pytest.raises(DataError, match="line 1, field edited: holds no answer, only spaces or reasoning"):
        read_answers(answers(tmp_path, row), asked=ASKED)
    asked = questions([thinking_pair()])
    with pytest.raises(DataError, match="field edited: is the same text as the rejected"):
        read_answers(answers(tmp_path, {"id": "t/1/4-1", "choice": "first", "edited": "An elm."}), asked=asked)


def test_lines_that_no_parser_takes_are_no_answers_yet(tmp_path: Path) -> None:
    bad = ["[" * 100_000, '{"id": ' + "9" * 5000 + ', "choice": "tie"}', '{"choice": "tie", "choice": "first"}', "\xff"]
    file = answers(tmp_path, GOOD, *bad)
    assert answered_ids(file) == {"q/1/4-1"}


def test_not_a_number_is_nothing_as_in_every_file(tmp_path: Path) -> None:
    line = '{"id": "q/1/4-1", "choice": "first", "edited": NaN, "note": NaN}'
    assert read_answers(answers(tmp_path, line), asked=ASKED)["q/1/4-1"].meta == {"note": None}
