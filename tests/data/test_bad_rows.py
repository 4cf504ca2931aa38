"""Every way in which a row goes wrong: the field that is named, as the file calls it, and the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from data_files import rows_of, write

from alignloop.data.reading import Kind
from alignloop.records import RejectedRow

GOOD = {"prompt": "Hi?", "chosen": "Hello!", "rejected": "No."}
Q, A = {"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}
Q2 = {"role": "user", "content": "Bye?"}
BEST, WORST = {"role": "assistant", "content": "Bye!"}, {"role": "assistant", "content": "No."}
HH = "\n\nHuman: Hi?\n\nAssistant: Hello.\n\nHuman: Bye?\n\nAssistant:"
PAIR = {"chosen": "a", "rejected": "b"}
OWN_SFT = {"id": "a", "origin": "given", "source": {"file": "f"}}
LONE = "\ud800"
MISSING = "is missing: every preference row needs"
CANONICAL: list[tuple[Any, str | None, str]] = [
    ('{"prompt": "Hi"\n', None, "invalid JSON at column"),
    ("[" * 100_000 + "\n", None, "invalid JSON"),
    (["Hi?"], None, "must be a JSON object, found the list"),
    ({"prompt": "Hi?", "rejected": "No."}, "chosen", MISSING),
    (GOOD | {"rejected": None}, "rejected", MISSING),
    (GOOD | {"chosen": " No. "}, None, "same text"),
    (GOOD | {"chosen": 5}, "chosen", "must be a text, found the number 5"),
    (GOOD | {"chosen": " \n"}, "chosen", "is empty"),
    (GOOD | {"chosen": {"from": "human", "value": "x"}}, "chosen", "must be the assistant's turn, not the user's"),
    (GOOD | {"prompt": " "}, "prompt", "is empty"),
    (GOOD | {"prompt": ["Hi"]}, "prompt", "is a list that holds no turns"),
    (GOOD | {"prompt": 3}, "prompt", "must be a text"),
    (GOOD | {"prompt": "a\0b"}, "prompt", "NUL character (character 2)"),
    (GOOD | {"prompt": "a\ud83d"}, "prompt", "lone surrogate \\ud83d (character 2)"),
    (GOOD | {"strength": "much_better"}, "strength", "allowed: significantly_better, better, slightly_better, marg"),
    (GOOD | {"strength": 2}, "strength", "must be a text"),
    (GOOD | {"edited": "No."}, "edited", "same text as rejected"),
    (GOOD | {"meta": [1]}, "meta", "must be an object"),
    (GOOD | {"tags": ["a", "b\0"]}, "meta.tags[1]", "NUL"),
    (json.dumps(GOOD)[:-1] + ', "deep": ' + "[" * 300 + "]" * 300 + "}\n", None, "nested more than 64 levels"),
    (PAIR | {"messages": []}, "messages", "is empty"),
    (PAIR | {"messages": [A]}, "messages[0]", "must be the user"),
    (PAIR | {"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "'tool' is a tool's turn"),
    (PAIR | {"messages": [{"role": "user"}]}, "messages[0].content", "is missing or null"),
    (PAIR | {"messages": ["x"]}, "messages[0]", "must be an object"),
    (GOOD | {"chosen_finish_reason": "eos"}, "chosen_finish_reason", "be stop or length (or left out), found the text"),
    (GOOD | {"rejected_finish_reason": 1}, "rejected_finish_reason", "must be stop or length (or left out), found"),
    (GOOD | {"compared_by": "robots"}, "compared_by", "must be people, judge or simulated (or left out), found the"),
    (GOOD | {"chosen_reward": "high"}, "chosen_reward", "must be a finite number (or left out), found the text 'high'"),
    (GOOD | {"chosen_reward": 10**400}, "chosen_reward", f"(or left out), found the number 1{'0' * 56}..."),
]
RANKED: list[tuple[dict[str, Any], str | None, str]] = [
    ({"ranking": ["a"]}, "ranking", "holds 1 completions"),
    ({"ranking": ["a", ""]}, "ranking[1]", "is empty"),
    ({"ranking": ["a", "a"]}, None, "same text"),
    ({"completions": ["a", "b"], "scores": [1, 1]}, "completions", "equal: none is better"),
    ({"completions": ["a", "b"], "scores": [1]}, "scores", "must be a list of 2 numbers"),
    ({"completions": ["a", "b"], "scores": [1, "x"]}, "scores[1]", "must be a number"),
    ({"completions": [{"text": "a", "rank": 1}, {"text": "b"}]}, "completions[1].rank", "must be a number"),
    ({"completions": [{"rank": 1}, {"text": "b", "rank": 2}]}, "completions[0]", "holds no text"),
]
OTHERS: list[tuple[Kind, dict[str, Any], str | None, str]] = [
    *(("preferences", {"prompt": "Q"} | columns, field, reason) for columns, field, reason in RANKED),
    ("preferences", {"chosen": [Q, A], "rejected": [Q, A, Q2, WORST]}, "rejected", "holds 3 turns after the 1"),
    ("preferences", {"chosen": [Q, A], "rejected": [Q]}, "chosen", "holds 2 turns after the 0"),
    ("preferences", {"chosen": [Q, Q2], "rejected": [Q, WORST]}, "chosen[1]", "must end with the assistant's turn"),
    ("preferences", {"chosen": f"{HH} ", "rejected": f"{HH} x"}, "chosen[3]", "is empty"),
    ("preferences", {"prompt": "O", "chosen": [Q, A], "rejected": [Q, WORST]}, "prompt", "is none of the user turns"),
    ("preferences", {"instruction": "a", "output": ["x"]}, "output", "must be two texts"),
    ("preferences", {"instruction": "a", "history": ["x"], "output": ["x", "y"]}, "history[0]", "must be [question, a"),
    ("preferences", {"instruction": "", "output": ["x", "y"]}, "instruction", "is empty"),
    ("preferences", {"chosen": "yes", "rejected": "no"}, "chosen", "begins with no words"),
    ("sft", {"messages": [Q]}, "messages[0]", "the last turn must be the assistant's"),
    ("sft", {"prompt": "Q", "completion": " "}, "completion", "is empty"),
    ("sft", {"prompt": 3, "completion": "A"}, "prompt", "must be a text"),
    ("sft", {"instruction": "Q", "output": 3}, "output", "must be a text, found the number 3"),
    ("sft", {"messages": [Q, A | {"content": "", "thinking": "Hm."}]}, "messages[1].thinking", "is no answer"),
    # What cannot be written again.
    ("sft", GOOD | {"annotator": [LONE]}, "annotator[0]", "lone surrogate"),
    ("sft", GOOD | {"strength": {LONE: 1}}, "strength", "lone surrogate"),
    ("sft", OWN_SFT | {"messages": [Q2, BEST], "meta": {"a": [LONE]}}, "meta.a[0]", "lone surrogate"),
    ("sft", OWN_SFT | {"messages": [Q2, BEST | {"content": LONE}]}, "messages[1].content", "lone surrogate"),
]
TURNS = [
    ("user user", 1, "two user turns follow each other"),
    ("user assistant assistant user", 2, "two assistant turns follow each other"),
    ("assistant user", 0, "begins with the assistant's turn"),
    ("system assistant user", 1, "begins with the assistant's turn"),
    ("user system user", 1, "a system turn must be the first"),
    ("system system user", 1, "a system turn must be the first"),
    ("user assistant", 1, "the last turn must be the user's"),
]


@pytest.mark.parametrize(("row", "field", "reason"), CANONICAL)
def test_a_bad_row_between_good_ones(tmp_path: Path, row: Any, field: str | None, reason: str) -> None:
    path = write(tmp_path / "bad.jsonl", GOOD, row, GOOD)
    (bad,) = [found for found in rows_of("preferences", path) if isinstance(found, RejectedRow)]
    assert (bad.file, bad.line, bad.field) == (str(path), 2, field)
    assert reason in bad.reason


@pytest.mark.parametrize(("kind", "row", "field", "reason"), OTHERS)
def test_a_bad_row_of_other_forms(
    tmp_path: Path, kind: Kind, row: dict[str, Any], field: str | None, reason: str
) -> None:
    (bad,) = rows_of(kind, write(tmp_path / "f.jsonl", row))
    assert bad.field == field
    assert reason in bad.reason


@pytest.mark.parametrize(("roles", "place", "reason"), TURNS)
def test_roles_out_of_order(tmp_path: Path, roles: str, place: int, reason: str) -> None:
    turns = [{"from": role, "value": f"text {n}"} for n, role in enumerate(roles.split())]
    (row,) = rows_of("preferences", write(tmp_path / "f.jsonl", PAIR | {"conversations": turns}))
    assert row.field == f"conversations[{place}]"
    assert reason in row.reason
    assert row.value == json.dumps(turns[place])
