"""Files of candidates: our own rows, and rows of the user's."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from data_files import SHARED, write

from alignloop.data.candidates import read_candidates
from alignloop.data.jsonl import dump_jsonl
from alignloop.errors import DataError
from alignloop.records import CandidateRow, Message

REAL = SHARED / "candidates/alpacaeval_120x20.jsonl"


def own(prompt: str, k: int, *, content: str | None = None) -> CandidateRow:
    return CandidateRow(
        id=f"{prompt}/1/{k}",
        prompt_id=prompt,
        messages=[Message(role="user", content=content or prompt)],
        completion="c",
        completion_ids=[1],
        finish_reason="stop",
        round=1,
        policy="p",
    )


def test_rows_of_the_users(tmp_path: Path) -> None:
    file = write(
        tmp_path / "own.jsonl",
        {"prompt": "Hi", "candidates": ["a", {"completion": "b", "generator": "g"}], "topic": "t"},
        {"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}], "candidates": [""]},
    )
    read = read_candidates(file, max_bad_fraction=0.0)
    first, second, third = read.rows
    assert [(row.completion, row.meta) for row in (first, second)] == [
        ("a", {"topic": "t"}),
        ("b", {"topic": "t", "generator": "g"}),
    ]
    assert first.messages[0].content == "Hi"
    assert [m.role for m in third.messages] == ["system", "user"]
    assert (read.has_ids, read.rejected) == (False, ())


@pytest.mark.parametrize(
    ("candidates", "reason"),
    [
        ([], "candidates: is empty"),
        ("text", "candidates: must be a list, found the text 'text'"),
        (["a", 3], r"candidates\[1\]: must be a text, found the number 3"),
        (["a", {"text": "b"}], r"candidates\[1\].completion: is missing or null"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, candidates: object, reason: str) -> None:
    file = write(
        tmp_path / "own.jsonl", {"prompt": "Hi", "candidates": ["a"]}, {"prompt": "Hi", "candidates": candidates}
    )
    with pytest.raises(DataError, match=f"1 of 2 rows cannot be read.*row 2, field {reason}"):
        read_candidates(file, max_bad_fraction=0.1)
    read = read_candidates(file, max_bad_fraction=0.5)
    assert (len(read.rows), len(read.rejected)) == (1, 1)


def test_files_that_hold_no_candidates(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_candidates(tmp_path / "none.jsonl", max_bad_fraction=0.0)
    with pytest.raises(DataError, match="the file is empty"):
        read_candidates(write(tmp_path / "empty.jsonl"), max_bad_fraction=0.0)
    prompts = write(tmp_path / "prompts.jsonl", {"prompt": "Hi", "chosen": "a", "rejected": "b"})
    with pytest.raises(
        DataError, match="holds no candidates; the columns of its first row are prompt, chosen, rejected"
    ):
        read_candidates(prompts, max_bad_fraction=0.0)


def test_own_rows_are_brought_together_by_prompt(tmp_path: Path) -> None:
    dump_jsonl(tmp_path / "c.jsonl", [own("x", 0), own("y", 0), own("x", 1)])
    assert [row.id for row in read_candidates(tmp_path / "c.jsonl", max_bad_fraction=0.0).rows] == [
        "x/1/0",
        "x/1/1",
        "y/1/0",
    ]


def test_ids_that_clash_are_refused(tmp_path: Path) -> None:
    dump_jsonl(tmp_path / "twice.jsonl", [own("x", 0), own("x", 0)])
    with pytest.raises(DataError, match="row 2: the id 'x/1/0' stands in an earlier row"):
        read_candidates(tmp_path / "twice.jsonl", max_bad_fraction=0.0)
    dump_jsonl(tmp_path / "two.jsonl", [own("x", 0), own("x", 1, content="another")])
    with pytest.raises(DataError, match="prompt_id 'x' stands for another prompt"):
        read_candidates(tmp_path / "two.jsonl", max_bad_fraction=0.0)


@pytest.mark.skipif(not REAL.is_file(), reason="../shared/data is not there")
def test_real_candidates() -> None:
    read = read_candidates(REAL, max_bad_fraction=0.0)
    assert set(Counter(row.prompt_id for row in read.rows).values()) == {20}
    assert len(read.rows) == 120 * 20
    assert all("generator" in row.meta for row in read.rows)
