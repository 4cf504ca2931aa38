from __future__ import annotations

import functools
import operator

import pytest

from alignloop.data.split import heldout_of_files, heldout_split, round_batch, without_prompts
from alignloop.errors import DataError
from alignloop.records import Message, PreferenceRow, Source


def row(name: str, prompt: str) -> PreferenceRow:
    return PreferenceRow(
        id=name,
        messages=[Message(role="user", content=prompt)],
        chosen="a",
        rejected="b",
        source=Source(file="f", line=1),
    )


ROWS = [row(str(n), f"Question {n % 500}") for n in range(1000)]  # every prompt twice


def test_a_prompt_lies_on_one_side() -> None:
    train, heldout = heldout_split(ROWS, fraction=0.1, max_heldout=512, seed=0)
    assert len(train) + len(heldout) == 1000
    assert 60 <= len(heldout) <= 140  # 50 prompts in expectation, sd 6.7: within 3 sd, two rows each
    sides = [{r.messages[0].content for r in side} for side in (train, heldout)]
    assert not sides[0] & sides[1]
    spaced = row("spaced", f"  {heldout[0].messages[0].content.upper()}\n")
    assert spaced in heldout_split([*ROWS, spaced], fraction=0.1, max_heldout=512, seed=0)[1]


def test_split_is_deterministic_and_does_not_move_when_rows_are_added() -> None:
    train, heldout = heldout_split(ROWS[:600], fraction=0.1, max_heldout=512, seed=0)
    assert (train, heldout) == heldout_split(ROWS[:600], fraction=0.1, max_heldout=512, seed=0)
    assert heldout != heldout_split(ROWS[:600], fraction=0.1, max_heldout=512, seed=1)[1]
    later = heldout_split(ROWS, fraction=0.1, max_heldout=512, seed=0)[1]
    assert {r.id for r in heldout} <= {r.id for r in later}


def test_limits() -> None:
    assert len(heldout_split(ROWS, fraction=0.5, max_heldout=7, seed=0)[1]) == 6  # three whole prompts of two rows
    assert len(heldout_split(ROWS[:10], fraction=0.0001, max_heldout=5, seed=0)[1]) == 1  # above 0: at least one
    assert heldout_split(ROWS[:10], fraction=0.0, max_heldout=5, seed=0) == (ROWS[:10], [])
    assert heldout_split(ROWS[:1], fraction=0.05, max_heldout=5, seed=0) == (ROWS[:1], [])  # one row trains
    assert heldout_split([], fraction=0.5, max_heldout=5, seed=0) == ([], [])
    with pytest.raises(DataError, match=r"data.heldout_fraction = 1.0 holds out all 10"):
        heldout_split(ROWS[:10], fraction=1.0, max_heldout=512, seed=0)


def test_round_batches() -> None:
    rows = list(range(10))
    shares = [round_batch(rows, round=n, batches="split", split_rounds=3) for n in (1, 2, 3, 4)]
    assert shares == [[0, 1, 2], [3, 4, 5], [6, 7, 8, 9], [6, 7, 8, 9]]
    assert functools.reduce(operator.iadd, shares[:3], []) == rows
    assert round_batch(rows, round=5, batches="all", split_rounds=3) == rows
    assert [round_batch([1, 2], round=n, batches="split", split_rounds=6) for n in (1, 2, 6)] == [[1], [2], [2]]
    assert round_batch([], round=1, batches="split", split_rounds=6) == []


def of_file(name: str, file: str, prompt: str) -> PreferenceRow:
    return row(name, prompt).model_copy(update={"source": Source(file=file, line=1)})


def test_each_file_is_one_rounds_batch() -> None:
    rows = [of_file("a", "1", "A"), of_file("b", "2", "B"), of_file("c", "2", "C")]
    batches = [round_batch(rows, round=n, batches="files", split_rounds=6) for n in (1, 2, 3)]
    assert [[r.id for r in batch] for batch in batches] == [["a"], ["b", "c"], ["b", "c"]]
    assert round_batch(rows, round=3, batches="all", split_rounds=6) == rows


def test_only_the_first_files_rows_are_held_out() -> None:
    first = [of_file(str(n), "1", f"Question {n}") for n in range(20)]
    _, alone = heldout_split(first, fraction=0.2, max_heldout=512, seed=0)
    later = [of_file("same", "2", alone[0].messages[0].content.upper()), of_file("new", "2", "Another")]
    train, heldout = heldout_of_files([*first, *later], fraction=0.2, max_heldout=512, seed=0)
    assert heldout == alone  # whatever comes later
    assert [r.id for r in train if r.source.file == "2"] == ["new"]
    kept, others = without_prompts(later, heldout)
    assert ([r.id for r in kept], [r.id for r in others]) == (["new"], ["same"])
