"""What a run's rows say of sampled completions, read back from a file of the user's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from data_files import write

from alignloop.data.readers import read_preferences, read_sft
from alignloop.records import Message, PreferenceRow, SftRow, Source

OWN = PreferenceRow(
    id="annotated/p/1/0/p/1/1",
    messages=[Message(role="user", content="Name a river.")],
    chosen="The Elbe.",
    rejected="A hill and",
    strength="better",
    source=Source(file="round-01"),
    annotator="my-judge",
    compared_by="judge",
    chosen_ids=[5, 6, 7],
    chosen_finish_reason="stop",
    rejected_ids=[8, 9],
    rejected_finish_reason="length",
    chosen_reward=1.5,
)


def test_ids_stay_behind_and_endings_do_not(tmp_path: Path) -> None:
    """Whose tokenizer made the ids, the file does not say."""
    path = write(tmp_path / "own.jsonl", OWN.model_dump(mode="json"))
    (row,) = read_preferences([path], max_bad_fraction=0.0).rows
    assert (row.chosen_ids, row.rejected_ids) == (None, None)
    assert (row.chosen_finish_reason, row.rejected_finish_reason) == ("stop", "length")
    assert (row.annotator, row.compared_by, row.chosen_reward) == ("my-judge", "judge", 1.5)
    assert row.meta == {"source": {"file": "round-01", "line": None}}
    assert row == PreferenceRow.model_validate(row.model_dump())


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("chosen_finish_reason", "eos", "must be stop or length (or left out), found the text 'eos'"),
        ("rejected_finish_reason", 1, "must be stop or length (or left out), found the number 1"),
        ("compared_by", "robots", "must be people, judge or simulated (or left out), found the text 'robots'"),
        ("chosen_reward", "high", "must be a finite number (or left out), found the text 'high'"),
        ("chosen_reward", 10**400, f"must be a finite number (or left out), found the number 1{'0' * 56}..."),
    ],
)
def test_a_column_that_says_something_else_is_named(tmp_path: Path, column: str, value: Any, reason: str) -> None:
    own = OWN.model_dump(mode="json")
    path = write(tmp_path / "bad.jsonl", own, {**own, column: value})
    (bad,) = read_preferences([path], max_bad_fraction=1.0).rejected
    assert (bad.field, bad.reason) == (column, reason)


def test_a_target_that_was_cut_is_known_by_its_column(tmp_path: Path) -> None:
    dialog = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Name a river."},
        {"role": "assistant", "content": "The river that is"},
    ]
    path = write(
        tmp_path / "sft.jsonl",
        {"messages": dialog, "finish_reason": "length"},
        {"messages": dialog, "finish_reason": "stop"},
        {"messages": dialog},
    )
    rows = read_sft([path], max_bad_fraction=0.0, dialogs="every_turn").rows
    assert [row.finish_reason for row in rows] == [None, "length", None, None, None, None]


def test_the_chosen_one_is_a_target_as_it_ended(tmp_path: Path) -> None:
    cut = {**OWN.model_dump(mode="json"), "chosen_finish_reason": "length"}
    path = write(tmp_path / "pairs.jsonl", cut, {**cut, "edited": "The Elbe is a river."})
    rows = read_sft([path], max_bad_fraction=0.0).rows
    assert [row.finish_reason for row in rows] == ["length", None]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_a_runs_own_targets_keep_their_ids_through_pruning(tmp_path: Path, name: str) -> None:
    """`data prune` on a round's rows: what comes out trains as it was sampled (and stops training where its ids are
    another tokenizer's)."""
    from alignloop.pruning.file import read_rows, write_rows
    from alignloop.pruning.items import as_sft

    own = SftRow(
        id="p/1/0",
        messages=[Message(role="user", content="Name a river."), Message(role="assistant", content="The Elbe is")],
        origin="best_of_k",
        source=Source(file="round-01"),
        completion_ids=[5, 6, 7],
        finish_reason="length",
    )
    write_rows(tmp_path / name, [own])
    (item,) = read_rows(str(tmp_path / name), max_bad_fraction=0.0).items
    assert item.truncated
    row = as_sft(item)
    assert (row.completion_ids, row.finish_reason) == ([5, 6, 7], "length")
