"""Rows on disk: our own read back as they were written; converted files whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from data_files import SHARED, rows_of, write
from pyarrow import parquet

from alignloop.data.convert import convert, rejected_beside, row_file
from alignloop.data.jsonl import dump_jsonl, load_jsonl
from alignloop.data.readers import read_preferences
from alignloop.errors import DataError, DiskFullError, UserError
from alignloop.records import DroppedRow, Message, PreferenceRow, PromptRow, RejectedRow, SftRow, Source

GOOD = {
    "prompt": "Hi?",
    "chosen": "Hello!",
    "rejected": "No.",
    "strength": "better",
    "topic": "greeting",
    "n": [1, {"a": None}],
}
FILES = ("sharegpt_en.jsonl", "sharegpt_zh.json", "alpacaeval_graded.jsonl")


def without_place(row: PreferenceRow) -> dict[str, Any]:
    """A row without where it stands, and without where it stood before."""
    values = row.model_dump(exclude={"source"})
    values["meta"].pop("source", None)
    return values


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_the_converted_file_holds_the_same_rows(tmp_path: Path, suffix: str) -> None:
    given = write(tmp_path / "a.jsonl", GOOD, GOOD | {"edited": "Hello, you!", "id": "x"}, GOOD | {"id": "x"}, "{\n")
    before = read_preferences([given], max_bad_fraction=0.5)
    done = convert([given], out=tmp_path / f"rows{suffix}")
    assert (done.num_read, done.num_kept, done.num_rejected, done.num_rows) == (4, 3, 1, 3)
    after = read_preferences([done.out], max_bad_fraction=0)
    assert [without_place(row) for row in after.rows] == [without_place(row) for row in before.rows]
    assert after.rows[2].meta["source"] == {"file": str(given), "line": 3}
    assert done.rejected == rejected_beside(done.out)
    (bad,) = load_jsonl(rejected_beside(done.out), RejectedRow)
    assert (bad.file, bad.line) == (str(given), 4)
    again = convert([done.out], out=tmp_path / f"again{suffix}")
    assert [without_place(row) for row in read_preferences([again.out], max_bad_fraction=0).rows] == [
        without_place(row) for row in before.rows
    ]
    assert not rejected_beside(again.out).exists()


def test_parquet_columns(tmp_path: Path) -> None:
    convert([write(tmp_path / "a.jsonl", GOOD)], out=tmp_path / "rows.parquet")
    table = parquet.read_table(tmp_path / "rows.parquet")
    assert table.column_names == list(PreferenceRow.model_fields)
    assert table["messages"][0].as_py() == [{"role": "user", "content": "Hi?"}]
    assert json.loads(table["meta"][0].as_py()) == {"topic": "greeting", "n": [1, {"a": None}]}


@pytest.mark.parametrize("name", FILES)
def test_real_files(tmp_path: Path, name: str) -> None:
    if not (SHARED / "preferences" / name).is_file():
        pytest.skip(f"{SHARED / 'preferences' / name} is not there")
    before = read_preferences([SHARED / "preferences" / name], max_bad_fraction=0.02)
    done = convert([SHARED / "preferences" / name], out=tmp_path / "rows.parquet")
    after = read_preferences([done.out], max_bad_fraction=0)
    assert [without_place(row) for row in after.rows] == [without_place(row) for row in before.rows]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_sft_rows_keep_every_column(tmp_path: Path, suffix: str) -> None:
    row = SftRow(
        id="a",
        messages=[Message(role="user", content="Q"), Message(role="assistant", content="A")],
        origin="best_of_k",
        quality_score=0.5,
        source=Source(file="round-01"),
        meta={"n": 1},
    )
    with row_file(tmp_path / f"rows{suffix}", SftRow) as add:
        add(row)
    assert rows_of("sft", tmp_path / f"rows{suffix}") == [row]


def test_nothing_is_written_in_part(tmp_path: Path) -> None:
    good = write(tmp_path / "a.jsonl", GOOD)
    out = write(tmp_path / "out.jsonl", GOOD)
    with pytest.raises(UserError, match="exists; name another file, or pass --overwrite"):
        convert([good], out=out)
    with pytest.raises(UserError, match="is one of the files to convert"):
        convert([out], out=out, overwrite=True)
    before = out.read_bytes()
    bad = write(tmp_path / "b.jsonl", {"prompt": "a", "chosen": "b"})
    with pytest.raises(DataError, match=r"none of its 1 rows can be read; reasons: .*out.rejected_rows.jsonl"):
        convert([good, bad], out=out, overwrite=True)
    assert out.read_bytes() == before
    assert len(list(load_jsonl(rejected_beside(out), RejectedRow))) == 1
    assert not list(tmp_path.glob(".*"))
    with pytest.raises(UserError, match=r"written as .jsonl or .parquet"):
        convert([good], out=tmp_path / "out.csv")
    convert([good], out=out, overwrite=True)
    assert not rejected_beside(out).exists()
    assert [row.id for row in rows_of("preferences", out) if isinstance(row, PreferenceRow)]


PROMPTS = [
    PromptRow(
        id=f"p{n}", messages=[Message(role="user", content=f"line\u2028 {n} 日本 😀\r\n")], source=Source(file="f")
    )
    for n in range(3)
]


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    for rows in (PROMPTS, []):
        assert dump_jsonl(tmp_path / "rows.jsonl", rows) == len(rows)
        assert (tmp_path / "rows.jsonl").read_bytes().count(b"\n") == len(rows)
        assert list(load_jsonl(tmp_path / "rows.jsonl", PromptRow)) == rows


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "a", "stage": "s", "rule": "r"}', "line 2, field reason: is missing"),
        (
            '{"id": "a", "stage": "s", "rule": "r", "reason": 3}',
            "line 2, field reason: must be a text, found the number 3",
        ),
        ('{"id": "a", "stage": "s", "rule": "r", "reason": "x", "y": 1}', "line 2, field y: is not a column"),
        ('{"id": ', "line 2: invalid JSON"),
    ],
)
def test_bad_lines_name_file_line_and_field(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"id": "a", "stage": "s", "rule": "r", "reason": "x"}}\n{line}\n')
    rows = load_jsonl(path, DroppedRow)
    assert next(rows).id == "a"  # streamed: the first row is there before the second is looked at
    with pytest.raises(DataError, match=f"rows.jsonl, {message}"):
        next(rows)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none.jsonl: cannot be read"):
        list(load_jsonl(tmp_path / "none.jsonl", DroppedRow))


def test_full_disk_is_named() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(DiskFullError, match="/dev/full: the disk is full"):
        dump_jsonl(full, PROMPTS)
