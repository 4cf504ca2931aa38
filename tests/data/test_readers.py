from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from data_files import SHARED, write

from alignloop.data.readers import read_preferences, read_prompts
from alignloop.errors import DataError
from alignloop.records import PreferenceRow

GOOD = {"prompt": "Hi?", "chosen": "Hello!", "rejected": "No."}


def read_one(tmp_path: Path, row: dict[str, Any]) -> PreferenceRow:
    return read_preferences([write(tmp_path / "one.jsonl", row)], max_bad_fraction=0.0).rows[0]


def test_canonical_rows(tmp_path: Path) -> None:
    row = read_one(
        tmp_path,
        GOOD | {"edited": "Hello, friend!", "strength": "better", "id": 7, "topic": "greeting", "meta": {"n": 1}},
    )
    assert [(m.role, m.content) for m in row.messages] == [("user", "Hi?")]
    assert (row.chosen, row.rejected, row.edited, row.strength) == ("Hello!", "No.", "Hello, friend!", "better")
    assert (row.id, row.annotator, row.meta) == ("7", "human", {"topic": "greeting", "n": 1})
    assert row.source.line == 1
    assert row.source.file.endswith("one.jsonl")
    turns = [{"from": role, "value": role} for role in ("system", "human", "gpt", "human")]
    dialog = read_one(tmp_path, {"messages": turns, "chosen": "a", "rejected": "b", "annotator": "judge"})
    assert [m.role for m in dialog.messages] == ["system", "user", "assistant", "user"]
    assert dialog.annotator == "judge"


def test_json_array_equals_json_lines(tmp_path: Path) -> None:
    rows = [GOOD, GOOD | {"prompt": "Who?"}]
    lines = read_preferences([write(tmp_path / "a.jsonl", *rows)], max_bad_fraction=0)
    # told apart by content, not by name; a byte order mark is no content
    (tmp_path / "b.jsonl").write_text("\ufeff" + json.dumps(rows, indent=1), encoding="utf-8")
    array = read_preferences([tmp_path / "b.jsonl"], max_bad_fraction=0)
    assert [r.id for r in lines.rows] == [r.id for r in array.rows]
    assert [r.source.line for r in array.rows] == [1, 2]
    (tmp_path / "c.json").write_text(json.dumps(GOOD, indent=1))  # one pretty-printed object
    assert len(read_preferences([tmp_path / "c.json"], max_bad_fraction=0).rows) == 1


def test_ids_are_unique_and_do_not_change(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", GOOD, GOOD, GOOD | {"id": "x"}, GOOD | {"id": "x"}, GOOD | {"id": "x~2"})
    ids = [row.id for row in read_preferences([first, first], max_bad_fraction=0).rows]
    assert len(set(ids)) == 10
    assert ids[2:5] == ["x", "x~3", "x~2"]
    assert ids == [row.id for row in read_preferences([first, first], max_bad_fraction=0).rows]
    assert ids[0].split("-")[0] == ids[1].split("-")[0]
    assert ids[0].endswith("-1")
    assert ids[1].endswith("-2")


def test_bytes_that_are_not_utf8_are_found(tmp_path: Path) -> None:
    good = json.dumps(GOOD).encode()
    latin = '{"prompt": "é", "chosen": "a", "rejected": "b"}'.encode("latin1")
    path = tmp_path / "latin.jsonl"
    path.write_bytes(good + b"\n" + latin + b"\n" + good + b"\r\n")
    result = read_preferences([path], max_bad_fraction=0.5)
    assert len(result.rows) == 2
    offset = len(good) + 1 + latin.index(0xE9)
    assert f"not UTF-8: byte 0xe9 at byte offset {offset}" in result.rejected[0].reason
    path.write_bytes(b"[\n" + latin + b"]")
    with pytest.raises(
        DataError, match=rf"(?s)latin.jsonl, element 1: not UTF-8: byte 0xe9 at byte offset {2 + latin.index(0xE9)}"
    ):
        read_preferences([path], max_bad_fraction=0.5)


def test_small_mercies(tmp_path: Path) -> None:
    row = read_one(tmp_path, GOOD | {"strength": "Slightly better", "edited": "Hello! "})
    assert row.strength == "slightly_better"  # the paper's own spelling
    assert row.edited is None  # edited into itself
    (tmp_path / "nan.jsonl").write_text('\n{"prompt": "a", "chosen": "b", "rejected": "c", "edited": NaN}\n\n')
    (row,) = read_preferences([tmp_path / "nan.jsonl"], max_bad_fraction=0).rows
    assert row.edited is None
    assert row.source.line == 2


def test_too_many_bad_rows_stop_the_run(tmp_path: Path) -> None:
    path = write(
        tmp_path / "p.jsonl", GOOD, "{\n", GOOD | {"chosen": ""}, GOOD | {"chosen": 1}, GOOD | {"prompt": ""}, GOOD
    )
    with pytest.raises(DataError) as error:
        read_preferences([path], max_bad_fraction=0.6)
    message = str(error.value)
    assert "4 of 6 rows (66.7%)" in message
    assert "60.0% (data.max_bad_fraction)" in message
    assert "p.jsonl, line 2: invalid JSON" in message
    assert "p.jsonl, line 3, field chosen: is empty" in message
    assert "p.jsonl, line 4, field chosen" in message
    assert "line 5" not in message
    assert "1 more" in message
    assert len(read_preferences([path], max_bad_fraction=0.67).rejected) == 4


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("prefs.json", None, r"no such file.*did you mean prefs.jsonl\?"),
        ("no/prefs.jsonl", None, "folder .* does not exist"),
        (".", None, "is a directory.*prefs.jsonl"),
        ("empty.jsonl", b"", "the file is empty"),
        ("blank.jsonl", b"\xef\xbb\xbf \n\n", "the file is empty"),
        ("list.json", b"[]", "the JSON array is empty"),
        (
            "broken.json",
            b'[{"prompt": "a"},\n {"prompt" "b"}]',
            "none of its 2 rows.*element 2: invalid JSON at line 2, byte offset 29 of the file: Expecting",
        ),
        ("table.csv", b"a,b\n1,2\n", "table.csv: rows of no known form: their columns are a, b. Known.*sharegpt"),
        ("numbers.jsonl", b"1\n2\n", "line 1: the number 1 is not a JSON object"),
        ("other.jsonl", b'{"ask": "a", "answer": "b"}', "columns are ask, answer.*canonical: prompt.*data.columns"),
        ("none.jsonl", b'{"prompt": "a", "chosen": "b"}', "its one row cannot be read\n.*field rejected"),
        ("x.parquet", b"PAR1....", "Parquet file cannot be read.*Is it whole"),
        ("wide.jsonl", '{"prompt": "a"}'.encode("utf-16"), "UTF-16 text"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    write(tmp_path / "prefs.jsonl", GOOD)
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"(?s){message}"):
        read_preferences([tmp_path / name], max_bad_fraction=1.0)


def test_prompts(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", {"prompt": "Hi?", "key": 3}, GOOD, {"prompt": ""})
    result = read_prompts([path], max_bad_fraction=0.5)
    assert [(row.messages[0].content, row.meta) for row in result.rows] == [("Hi?", {"key": 3}), ("Hi?", {})]
    assert result.forms == {str(path): "canonical"}
    assert result.rejected[0].line == 3


@pytest.mark.parametrize(
    ("name", "form", "num_rows", "num_rejected"),
    [
        ("preferences/sharegpt_en.jsonl", "sharegpt", 200, 0),
        ("preferences/sharegpt_zh.json", "sharegpt", 120, 0),
        ("preferences/alpacaeval_graded.jsonl", "canonical", 395, 5),  # five models answered nothing
    ],
)
def test_real_files(name: str, form: str, num_rows: int, num_rejected: int) -> None:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    result = read_preferences([path], max_bad_fraction=0.02)
    assert result.forms == {str(path): form}
    assert (len(result.rows), len(result.rejected)) == (num_rows, num_rejected)
    assert all(row.reason == "is empty" and row.field == "rejected" for row in result.rejected)
    if name.endswith("en.jsonl"):
        users = [sum(m.role == "user" for m in row.messages) for row in result.rows]
        assert sum(count > 1 for count in users) == 74
        assert sum(row.messages[0].role == "system" for row in result.rows) == 50
