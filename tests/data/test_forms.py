"""Rows of every form, by hand: what dialog and completions come of them, and what is said of bad ones (`rows.yaml`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from data_files import rows_of, write

from alignloop.config.data import FormName
from alignloop.data.forms import FORMS
from alignloop.data.readers import read_preferences
from alignloop.data.reading import Reading
from alignloop.errors import DataError
from alignloop.records import PreferenceRow, PromptRow, RejectedRow, SftRow

CASES: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "rows.yaml").read_text(encoding="utf-8"))
GOOD_ROW = CASES["good_row"]
Q, A, Q2, GOOD, BAD = CASES["turns"]


@pytest.mark.parametrize("case", CASES["forms"])
def test_a_row_of_every_form(tmp_path: Path, case: dict[str, Any]) -> None:
    file = write(tmp_path / "f.jsonl", case["row"])
    result = read_preferences([file], max_bad_fraction=0)
    assert result.forms == {str(file): case["form"]}
    (read,) = result.rows
    dialog = [tuple(turn) for turn in case["dialog"]]
    assert [(m.role, m.content) for m in read.messages] == dialog
    assert (read.chosen, read.rejected, read.meta) == ("Bye!", "No.", case.get("meta", {}))
    # The fast way to make a row makes what pydantic's checks make.
    assert read == PreferenceRow.model_validate(read.model_dump())
    assert read.model_dump_json() == PreferenceRow.model_validate(read.model_dump()).model_dump_json()
    (prompt,) = rows_of("prompts", file)
    assert [(m.role, m.content) for m in prompt.messages] == dialog
    (sft,) = rows_of("sft", file)
    assert [(m.role, m.content) for m in sft.messages] == [*dialog, ("assistant", "Bye!")]
    assert sft.origin == "preference"


def test_every_form_has_a_row_here_and_a_name_in_the_recipe() -> None:
    assert (
        {case["form"] for case in CASES["forms"]} | {"best_first", "scored"}
        == {form.name for form in FORMS}
        == set(get_args(FormName))
    )


def scored(name: str, **values: float) -> list[dict[str, Any]]:
    return [{"text": text, name: value} for text, value in values.items()]


RANKED: list[tuple[dict[str, Any], list[tuple[str, str]]]] = [
    ({"ranking": ["a", "b", "c"]}, [("a", "b"), ("a", "c")]),
    ({"completions": scored("score", c=1, a=3, b=2)}, [("a", "c"), ("a", "b")]),
    ({"responses": ["b", "a", "c"], "ranks": [2, 1, 2]}, [("a", "b"), ("a", "c")]),
    # Equal to the best: not compared with it.
    ({"completions": scored("rating", a=5, b=5, c=1)}, [("a", "c")]),
]


@pytest.mark.parametrize(("columns", "pairs"), RANKED)
def test_ranked_lists_set_the_best_against_each(
    tmp_path: Path, columns: dict[str, Any], pairs: list[tuple[str, str]]
) -> None:
    file = write(tmp_path / "r.jsonl", {"id": "x", "prompt": "Q"} | columns)
    reading: Reading[PreferenceRow] = Reading(file, "preferences")
    rows = [row for row in reading if isinstance(row, PreferenceRow)]
    assert [(row.chosen, row.rejected) for row in rows] == pairs
    assert [row.id for row in rows] == (["x"] if len(pairs) == 1 else [f"x/{n}" for n in range(1, len(pairs) + 1)])
    assert (reading.num_read, reading.num_kept, reading.num_rejected) == (1, 1, 0)


def test_a_list_without_numbers_is_ranked_only_where_it_is_said_to_be(tmp_path: Path) -> None:
    file = write(tmp_path / "r.jsonl", {"prompt": "Q", "completions": ["a", "b"]})
    (row,) = rows_of("preferences", file)
    assert (row.field, row.reason) == ("chosen", "is missing: every preference row needs chosen")
    (row,) = rows_of("preferences", file, form="best_first")
    assert (row.chosen, row.rejected) == ("a", "b")


def test_empty_turns_are_named_and_an_empty_system_turn_says_nothing(tmp_path: Path) -> None:
    def read(*texts: str) -> Any:
        roles = ("system", "user", "assistant", "user")
        turns = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
        (row,) = rows_of(
            "preferences",
            write(tmp_path / "f.jsonl", {"messages": turns, "chosen": "a", "rejected": "b", "system": None}),
        )
        return row

    bad = read("S", "Q", " \n", "Q")
    assert (bad.field, bad.reason) == ("messages[2]", "is empty: the assistant turn has no text")
    good = read(" ", "Q", "A", "Q")
    assert good.messages[0].role == "user"


def test_a_mixture_of_forms_is_named(tmp_path: Path) -> None:
    canonical = {"prompt": "Q", "chosen": "a", "rejected": "b"}
    implicit = {"chosen": [Q, GOOD], "rejected": [Q, BAD]}
    file = write(tmp_path / "m.jsonl", canonical, canonical, implicit, canonical, implicit)
    reading: Reading[PreferenceRow] = Reading(file, "preferences")
    bad = [row for row in reading if isinstance(row, RejectedRow)]
    assert [row.line for row in bad] == [3, 5]
    assert "has the form trl_implicit, while the file's rows have canonical" in bad[0].reason
    mixture = "a mixture of forms: 3 rows canonical (the first: line 1), 2 rows trl_implicit (the first: line 3)"
    assert mixture in (reading.mixture() or "")
    with pytest.raises(DataError) as error:
        read_preferences([file], max_bad_fraction=0.1)
    assert mixture in str(error.value)
    # A row with a gap is no row of a form that has fewer columns.
    (_, row) = rows_of("preferences", write(tmp_path / "g.jsonl", canonical, {"chosen": "a", "rejected": "b"}))
    assert row.field == "prompt"


def test_a_form_can_be_named(tmp_path: Path) -> None:
    file = write(tmp_path / "f.jsonl", {"prompt": "Bye?", "chosen": [Q2, GOOD], "rejected": [Q2, BAD]})
    (row,) = rows_of("preferences", file, form="trl_implicit")
    assert row.meta == {"prompt": "Bye?"}
    with pytest.raises(DataError, match="form 'sharegtp': there is no such form; there are sharegpt, ranked"):
        rows_of("preferences", file, form="sharegtp")


def test_every_turn(tmp_path: Path) -> None:
    file = write(tmp_path / "f.jsonl", {"id": "x", "messages": [Q, A, Q2], "chosen": GOOD, "rejected": BAD})
    prompts = [row for row in rows_of("prompts", file, dialogs="every_turn") if isinstance(row, PromptRow)]
    assert [(row.id, len(row.messages)) for row in prompts] == [("x/turn-1", 1), ("x/turn-2", 3)]
    targets = [row for row in rows_of("sft", file, dialogs="every_turn") if isinstance(row, SftRow)]
    assert [(row.id, row.messages[-1].content) for row in targets] == [("x/turn-1", "Hello."), ("x/turn-2", "Bye!")]
    # Only the last turn was compared.
    assert len(rows_of("preferences", file, dialogs="every_turn")) == 1


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [Q, A, Q2, GOOD]},
        {"conversations": [{"from": "human", "value": "Bye?"}, {"from": "gpt", "value": "Bye!"}]},
        {"prompt": "Bye?", "completion": "Bye!"},
        {"prompt": [Q2], "completion": [GOOD]},
        {"instruction": "Bye?", "input": "", "output": "Bye!"},
    ],
)
def test_files_to_fine_tune_on(tmp_path: Path, row: dict[str, Any]) -> None:
    (read,) = rows_of("sft", write(tmp_path / "f.jsonl", row | {"topic": "greeting"}))
    assert (read.messages[-2].content, read.messages[-1].content) == ("Bye?", "Bye!")
    assert (read.origin, read.meta) == ("given", {"topic": "greeting"})


def test_own_sft_rows_keep_their_columns(tmp_path: Path) -> None:
    (row,) = rows_of("sft", write(tmp_path / "f.jsonl", {"prompt": "Q", "completion": "A"}))
    scored = row.model_copy(update={"quality_score": 1.5, "difficulty_score": 2.0})
    file = tmp_path / "own.jsonl"
    file.write_text(scored.model_dump_json() + "\n", encoding="utf-8")
    assert rows_of("sft", file) == [scored]


def test_over_long_rows(tmp_path: Path) -> None:
    file = write(tmp_path / "f.jsonl", {"prompt": "x" * 90, "chosen": "abcde", "rejected": "abcdefg"})
    (row,) = rows_of("preferences", file, max_characters=101)
    assert "holds 102 characters of text; the limit is 101 (data.max_characters)" in row.reason
    (row,) = rows_of("preferences", file, max_characters=102)
    assert isinstance(row, PreferenceRow)


LONG = [
    ("[" * 100_000 + "\n", None, "invalid JSON"),
    (json.dumps(GOOD_ROW)[:-1] + ', "deep": ' + "[" * 300 + "]" * 300 + "}\n", None, "nested more than 64 levels"),
    (GOOD_ROW | {"chosen_reward": 10**400}, "chosen_reward", f"(or left out), found the number 1{'0' * 56}..."),
]


BETWEEN = [
    (case["row"] if "row" in case else GOOD_ROW | case["with"], case["field"], case["reason"]) for case in CASES["bad"]
]


@pytest.mark.parametrize(("row", "field", "reason"), [*BETWEEN, *LONG])
def test_a_bad_row_between_good_ones(tmp_path: Path, row: Any, field: str | None, reason: str) -> None:
    path = write(tmp_path / "bad.jsonl", GOOD_ROW, row, GOOD_ROW)
    (bad,) = [found for found in rows_of("preferences", path) if isinstance(found, RejectedRow)]
    assert (bad.file, bad.line, bad.field) == (str(path), 2, field)
    assert reason in bad.reason


@pytest.mark.parametrize("case", CASES["bad_alone"])
def test_a_bad_row_of_other_forms(tmp_path: Path, case: dict[str, Any]) -> None:
    (bad,) = rows_of(case["kind"], write(tmp_path / "f.jsonl", case["row"]))
    assert bad.field == case["field"]
    assert case["reason"] in bad.reason


@pytest.mark.parametrize(("roles", "place", "reason"), CASES["roles_out_of_order"])
def test_roles_out_of_order(tmp_path: Path, roles: str, place: int, reason: str) -> None:
    turns = [{"from": role, "value": f"text {n}"} for n, role in enumerate(roles.split())]
    row = {"conversations": turns, "chosen": "a", "rejected": "b"}
    (bad,) = rows_of("preferences", write(tmp_path / "f.jsonl", row))
    assert bad.field == f"conversations[{place}]"
    assert reason in bad.reason
    assert bad.value == json.dumps(turns[place])
