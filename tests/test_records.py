"""Ids of what a run makes are taken apart as they were made, also of prompts whose ids hold slashes."""

from __future__ import annotations

import pytest

from alignloop import records
from alignloop.records import Source


@pytest.mark.parametrize("prompt", ["p", "p/turn-2", "a>b", "Größe 7/1"])
def test_ids_are_taken_apart_as_they_were_made(prompt: str) -> None:
    first, second = (records.candidate_id(prompt, round=2, k=k) for k in (10, 3))
    assert first == f"{prompt}/2/10"
    assert records.split_candidate_id(first) == (prompt, "10")
    assert first.startswith(records.candidates_of(prompt, round=2))
    assert records.split_pair_id(records.pair_id(first, 3)) == (first, second)
    assert records.split_annotation_id(records.annotation_id(first, second)) == (first, second)
    assert records.question_id(first, second) == f"{prompt}/2/10-3"


@pytest.mark.parametrize("row_id", ["1c-4", "p/1/0", "annotated/p/1/0", ""])
def test_other_ids_are_no_annotations(row_id: str) -> None:
    assert records.split_annotation_id(row_id) == ("", "")


def test_sources_tell_rows_of_a_round_from_files() -> None:
    made, line, file = Source.of_round(3), Source(file="round-1.jsonl", line=7), Source(file="mine.jsonl")
    assert [source.is_round for source in (made, line, file)] == [True, False, False]
    assert [str(source) for source in (made, line, file)] == ["round-03", "round-1.jsonl, line 7", "mine.jsonl"]
