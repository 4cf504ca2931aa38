"""Dialogs with tools, as files have them: one text of calls, one turn of descriptions, or a reason by its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from data_files import write

from alignloop.chat.tool_turns import join_calls, split_calls
from alignloop.data.readers import read_preferences, read_prompts, read_sft
from alignloop.data.reading import Reading
from alignloop.records import RejectedRow

ASK = {"role": "user", "content": "Which tree?"}
LOOK = {"name": "look", "arguments": {"what": "tree"}}
OPENAI = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"what": "tree"}'}}
SAYS = {"role": "tool", "tool_call_id": "c1", "content": "willow"}
ANSWER = {"role": "assistant", "content": "A willow."}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {}}}
CALLS = '<tool_calls>\n[{"name": "look", "arguments": {"what": "tree"}}]\n</tool_calls>'


def rows_of(file: Path, read: Any = read_sft, **options: Any) -> list[Any]:
    rows: list[Any] = read([file], max_bad_fraction=0.0, **options).rows
    return rows


def turns(row: Any) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in row.messages]


WHOLE = [
    ("tools", json.dumps([TOOL])),
    ("user", "Which tree?"),
    ("assistant", CALLS),
    ("tool", "willow"),
    ("assistant", "A willow."),
]


@pytest.mark.parametrize(
    "row",
    [
        {
            "messages": [ASK, {"role": "assistant", "content": None, "tool_calls": [OPENAI]}, SAYS, ANSWER],
            "tools": [TOOL],
        },
        {
            "messages": [
                ASK,
                {"role": "assistant", "function_call": OPENAI["function"]},
                SAYS | {"role": "ipython"},
                ANSWER,
            ],
            "functions": json.dumps([TOOL["function"]]),
        },
        {
            "conversations": [
                {"from": "human", "value": "Which tree?"},
                {"from": "function_call", "value": json.dumps(LOOK)},
                {"from": "observation", "value": "willow"},
                {"from": "gpt", "value": "A willow."},
            ],
            "tools": json.dumps([TOOL]),
        },
    ],
)
def test_every_spelling_is_one_dialog(tmp_path: Path, row: dict[str, Any]) -> None:
    (made,) = rows_of(write(tmp_path / "a.jsonl", row))
    assert turns(made) == WHOLE
    assert made.meta.keys() <= {"beside"}  # a tool_call_id is carried along
    # What alignloop writes it reads as the same.
    (again,) = rows_of(write(tmp_path / "b.jsonl", {"messages": [m.model_dump() for m in made.messages]}))
    assert turns(again) == WHOLE


def test_a_turn_that_calls_is_a_target_and_a_preference_may_compare_calls(tmp_path: Path) -> None:
    calls = {"role": "assistant", "content": "Let me look.", "tool_calls": [OPENAI]}
    file = write(tmp_path / "a.jsonl", {"messages": [ASK, calls, SAYS, ANSWER], "tools": [TOOL], "system": "Be brief."})
    first, second = rows_of(file, dialogs="every_turn")
    assert first.target.text == f"Let me look.\n{CALLS}"
    assert [role for role, _ in turns(second)] == ["tools", "system", "user", "assistant", "tool", "assistant"]
    pair = {
        "prompt": [ASK],
        "chosen": [calls],
        "rejected": [{"role": "assistant", "content": "An oak."}],
        "tools": [TOOL],
    }
    (row,) = rows_of(write(tmp_path / "b.jsonl", pair), read_preferences)
    assert (row.chosen, row.rejected, row.messages[0].role) == (f"Let me look.\n{CALLS}", "An oak.", "tools")
    after = {"messages": [ASK, calls, SAYS], "chosen": "A willow.", "rejected": "An oak."}
    (row,) = rows_of(write(tmp_path / "c.jsonl", after), read_preferences)
    assert row.messages[-1].role == "tool"
    (prompt,) = rows_of(write(tmp_path / "d.jsonl", {"messages": [ASK, calls, SAYS]}), read_prompts)
    assert prompt.messages[-1].content == "willow"


@pytest.mark.parametrize(
    ("row", "field", "words"),
    [
        ({"messages": [ASK, ANSWER, SAYS, ANSWER]}, "messages[2]", "answers no call"),
        (
            {"messages": [ASK, {"role": "assistant", "tool_calls": [{"id": "1"}]}, SAYS, ANSWER]},
            "tool_calls[0].name",
            "name",
        ),
        (
            {"messages": [ASK, {"role": "assistant", "tool_calls": [LOOK | {"arguments": "{"}]}]},
            "arguments",
            "must be JSON",
        ),
        (
            {"messages": [ASK, {"role": "assistant", "tool_calls": [LOOK | {"arguments": "3"}]}]},
            "arguments",
            "an object",
        ),
        ({"messages": [ASK | {"tool_calls": [LOOK]}, ANSWER]}, "messages[0].tool_calls", "only the assistant calls"),
        ({"messages": [ASK, ANSWER], "tools": [{"type": "x"}]}, "tools[0]", "names a tool"),
        ({"messages": [ASK, ANSWER], "tools": [TOOL], "functions": [TOOL]}, "functions", "beside tools"),
        ({"messages": [ASK | {"tools": [TOOL]}, ANSWER]}, "messages[0].tools", "column of the row"),
        (
            {"messages": [ASK, {"role": "assistant", "tool_calls": [LOOK], "function_call": LOOK}, SAYS, ANSWER]},
            "messages[1].function_call",
            "beside tool_calls",
        ),
        (
            {"messages": [ASK, {"role": "assistant", "tool_calls": [LOOK]}, SAYS, SAYS, ANSWER]},
            "messages[3]",
            "no call",
        ),
    ],
)
def test_what_is_wrong_is_named_by_its_place(tmp_path: Path, row: dict[str, Any], field: str, words: str) -> None:
    (bad,) = Reading(write(tmp_path / "a.jsonl", row), "sft")
    assert isinstance(bad, RejectedRow)
    assert field in str(bad.field)
    assert words in bad.reason


def test_calls_are_taken_apart_only_where_they_end_a_text() -> None:
    assert split_calls(join_calls("A\n\nB", "[]")) == (join_calls("A\n\nB", "[]"), "")  # no call at all
    calls = json.dumps([LOOK])
    for text in ("", "Let me look.", "One.\n\nTwo.\n"):
        assert split_calls(join_calls(text, calls)) == (text, calls)
    for text in (
        f"{CALLS} And so on.",
        CALLS.replace("arguments", "args"),
        f"Say {CALLS}",
        "<tool_calls>\n[x]\n</tool_calls>",
    ):
        assert split_calls(text) == (text, "")
