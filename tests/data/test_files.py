"""Patterns in a recipe: which files they stand for, in which order, and what is said where they match none."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignloop.config.bundled import QUICKSTART
from alignloop.data.files import data_files, is_pattern
from alignloop.errors import DataError


def test_a_pattern_is_expanded_with_numbers_as_numbers(tmp_path: Path) -> None:
    for name in ("round-10.jsonl", "round-2.jsonl", "round-1.jsonl", "notes.txt"):
        (tmp_path / name).write_text("{}\n")
    (tmp_path / "round-3.jsonl").mkdir()  # a folder is no file of rows
    found = data_files([str(tmp_path / "round-*.jsonl")], kind="preferences")
    assert [path.name for path in found] == ["round-1.jsonl", "round-2.jsonl", "round-10.jsonl"]


def test_names_keep_their_order_and_a_file_is_no_pattern(tmp_path: Path) -> None:
    odd = tmp_path / "a[1].jsonl"
    odd.write_text("{}\n")
    assert not is_pattern(str(odd))
    names = [str(tmp_path / "gone.jsonl"), str(odd), "quickstart"]
    assert data_files(names, kind="prompts") == [Path(names[0]), odd, QUICKSTART / "data" / "prompts.jsonl"]


def test_patterns_that_match_nothing_are_all_named(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text("{}\n")
    with pytest.raises(DataError) as caught:
        data_files([str(tmp_path / "round-*.jsonl"), str(tmp_path / "no" / "*.jsonl")], kind="preferences")
    message = str(caught.value)
    assert "round-*.jsonl: the pattern matches no file" in message
    assert "holds b.jsonl" in message
    assert f"there is no folder {tmp_path / 'no'}" in message
