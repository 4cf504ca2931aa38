"""The reader of a run directory: stages by round, name and occurrence, outputs by the name they are published under.

Numbers of folders and names of files stand in the manifests. Nothing is written but `rounds.jsonl`, a line a round, the
base's first: it follows from the published stages, and the run can write it anew.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import orjson
from pydantic import ValidationError

from alignloop.artifacts import write_text
from alignloop.data.jsonl import load_jsonl
from alignloop.data.problems import plain_problems
from alignloop.errors import DataError, RunDirError
from alignloop.records import RoundRow, Row
from alignloop.run_dir.layout import RESOLVED, read_resolved, round_dir, round_numbers
from alignloop.run_dir.manifest import MANIFEST, PARTIAL, Manifest, read_manifest

R = TypeVar("R", bound=Row)
ROUNDS = "rounds.jsonl"
_ID = re.compile(rb'\{"id":("(?:[^"\\]|\\.)*")')
"""Our own rows begin with their id, which is read without the rest of the row."""
_CHANGED = "The run was written by another alignloop, or changed since"
_MOST_NEAR = 5
HOW_TO_BEGIN = "`alignloop run` starts one"


@dataclass(frozen=True)
class PublishedStage:
    """A published stage of a round, in the folder `<run>/round-NN/NN_<name>`."""

    round: int
    dir: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        return self.manifest.stage

    def files(self, output: str) -> list[Path]:
        """The files published under this name; none where it has no such output."""
        found = self.manifest.outputs.get(output, [])
        return [self.dir / record.path for record in (found if isinstance(found, list) else [found])]


def published_stages(run_dir: Path, number: int) -> list[PublishedStage]:
    """All published stages of a round, in order; raises RunDirError where a manifest cannot be read."""
    folder = round_dir(run_dir, number)
    folders = sorted(folder.iterdir()) if folder.is_dir() else []
    return _published(number, (inner for inner in folders if inner.is_dir() and not inner.name.endswith(PARTIAL)))


def published_stage(run_dir: Path, number: int, name: str) -> PublishedStage | None:
    """A round's first stage of this name; None where it is not published. Reads no other stage's manifest."""
    found = _published(number, folders_of(run_dir, number, name)[:1])
    return found[0] if found else None


def all_published(run_dir: Path | None, numbers: Iterable[int], *, stage: str) -> bool:
    """Whether there are such rounds and each has published the stage. Reads no manifest."""
    found = [run_dir is not None and bool(folders_of(run_dir, number, stage)) for number in numbers]
    return bool(found) and all(found)


def begun_stage(run_dir: Path, number: int) -> str | None:
    """The folder's name of the stage that a round has begun and not published."""
    begun = sorted(path.name for path in round_dir(run_dir, number).glob(f"*{PARTIAL}"))
    return begun[-1].removesuffix(PARTIAL) if begun else None


def folders_of(run_dir: Path, number: int, stage: str) -> list[Path]:
    """Where a round has published stages of this name, in order. Reads no manifest."""
    return [path.parent for path in sorted(round_dir(run_dir, number).glob(f"[0-9][0-9]_{stage}/{MANIFEST}"))]


def _published(number: int, folders: Iterable[Path]) -> list[PublishedStage]:
    read = ((folder, read_manifest(folder)) for folder in folders)
    return [PublishedStage(number, folder, manifest) for folder, manifest in read if manifest is not None]


class RunReader:
    """A run and the rows of its stages; raises RunDirError where there is no run.

    Attributes:
        recipe: as resolved, plain values.
    """

    def __init__(self, run_dir: Path, *, hint: str = "name the directory of a run, as runs/NAME") -> None:
        self.run_dir = run_dir
        resolved = read_resolved(run_dir)
        if resolved is None:
            near = ", ".join(_runs_near(run_dir))
            raise RunDirError(f"{run_dir}: no run lies here; {f'runs there: {near}' if near else hint}")
        self.recipe: dict[str, Any] = resolved

    @cached_property
    def rounds(self) -> list[int]:
        return round_numbers(self.run_dir)

    @cached_property
    def stages(self) -> dict[int, list[PublishedStage]]:
        return {number: published_stages(self.run_dir, number) for number in self.rounds}

    def stage(self, number: int, name: str, *, occurrence: int = 1) -> PublishedStage | None:
        """A round's stage of this name; None where it is not published."""
        found = [stage for stage in self.stages.get(number, []) if stage.name == name]
        return found[occurrence - 1] if len(found) >= occurrence else None

    def files(self, number: int, stage: str, output: str) -> list[Path]:
        """The files of a stage's output; none where it is not published or has no such output."""
        found = self.stage(number, stage)
        return [] if found is None else [file for file in found.files(output) if file.is_file()]

    def rows(self, number: int, stage: str, output: str, model: type[R], *, mark: str = "") -> Iterator[R]:
        """Rows of an output, with a mark only those that contain it; raises DataError for a line that is not a row of
        `model`."""
        for file in self.files(number, stage, output):
            yield from load_jsonl(file, model) if not mark else marked_rows(file, model, as_json(mark))

    def row(self, number: int, stage: str, output: str, model: type[R], row_id: str) -> R | None:
        rows = self.rows(number, stage, output, model, mark=row_id)
        return next((row for row in rows if getattr(row, "id", None) == row_id), None)

    def where(self, stage: str, output: str, model: type[R], row_id: str) -> tuple[int, R]:
        """The first round whose output holds a row, and the row, which must be in one."""
        found = ((number, self.row(number, stage, output, model, row_id)) for number in self.rounds)
        return next((number, row) for number, row in found if row is not None)


def _runs_near(run_dir: Path) -> list[str]:
    folder = next((folder for folder in (run_dir, run_dir.parent) if folder.is_dir()), Path())
    return sorted(str(path.parent) for path in folder.glob(f"*/{RESOLVED}"))[:_MOST_NEAR]


def as_json(text: str) -> bytes:
    """A text as in a line of JSON, without its quotes."""
    return json.dumps(text, ensure_ascii=False)[1:-1].encode()


def marked_rows(file: Path, model: type[R], mark: bytes) -> Iterator[R]:
    """Rows of the lines that contain a mark; raises DataError where one is no row of `model`."""
    with file.open("rb") as lines:
        for number, text in enumerate(lines, start=1):
            if mark not in text:
                continue
            try:
                yield model.model_validate_json(text)
            except ValidationError as error:
                field, sentence = plain_problems(error)[0]
                where = f"{file}, line {number}" + (f", field {field}" if field else "")
                raise DataError(f"{where}: {sentence}. {_CHANGED}") from None


def ids_of(file: Path) -> Iterator[str]:
    """Ids of a file's rows, in order, read without the rest of the rows; raises DataError where a line is not JSON."""
    with file.open("rb") as lines:
        for line, text in enumerate(lines, start=1):
            found = _ID.match(text)
            if found is None and not text.strip():
                continue
            try:
                value = orjson.loads(text if found is None else found.group(1))
            except orjson.JSONDecodeError as error:
                raise DataError(f"{file}, line {line}: not JSON ({error}). {_CHANGED}") from None
            if found is not None:
                yield str(value)
            elif isinstance(value, dict) and "id" in value:
                yield str(value["id"])


def read_rounds(run_dir: Path) -> list[RoundRow]:
    """The lines of `rounds.jsonl`, none where the run has not come that far; raises RunDirError with the number of a
    wrong one."""
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
    """Write the rounds so far; later lines of a longer run stay where it still begins the same."""
    path = run_dir / ROUNDS
    lines = [row.model_dump_json().encode() + b"\n" for row in rows]
    there = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    if there[: len(lines)] != lines or not all(_round_of(line) is not None for line in there):
        write_text(path, b"".join(lines).decode())


def forget_rounds(run_dir: Path, number: int) -> None:
    """Remove the lines of a round and of all later ones, and whatever is no line of a round."""
    path = run_dir / ROUNDS
    if not path.is_file():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if (found := _round_of(line)) is not None and found < number]
    if kept != lines:
        write_text(path, b"".join(kept).decode())


def _round_of(line: bytes) -> int | None:
    try:
        return RoundRow.model_validate_json(line).round
    except ValidationError:
        return None
