"""No input makes a traceback, and every row of every file is accounted for."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from data_files import SHARED
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from alignloop.data.check_files import check_file
from alignloop.data.columns import TARGETS
from alignloop.data.forms import FORMS
from alignloop.data.reading import Kind, Reading
from alignloop.data.rows import Options
from alignloop.errors import DataError
from alignloop.records import PreferenceRow, RejectedRow

KINDS: tuple[Kind, ...] = ("preferences", "prompts", "sft")
FORM_NAMES = [None, *(form.name for form in FORMS)]
PIECES = [*(piece.encode() for piece in '{" "} [ ] { } , " : \\ a 1 {"prompt":"a"} PAR1'.split()), b"\n"]
PIECES += [b"\xef\xbb\xbf", b"\xff", b"\x1f\x8b", b"\x28\xb5\x2f\xfd"]
"""JSON's own marks, and the first bytes of other kinds of files."""
TABLES = (".parquet", ".arrow")
PATHS = ("prompt[0].content", "a.b", "[", "..", "x")
CELLS = ('[{"role":"user","content":"a"}]', "[{'role'", '"', "1.5")
fuzz = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])

KEYS = st.sampled_from(
    "prompt messages chosen rejected edited strength conversations instruction input output history system id meta "
    "completions ranking responses scores ranks score rank text role content from value completion annotator source "
    "origin question context response answers answer helpfulness label chosen_response rejected_response response1 "
    "response2 overall_preference system_prompt reasoning_content thinking tool_calls tools images weight type".split()
)
TEXTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["user", "assistant", "human", "gpt", "\n\nHuman: a\n\nAssistant: b", "better", "", "\0", "a b"]),
    st.sampled_from(["tool", "text", "\n\nHuman: a\n\nAssistant:", "<think>a</think>b", "false"]),
)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXTS)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.one_of(KEYS, TEXTS), inner, max_size=4)),
    max_leaves=12,
)
ROWS = st.dictionaries(KEYS, VALUES, max_size=6)


def accounted(
    content: bytes, form: str | None = None, *, name: str = "rows.jsonl", columns: dict[str, str] | None = None
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / name
        file.write_bytes(content)
        for kind in KINDS:
            account(file, kind, form if kind == "preferences" else None, columns)
        with suppress(DataError):
            check_file(file, workers=1)


def account(file: Path, kind: Kind, form: str | None, columns: dict[str, str] | None = None) -> None:
    kept: set[int | None] = set()
    rejected: list[int | None] = []
    try:
        reading: Reading[PreferenceRow] = Reading(file, kind, form=form, options=Options(columns=columns or {}))
        for row in reading:
            if isinstance(row, RejectedRow):
                rejected.append(row.line)
                assert row.reason
                row.model_dump_json().encode("utf-8")
            else:
                kept.add(row.source.line)
                assert type(row).model_validate_json(row.model_dump_json()) == row
    except DataError:
        assert not kept or file.suffix in TABLES  # a table may break off
        return
    assert reading.num_read == reading.num_kept + reading.num_rejected
    assert len(rejected) == reading.num_rejected
    assert len(kept) == reading.num_kept or (reading.form.grouped and len(kept) < reading.num_kept)
    assert kept.isdisjoint(rejected)


@fuzz
@given(st.binary(max_size=200))
def test_arbitrary_bytes(content: bytes) -> None:
    accounted(content)


@fuzz
@given(st.lists(st.sampled_from(PIECES), max_size=30))
def test_arbitrary_pieces_of_json(pieces: list[bytes]) -> None:
    accounted(b"".join(pieces))


@fuzz
@given(
    st.lists(ROWS, min_size=1, max_size=4),
    st.sampled_from(FORM_NAMES),
    st.booleans(),
    st.dictionaries(
        st.sampled_from(TARGETS), st.one_of(KEYS, st.sampled_from(["prompt[0].content", "a.b", "[", "..", "x"]))
    ),
)
def test_arbitrary_rows(rows: list[dict[str, Any]], form: str | None, array: bool, columns: dict[str, str]) -> None:
    text = json.dumps(rows) if array else "".join(json.dumps(row) + "\n" for row in rows)
    accounted(text.encode(), form)
    accounted(text.encode(), form, columns=columns)


@fuzz
@given(
    st.lists(st.lists(st.one_of(KEYS, TEXTS, st.sampled_from(['[{"role":"user","content":"a"}]', "[{'role'", '"']))))
)
def test_arbitrary_cells(lines: list[list[str]]) -> None:
    with io.StringIO() as text:
        csv.writer(text).writerows(lines)
        content = text.getvalue().encode("utf-8", "surrogatepass")
    accounted(content, name="rows.csv")
    accounted(content.replace(b'"', b""), name="rows.csv")


@pytest.mark.parametrize("suffix", TABLES)
@settings(fuzz, max_examples=20)
@given(data=st.data())
def test_mutated_tables(suffix: str, data: st.DataObject) -> None:
    turns = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": None}]
    rows = [{"prompt": f"Q{n}", "chosen": "a" * n, "rejected": "b", "turns": turns, "n": n} for n in range(4)]
    table = pa.Table.from_pylist(rows)
    with io.BytesIO() as file:
        if suffix == ".parquet":
            parquet.write_table(table, file)
        else:
            with pa.ipc.new_stream(file, table.schema) as out:
                out.write_table(table)
        content = bytearray(file.getvalue())
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(4, len(content) - 5))
        if data.draw(st.booleans()):
            content[at] = data.draw(st.integers(0, 255))
        else:
            del content[at : at + data.draw(st.integers(1, 40))]
    accounted(bytes(content), name=f"rows{suffix}")


def real_rows() -> list[bytes]:
    files = [SHARED / "preferences/sharegpt_en.jsonl", SHARED / "preferences/alpacaeval_graded.jsonl"]
    return [line for file in files if file.is_file() for line in file.read_bytes().splitlines()[:20]]


@pytest.mark.skipif(not real_rows(), reason="../shared/data is not there")
@fuzz
@given(st.data())
def test_mutated_real_rows(data: st.DataObject) -> None:
    rows = real_rows()
    mutated = []
    for index in data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=3)):
        row = bytearray(rows[index])
        for _ in range(data.draw(st.integers(0, 4))):
            at = data.draw(st.integers(0, len(row) - 1))
            action = data.draw(st.sampled_from(["set", "cut", "insert", "repeat"]))
            if action == "set":
                row[at] = data.draw(st.integers(0, 255))
            elif action == "cut":
                del row[at : at + data.draw(st.integers(1, 200))]
                row = row or bytearray(b"{}")
            elif action == "insert":
                row[at:at] = data.draw(st.sampled_from([b"\0", b"\\u0000", b"\\ud800", b'"', b"\xff", b"}", b"null"]))
            else:
                row[at:at] = row[at : at + 50]
        mutated.append(bytes(row))
    accounted(b"\n".join(mutated))


@fuzz
@example(found=[-(2**63) - 1, 2**64])  # a row that is one number, of which orjson makes a float
@given(st.lists(VALUES, max_size=4))
def test_the_fast_parser_reads_what_pythons_reads(found: list[Any]) -> None:
    """Where the fast parser gives a value it is the careful one's; where not, the careful one has the say."""
    from alignloop.data.parsing import _parse_carefully, parse_row
    from alignloop.data.problems import BadRow

    for value in found:
        data = json.dumps(value).encode()
        try:
            fast = parse_row(data, line=1, offset=0)
        except BadRow:
            with pytest.raises(BadRow):
                _parse_carefully(data, line=1, offset=0)
        else:
            assert repr(fast) == repr(_parse_carefully(data, line=1, offset=0))


NAMES = (
    "preferences/sharegpt_en.jsonl",
    "preferences/sharegpt_zh.json",
    "preferences/alpacaeval_graded.jsonl",
    "candidates/alpacaeval_120x20.jsonl",
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_real_files_are_accounted_for(name: str, kind: Kind) -> None:
    file = SHARED / name
    if not file.is_file():
        pytest.skip(f"{file} is not there")
    account(file, kind, None)
