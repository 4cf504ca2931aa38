from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from alignloop.data.jsonl import dump_jsonl, load_jsonl
from alignloop.errors import DataError, DiskFullError
from alignloop.records import DroppedRow, Message, PromptRow, Row, Source


def prompts(count: int) -> Iterator[PromptRow]:
    for n in range(count):
        yield PromptRow(
            id=f"p{n}", messages=[Message(role="user", content=f"line\u2028 {n} 日本 😀\r\n")], source=Source(file="f")
        )


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert dump_jsonl(path, prompts(3)) == 3
    assert path.read_bytes().count(b"\n") == 3
    assert list(load_jsonl(path, PromptRow)) == list(prompts(3))
    assert dump_jsonl(path, iter(())) == 0
    assert list(load_jsonl(path, PromptRow)) == []


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
    rows: list[Row] = list(prompts(5))
    with pytest.raises(DiskFullError, match="/dev/full: the disk is full"):
        dump_jsonl(full, rows)
