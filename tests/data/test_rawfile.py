"""Bytes of every kind -> raw rows with their places."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from data_files import rows_of
from pyarrow import parquet

from alignloop.data import parsing
from alignloop.data.parsing import Splitter, parse_row
from alignloop.data.problems import BadRow
from alignloop.data.rawfile import open_rows
from alignloop.data.readers import read_preferences
from alignloop.errors import DataError
from alignloop.records import PreferenceRow, RejectedRow

ROWS = [{"prompt": f"Q{n}?", "chosen": 'a "quoted", [b]', "rejected": "c\\", "meta": {"n": n}} for n in range(5)]


def lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def values(path: Path, content: bytes) -> list[Any]:
    path.write_bytes(content)
    return [row.value if row.problem is None else row.problem.reason for row in open_rows(path).rows()]


@pytest.mark.parametrize("block", [1, 7, 2**20])
def test_arrays_objects_and_lines_hold_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(parsing, "_BLOCK", block)
    pretty = "\n".join(json.dumps(row, indent=2) for row in ROWS).encode()
    for content in (
        lines(ROWS),
        json.dumps(ROWS).encode(),
        json.dumps(ROWS, indent=1).encode(),
        pretty,
        b"\xef\xbb\xbf" + pretty,
        json.dumps(ROWS[:2]).encode() + b"\n" + json.dumps(ROWS[2:]).encode(),
        gzip.compress(lines(ROWS)),
        gzip.compress(json.dumps(ROWS).encode()),
        pa.compress(lines(ROWS), codec="zstd", asbytes=True),
    ):
        assert values(tmp_path / "rows", content) == ROWS


def test_parquet_and_a_local_data_set(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    parquet.write_table(table, tmp_path / "rows.parquet")
    raw = open_rows(tmp_path / "rows.parquet")
    assert [row.value for row in raw.rows()] == ROWS
    assert [row.value for row in raw.rows()] == ROWS  # again
    assert raw.unit == "row"
    (tmp_path / "set").mkdir()
    parquet.write_table(table, tmp_path / "set" / "train.parquet")
    read = rows_of("preferences", f"hub:{tmp_path / 'set'}")
    assert [row.messages[0].content for row in read if isinstance(row, PreferenceRow)] == [
        row["prompt"] for row in ROWS
    ]
    with pytest.raises(DataError, match=r"the data set cannot be read.*split .test."):
        rows_of("preferences", f"hub:{tmp_path / 'set'}:test")


def test_a_hub_that_cannot_be_reached_is_named() -> None:
    code = "from alignloop.data.reading import Reading; list(Reading('hub:nobody/nothing', 'preferences'))"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert "DataError: hub:nobody/nothing: the data set cannot be read" in done.stderr
    assert "name a file that was downloaded before" in done.stderr


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            b'[{"a": 1}, {"a" 2}, {"a": 3}]',
            [{"a": 1}, "invalid JSON at line 1, byte offset 16 of the file: Expecting ':' delimiter", {"a": 3}],
        ),
        (
            b'[{"a": 1},\n {"a": "x},\n {"a": 3}]',
            [{"a": 1}, "invalid JSON at line 2, byte offset 18 of the file: Unterminated string", {"a": 3}],
        ),
        (b'[{"a": 1}, {"a": 2', [{"a": 1}, "the file ends before the array's end: it is cut short"]),
        (b'[{"a": 1}', ["the file ends before the array's end"]),
        (b'[{"a": 1}] and more', [{"a": 1}, "stands between the rows"]),
        (b'[{"a": 1}]]', [{"a": 1}, "closes a bracket that was never opened"]),
        (b'[{"a": 1},,]', [{"a": 1}]),
        (b'{"a": 1}\n{"a": 2\n', [{"a": 1}, "invalid JSON at column 8: Expecting ',' delimiter: it is cut short"]),
        (b'{"a": 1}\n{"a": "x\n', [{"a": 1}, "Unterminated string starting at: it is cut short"]),
        (b'{"a": 1}\n\xef\xbb\xbf{"a": 2}\r\n', [{"a": 1}, {"a": 2}]),
        (b'{"a": 1}\n{"a": "\0"}', [{"a": 1}, "holds a NUL byte at byte offset 16"]),
        (b'{"a": 1}\n{"a": 2, "b": 1, "a": 3}', [{"a": 1}, "stands 2 times in one object"]),
        (b'{"a": 1}\n{"a" : 2, "b": {"c": 1, "c":2}}', [{"a": 1}, "stands 2 times in one object"]),
        (b'{"a": 12345678901234567890123}', [{"a": 12345678901234567890123}]),
        (b'{"a": NaN}', [{"a": None}]),
    ],
)
def test_broken_rows_do_not_hide_those_after_them(tmp_path: Path, content: bytes, expected: list[Any]) -> None:
    found = values(tmp_path / "rows", content)
    assert len(found) == len(expected)
    for one, wanted in zip(found, expected, strict=True):
        assert wanted in one if isinstance(wanted, str) else one == wanted


def test_a_file_that_is_cut_short_is_not_read_in_part(tmp_path: Path) -> None:
    whole = json.dumps(ROWS * 100).encode()
    (tmp_path / "rows.json").write_bytes(whole[: len(whole) // 2])
    rows = rows_of("preferences", tmp_path / "rows.json")
    assert sum(isinstance(row, RejectedRow) for row in rows) == 1
    with pytest.raises(DataError, match=r"cut short.*What is after it is lost"):
        read_preferences([tmp_path / "rows.json"], max_bad_fraction=0.5)
    many = lines([row | {"noise": os.urandom(200).hex()} for row in ROWS * 2000])
    for name, content in (("a.gz", gzip.compress(many)), ("a.zst", pa.compress(many, codec="zstd", asbytes=True))):
        (tmp_path / name).write_bytes(content[:-200])
        with pytest.raises(DataError, match="cannot be read any further"):
            read_preferences([tmp_path / name], max_bad_fraction=0.5)
        assert sum(isinstance(row, RejectedRow) for row in rows_of("preferences", tmp_path / name)) in (1, 2)


def test_one_row_can_only_be_so_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from alignloop.data import rawfile

    monkeypatch.setattr(rawfile, "LONGEST", 100)
    monkeypatch.setattr(parsing, "LONGEST", 100)
    found = values(tmp_path / "a", b'{"a": 1}\n{"a": "' + b"x" * 500 + b'"}\n{"a": 2}\n')
    assert (found[0], found[2]) == ({"a": 1}, {"a": 2})
    assert "is longer than 64 MiB" in found[1]
    monkeypatch.setattr(parsing, "_BLOCK", 50)
    found = values(tmp_path / "b", b'[{"a": 1},\n {"a": "' + b"x" * 500)
    assert found[0] == {"a": 1}
    assert "is longer than 64 MiB" in found[1]


def test_utf16_without_a_byte_order_mark_is_named(tmp_path: Path) -> None:
    (tmp_path / "wide.jsonl").write_bytes('{"prompt": "a"}'.encode("utf-16-le"))
    with pytest.raises(DataError, match="looks like UTF-16"):
        open_rows(tmp_path / "wide.jsonl")


def test_places_of_elements(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_bytes(b'\xef\xbb\xbf[\n\n{"a": 1},\n  {"b": "\xe9"}]')
    bad = list(open_rows(tmp_path / "rows.json").rows())[1]
    assert bad.line == 2
    assert bad.problem is not None
    assert "byte 0xe9 at byte offset 25 " in bad.problem.reason.replace(".", " ")
    reader = iter([b'[1,\n\n 2, {"x": "]"}]', b""])
    found = [(e.data, e.line, e.offset) for e in Splitter(lambda size: next(reader))]
    assert found == [(b"1", 1, 1), (b"2", 3, 6), (b'{"x": "]"}', 3, 9)]


@pytest.mark.parametrize("text", ['{"a":1,"a":1}', '{"a\\"":1,"b":[{"c":1,"c":2}]}', '{"a" : 1, "b": 2, "b": 3}'])
def test_a_key_that_stands_twice_is_found(text: str) -> None:
    with pytest.raises(BadRow, match="stands 2 times"):
        parse_row(text.encode(), line=1, offset=0)


@pytest.mark.parametrize(
    "text", ['{"a\\\\":1}', '{"a\\"":1}', '{"a":"b\\":"}', '{"a":" :","b" :2}', '{"a":{"a":[{"a":{}}]}}']
)
def test_odd_keys_are_not_twice(text: str) -> None:
    assert parse_row(text.encode(), line=1, offset=0) == json.loads(text)
