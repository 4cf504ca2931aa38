"""`rounds.jsonl`: a line a round, the base's first. It follows from the published stages: the run can write it anew."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from alignloop.artifacts import write_text
from alignloop.data.jsonl import load_jsonl
from alignloop.errors import DataError, RunDirError
from alignloop.records import RoundRow

ROUNDS = "rounds.jsonl"


def read_rounds(run_dir: Path) -> list[RoundRow]:
    """The lines of `rounds.jsonl`; none where the run has not come that far.

    Raises:
        RunDirError: a line is not one (with its number).
    """
    path = run_dir / ROUNDS
    if not path.is_file():
        return []
    try:
        return list(load_jsonl(path, RoundRow))
    except DataError as error:
        raise RunDirError(
            f"{error}; remove rounds.jsonl and run again: it is written anew from the published stages"
        ) from error


def write_rounds(run_dir: Path, rows: Sequence[RoundRow]) -> None:
    """Write the rounds so far; what a longer run has written goes on standing where it still begins the same."""
    path = run_dir / ROUNDS
    lines = [row.model_dump_json().encode() + b"\n" for row in rows]
    there = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    if there[: len(lines)] != lines or not all(_round_of(line) is not None for line in there):
        write_text(path, b"".join(lines).decode())


def forget_rounds(run_dir: Path, number: int) -> None:
    """Take out the lines of a round and of all later ones, and whatever is no line of a round."""
    path = run_dir / ROUNDS
    if not path.is_file():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if (found := _round_of(line)) is not None and found < number]
    if kept != lines:
        write_text(path, b"".join(kept).decode())


def _round_of(line: bytes) -> int | None:
    """The number of the round whose line it is; None where it is no round's."""
    try:
        return RoundRow.model_validate_json(line).round
    except ValidationError:
        return None
