"""Nothing in a row that could change what is trained is lost without a word: it is used, carried, or named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from data_files import rows_of, write

from alignloop.chat.reasoning import join_reasoning
from alignloop.data.check_files import check_file, guess_kind
from alignloop.data.columns import ALIASES, TARGETS, parse_columns
from alignloop.data.convert import convert
from alignloop.data.ranked import LISTS, NUMBER_LISTS
from alignloop.data.readers import read_preferences, read_sft
from alignloop.data.reading import Kind, Reading
from alignloop.data.tools import CALLS, TOOLS
from alignloop.data.turns import REASONING, REFUSED_MEDIA, untrained_turn
from alignloop.errors import DataError, UserError
from alignloop.records import Message, PreferenceRow, RejectedRow, SftRow, Source

MARK = "MARK-71"
ROWS: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "rows.yaml").read_text(encoding="utf-8"))
Q, A, B, GOOD, BAD = ROWS["turns"]
PREFERENCES: list[dict[str, Any]] = ROWS["preferences"]
DIALOGS: list[dict[str, Any]] = ROWS["dialogs"]
CASES: list[tuple[Kind, dict[str, Any]]] = [
    *(("preferences", row) for row in PREFERENCES),
    *(("sft", row) for row in PREFERENCES[:2]),
    *(("sft", row) for row in DIALOGS),
]
COLUMNS = sorted(
    {*TARGETS, *(alias.source for alias in ALIASES), *TOOLS, *CALLS, *REFUSED_MEDIA, *REASONING, *LISTS, *NUMBER_LISTS}
    | {"topic", "response1", "overall_preference", "answers"}
)
FORMING = {*TARGETS, *(alias.source for alias in ALIASES), *LISTS, *NUMBER_LISTS}
"""Columns that can make another form of a row."""
TURN_KEYS = sorted({*REASONING, *TOOLS, *CALLS, *REFUSED_MEDIA, "refusal", "name", "tool_call_id", "timestamp"})


def read(path: Path, kind: Kind, row: dict[str, Any]) -> list[Any]:
    return list(Reading(write(path, row), kind))


def accounted(made: list[Any], name: str) -> None:
    """The mark is in what was made of the row, or the row is refused by the name of what holds it.

    A column that makes another form of the row may be refused by the name of what that form lacks.
    """
    for row in made:
        if isinstance(row, RejectedRow):
            assert name in f"{row.field} {row.reason}" or name in FORMING, row
        else:
            assert MARK in row.model_dump_json(), row


@pytest.mark.parametrize(("kind", "row"), CASES)
def test_every_column_is_used_carried_or_named(tmp_path: Path, kind: Kind, row: dict[str, Any]) -> None:
    marks: dict[str, Any] = {"history": [[MARK, "b"]], "context": [{"role": "user", "content": MARK}]}
    marks |= {"answers": [MARK], "tools": [{"name": MARK}], "functions": [MARK], "strength": MARK}
    for name in COLUMNS:
        if name in row or (kind == "sft" and "chosen" in row and name == "rejected"):
            continue
        changed = row | {name: marks.get(name, MARK)}
        if (name, row) in (("messages", PREFERENCES[4]), ("input", PREFERENCES[9])):
            with pytest.raises(DataError, match=f"no known form: their columns are chosen, rejected, {name}"):
                read(tmp_path / "a.jsonl", kind, changed)
            continue
        made = read(tmp_path / "a.jsonl", kind, changed)
        assert made
        accounted(made, name)


@pytest.mark.parametrize(("kind", "row"), CASES)
def test_every_key_of_a_turn_is_used_carried_or_named(tmp_path: Path, kind: Kind, row: dict[str, Any]) -> None:
    def with_key(value: Any, key: str) -> Any:
        if isinstance(value, list):
            return [with_key(item, key) for item in value]
        return value | {key: MARK} if isinstance(value, dict) else value

    for key in TURN_KEYS:
        changed = {name: with_key(value, key) for name, value in row.items()}
        if changed != row:
            accounted(read(tmp_path / "a.jsonl", kind, changed), key)
    for mark in ("weight", "train"):
        (bad,) = read(tmp_path / "a.jsonl", "sft", {"messages": [B, GOOD | {mark: 0}]})
        assert (bad.field, "not to be trained on" in bad.reason) == (f"messages[1].{mark}", True)


def test_a_turn_that_is_context_may_be_marked_as_untrained(tmp_path: Path) -> None:
    for mark in ({"weight": 0}, {"loss": "false"}):
        (name,) = mark
        row = {"messages": [Q, A | mark, B, GOOD]}
        (made,) = read(tmp_path / "a.jsonl", "sft", row)
        assert (made.messages[-1].content, made.meta) == ("Bye!", {"beside": {"messages[1]": mark}})
        assert untrained_turn(made.meta) == f"messages[1].{name}"
        (bad,) = read(tmp_path / "a.jsonl", "sft", {"messages": [Q, A, B, GOOD | mark]})
        assert (bad.field, "not to be trained on" in bad.reason) == (f"messages[3].{name}", True)
        (bad,) = rows_of("sft", write(tmp_path / "b.jsonl", row), dialogs="every_turn")
        assert (bad.field, "every turn would be" in bad.reason) == (f"messages[1].{name}", True)
        pair = {"messages": row["messages"][:3], "chosen": "a", "rejected": "b"}
        (made,) = read(tmp_path / "a.jsonl", "preferences", pair)
        assert made.meta["beside"] == {"messages[1]": mark}
    (made,) = read(tmp_path / "a.jsonl", "sft", {"messages": [Q | {"weight": 0}, A | {"weight": 1}, B, GOOD]})
    assert made.meta == {}


def test_a_question_is_the_prompt_and_system_a_turn_in_every_form(tmp_path: Path) -> None:
    for opening in ("", "The answer "):
        row = {"question": "Bye?", "chosen": f"{opening}Bye!", "rejected": f"{opening}No.", "system": "Be kind."}
        (made,) = read(tmp_path / "a.jsonl", "preferences", row)
        assert [m.content for m in made.messages] == ["Be kind.", "Bye?"]
        assert (made.chosen, made.meta) == (f"{opening}Bye!", {})
    for row in PREFERENCES:
        (made,) = read(tmp_path / "a.jsonl", "preferences", row | {"system": "Be kind."})
        assert [m.content for m in made.messages if m.role == "system"] == ["Be kind."], row
        assert "system" not in made.meta
    twice = {"messages": [{"role": "system", "content": "Be rude."}, B], "chosen": "a", "rejected": "b"}
    (bad,) = read(tmp_path / "a.jsonl", "preferences", twice | {"system": "Be kind."})
    assert (bad.field, "something else" in bad.reason) == ("system", True)
    (made,) = read(tmp_path / "a.jsonl", "preferences", twice | {"system": "Be rude."})
    assert [m.role for m in made.messages] == ["system", "user"]


@pytest.mark.parametrize("key", REASONING)
def test_reasoning_beside_a_text_stands_before_it(tmp_path: Path, key: str) -> None:
    whole = join_reasoning("Let me see.", "Bye!")
    (made,) = read(
        tmp_path / "a.jsonl", "preferences", {"prompt": [B], "chosen": [GOOD | {key: "Let me see."}], "rejected": [BAD]}
    )
    assert (made.chosen, made.rejected) == (whole, "No.")
    parts = [{"type": "thinking", "thinking": "Let me see."}, {"type": "text", "text": "Bye!"}]
    for row in (
        {"messages": [B, GOOD | {key: "Let me see."}]},
        {"prompt": "Bye?", "completion": "Bye!", key: "Let me see."},
        {"prompt": "Bye?", "response": "Bye!", key: "Let me see."},
        {"messages": [B, {"role": "assistant", "content": parts}]},
    ):
        (sft,) = read(tmp_path / "a.jsonl", "sft", row)
        assert (sft.messages[-1].content, sft.meta) == (whole, {})
    (bad,) = read(tmp_path / "a.jsonl", "sft", {"messages": [B, {"role": "assistant", "content": whole, key: "Hm."}]})
    assert (bad.field, "its own reasoning" in bad.reason) == (f"messages[1].{key}", True)


def test_parts_of_text_are_joined_and_others_named(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "Which "}, {"type": "text", "text": "tree?", "image": None}]
    row = {"prompt": [{"role": "user", "content": parts}], "chosen": [GOOD], "rejected": [BAD]}
    (made,) = read(tmp_path / "a.jsonl", "preferences", row)
    assert made.messages[0].content == "Which tree?"
    parts[1] = {"type": "image_url", "image_url": {"url": "a.png"}}
    (bad,) = read(tmp_path / "a.jsonl", "preferences", row)
    assert (bad.field, "type 'image_url'" in bad.reason) == ("prompt[0].content[1]", True)


def test_pictures_and_misplaced_calls_are_refused_by_name_where_there_are_any(tmp_path: Path) -> None:
    for name, value in (
        ("images", ["a.png"]),
        ("image_url", "https://a/b"),
        ("pixel_values", [0.5]),
        ("tool_calls", [{"name": "look"}]),
        ("function_call", '[{"name": "look"}]'),
    ):
        (bad,) = read(tmp_path / "a.jsonl", "preferences", PREFERENCES[0] | {name: value})
        assert bad.field == name
        (made,) = read(tmp_path / "a.jsonl", "preferences", PREFERENCES[0] | {name: "[]"})
        assert isinstance(made, PreferenceRow)


def test_the_simulated_annotator_is_nobody_whatever_a_file_leaves_out(tmp_path: Path) -> None:
    for annotator, said, found in (
        ("simulated", {}, "simulated"),
        ("simulated", {"compared_by": "judge"}, "judge"),
        ("my-judge", {"compared_by": "judge"}, "judge"),
        ("ann", {}, "people"),
    ):
        (made,) = read(tmp_path / "a.jsonl", "preferences", PREFERENCES[0] | {"annotator": annotator, **said})
        assert made.compared_by == found


def test_a_broken_first_row_does_not_tell_the_kind(tmp_path: Path) -> None:
    tool = {"from": "function_call", "value": "{}"}
    turns = [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Hello."}]
    file = write(tmp_path / "a.jsonl", {"conversations": [turns[0], tool], "tools": "[]"}, {"conversations": turns})
    check = check_file(file)
    assert (check.kind, check.tally.num_kept, check.tally.num_rejected) == ("sft", 1, 1)
    assert guess_kind(write(tmp_path / "b.jsonl", {"conversations": [turns[0], tool]})) == "sft"


@pytest.mark.parametrize("row", ROWS["of_other_projects"])
def test_forms_of_other_projects(tmp_path: Path, row: dict[str, Any]) -> None:
    file = write(tmp_path / "a.jsonl", row)
    assert guess_kind(file) == "preferences"
    (made,) = read_preferences([file], max_bad_fraction=0).rows
    assert [m.content for m in made.messages] == ["Bye?"]
    assert (made.chosen, made.rejected) == ("Bye!", "No.")
    assert made.strength == {2: "better", -1: "slightly_better"}.get(
        row.get("overall_preference", row.get("preference_strength"))
    )
    if "answers" in row:
        assert made.meta["beside"] == {"answers[0]": {"model": "m"}}


def test_scored_responses_in_rows_of_their_own(tmp_path: Path) -> None:
    def response(prompt: str, text: str, helpfulness: float, **more: Any) -> dict[str, Any]:
        return {"prompt": prompt, "response": text, "helpfulness": helpfulness, "verbosity": 1} | more

    rows = [response("Q1", "b", 1), response("Q1", "a", 4), response("Q1", "c", 0), response("Q2", "x", 2)]
    rows += [response("Q3", "d", 2), response("Q3", "", 1), response("Q3", "e", 1)]
    reading: Reading[PreferenceRow] = Reading(write(tmp_path / "a.jsonl", *rows), "preferences")
    made = list(reading)
    pairs = [(row.source.line, row.chosen, row.rejected) for row in made if isinstance(row, PreferenceRow)]
    assert pairs == [(1, "a", "b"), (1, "a", "c"), (5, "d", "e")]
    bad = {row.line: row.reason for row in made if isinstance(row, RejectedRow)}
    assert sorted(bad) == [4, 6]
    assert "at least two are needed" in bad[4]
    assert (reading.num_read, reading.num_kept, reading.num_rejected) == (7, 5, 2)
    first = next(row for row in made if isinstance(row, PreferenceRow))
    assert (first.meta["score_chosen"], first.meta["score_rejected"]) == (4, 1)
    assert first.meta["beside"] == {"completions[1]": {"verbosity": 1}, "completions[0]": {"verbosity": 1}}
    # Any column of scores will do where the form is named: people's labels, too.
    labels = [{"prompt": "Q", "completion": text, "label": text == "a"} for text in "ab"]
    (row,) = rows_of("preferences", write(tmp_path / "b.jsonl", *labels), form="scored")
    assert (row.chosen, row.rejected) == ("a", "b")


def test_columns_by_name(tmp_path: Path) -> None:
    row = {"ask": "Bye?", "answer_a": {"text": "Bye!", "model": "m"}, "answers": ["x", "No."], "prompt": "not this"}
    columns = {"prompt": "ask", "chosen": "answer_a.text", "rejected": "answers[1]"}
    assert parse_columns([f"{ours} = {theirs}" for ours, theirs in columns.items()]) == columns
    file = write(tmp_path / "a.jsonl", row, row | {"answer_a": {"text": 3}})
    made, bad = rows_of("preferences", file, columns=columns)
    assert (made.messages[0].content, made.chosen, made.rejected) == ("Bye?", "Bye!", "No.")
    assert (bad.field, bad.value) == ("answer_a.text", "3")
    assert [type(row).__name__ for row in rows_of("prompts", file, columns={"prompt": "ask"})] == [
        "PromptRow",
        "PromptRow",
    ]
    _, bad = rows_of(
        "preferences",
        write(tmp_path / "b.jsonl", {"ask": "Bye?"} | PREFERENCES[0], {"answer_a": "x"} | PREFERENCES[0]),
        columns={"prompt": "ask"},
    )
    assert (bad.field, "is missing" in bad.reason) == ("ask", True)
    with pytest.raises(DataError, match=r"(?s)no known form: their columns are user_prompt.*data.columns"):
        rows_of(
            "preferences",
            write(tmp_path / "c.jsonl", {"user_prompt": "Bye?", "chosen": "I say a", "rejected": "I say b"}),
        )
    for pair in ("prompt", "promt=ask", "prompt="):
        with pytest.raises(UserError, match="--column"):
            parse_columns([pair])


def test_a_column_that_no_row_has_is_named_whatever_it_is_for(tmp_path: Path) -> None:
    rows = [PREFERENCES[0] | {"sys_prompt": None}, PREFERENCES[0] | {"ask.text": "Bye?"}]
    file = write(tmp_path / "a.jsonl", *rows)
    for columns in ({"system": "sys_promt"}, {"strength": "sys_promt"}, {"prompt": "sys_prompt.text"}):
        with pytest.raises(DataError, match=r"a.jsonl: .* none of the first 2 rows has; did you mean sys_prompt\?"):
            rows_of("preferences", file, columns=columns)
    # A column that is there as null will do, and a dot may be part of its name.
    first, second = rows_of("preferences", file, columns={"system": "sys_prompt", "prompt": "ask.text"})
    assert isinstance(first, RejectedRow)
    assert second.messages[0].content == "Bye?"


@pytest.mark.parametrize("label", [False, 0, 0.0, "False", " 0"])
def test_an_answer_that_people_did_not_want_is_no_target(tmp_path: Path, label: object) -> None:
    file = write(tmp_path / "a.jsonl", *({"prompt": "Q", "completion": "a", "label": mark} for mark in (label, 1)))
    assert guess_kind(file) == "sft"
    bad, good = rows_of("sft", file)
    assert (bad.field, "people did not want" in bad.reason) == ("label", True)
    assert type(good) is SftRow
    done = convert([file], out=tmp_path / "out.jsonl", kind="sft")
    assert (done.num_kept, done.num_rejected) == (1, 1)


def test_scores_that_say_otherwise_are_counted(tmp_path: Path) -> None:
    def scored(good: float, bad: float, names: tuple[str, str] = ("score_chosen", "score_rejected")) -> dict[str, Any]:
        return PREFERENCES[0] | dict(zip(names, (good, bad), strict=True))

    names = ("chosen-rating", "rejected-rating")
    rows = [scored(1, 2), scored(2, 1), scored(3, 3), scored(1, 5, names), PREFERENCES[0] | {"score_chosen": 1}]
    tally = check_file(write(tmp_path / "a.jsonl", *rows)).tally
    assert dict(tally.scores) == {"against": 2, "tie": 1}
    assert tally.carried_columns == {"score_chosen": 4, "score_rejected": 3, "chosen-rating": 1, "rejected-rating": 1}


OWN = PreferenceRow(
    id="annotated/p/1/0/p/1/1",
    messages=[Message(role="user", content="Name a river.")],
    chosen="The Elbe.",
    rejected="A hill and",
    strength="better",
    source=Source(file="round-01"),
    annotator="my-judge",
    compared_by="judge",
    chosen_ids=[5, 6, 7],
    chosen_finish_reason="stop",
    rejected_ids=[8, 9],
    rejected_finish_reason="length",
    chosen_reward=1.5,
)


def test_ids_stay_behind_and_endings_do_not(tmp_path: Path) -> None:
    """Whose tokenizer made the ids, the file does not say."""
    path = write(tmp_path / "own.jsonl", OWN.model_dump(mode="json"))
    (row,) = read_preferences([path], max_bad_fraction=0.0).rows
    assert (row.chosen_ids, row.rejected_ids) == (None, None)
    assert (row.chosen_finish_reason, row.rejected_finish_reason) == ("stop", "length")
    assert (row.annotator, row.compared_by, row.chosen_reward) == ("my-judge", "judge", 1.5)
    assert row.meta == {"source": {"file": "round-01", "line": None}}
    assert row == PreferenceRow.model_validate(row.model_dump())


def test_a_target_that_was_cut_is_known_by_its_column(tmp_path: Path) -> None:
    dialog = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Name a river."},
        {"role": "assistant", "content": "The river that is"},
    ]
    path = write(
        tmp_path / "sft.jsonl",
        {"messages": dialog, "finish_reason": "length"},
        {"messages": dialog, "finish_reason": "stop"},
        {"messages": dialog},
    )
    rows = read_sft([path], max_bad_fraction=0.0, dialogs="every_turn").rows
    assert [row.finish_reason for row in rows] == [None, "length", None, None, None, None]


def test_the_chosen_one_is_a_target_as_it_ended(tmp_path: Path) -> None:
    cut = {**OWN.model_dump(mode="json"), "chosen_finish_reason": "length"}
    path = write(tmp_path / "pairs.jsonl", cut, {**cut, "edited": "The Elbe is a river."})
    rows = read_sft([path], max_bad_fraction=0.0).rows
    assert [row.finish_reason for row in rows] == ["length", None]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_a_runs_own_targets_keep_their_ids_through_pruning(tmp_path: Path, name: str) -> None:
    """`data prune` on a round's rows: what comes out trains as it was sampled (and stops training where its ids are
    another tokenizer's)."""
    from alignloop.data.convert import row_file
    from alignloop.pruning.items import as_sft, read_rows

    own = SftRow(
        id="p/1/0",
        messages=[Message(role="user", content="Name a river."), Message(role="assistant", content="The Elbe is")],
        origin="best_of_k",
        source=Source(file="round-01"),
        completion_ids=[5, 6, 7],
        finish_reason="length",
    )
    with row_file(tmp_path / name, SftRow) as add:
        add(own)
    (item,) = read_rows(str(tmp_path / name), max_bad_fraction=0.0).items
    assert item.truncated
    row = as_sft(item)
    assert (row.completion_ids, row.finish_reason) == ([5, 6, 7], "length")
