"""The published stages of a run and the rows in their files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import orjson

from alignloop.artifacts import ArtifactRecord, Manifest, read_manifest
from alignloop.data.jsonl import load_jsonl
from alignloop.data.problems import plain_problems
from alignloop.errors import DataError, RunDirError
from alignloop.records import Row
from alignloop.run_dir.layout import RESOLVED, read_resolved, round_numbers, stage_dirs

R = TypeVar("R", bound=Row)
_ID = re.compile(rb'\{"id":("(?:[^"\\]|\\.)*")')
"""Rows of our own begin with their id: it is read without reading the row."""


@dataclass(frozen=True)
class StageFiles:
    """A published stage.

    Attributes:
        name: its folder's, for example `07_prune`.
    """

    round: int
    name: str
    dir: Path
    manifest: Manifest

    @property
    def stage(self) -> str:
        """Without its number: `prune`."""
        return self.name.partition("_")[2]

    def files(self, output: str) -> list[Path]:
        """The files of an output, by its name in the manifest; none where the stage has no such output."""
        found = self.manifest.outputs.get(output, [])
        records = [found] if isinstance(found, ArtifactRecord) else found
        return [self.dir / record.path for record in records]


class RunFiles:
    """A run directory, read only.

    Raises:
        RunDirError: there is no run there.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        resolved = read_resolved(run_dir)
        if resolved is None:
            folder = run_dir if run_dir.is_dir() else run_dir.parent
            near = sorted(str(path.parent) for path in folder.glob(f"*/{RESOLVED}"))[:5] if folder.is_dir() else []
            hint = f"; runs there: {', '.join(near)}" if near else "; name the directory of a run, as runs/NAME"
            raise RunDirError(f"{run_dir}: no run lies here{hint}")
        self.recipe = resolved

    @cached_property
    def rounds(self) -> list[int]:
        """Numbers of the rounds that have begun; 0 holds what comes before the first."""
        return round_numbers(self.run_dir)

    @cached_property
    def stages(self) -> list[StageFiles]:
        """All published stages, in order."""
        return [
            StageFiles(number, folder.name, folder, manifest)
            for number in self.rounds
            for folder in stage_dirs(self.run_dir, number)
            if (manifest := read_manifest(folder)) is not None
        ]

    def stage(self, number: int, name: str) -> StageFiles | None:
        """A round's published stage by name without number; None where it is not published."""
        return next((s for s in self.stages if s.round == number and s.stage == name), None)

    def files(self, number: int, stage: str, output: str) -> list[Path]:
        """The files of a stage's output; none where it is not published or has no such output."""
        found = self.stage(number, stage)
        return [] if found is None else [file for file in found.files(output) if file.is_file()]

    def rows(self, number: int, stage: str, output: str, model: type[R], *, marks: tuple[str, ...] = ()) -> Iterator[R]:
        """Rows of an output; with `marks` only those in whose text one of them stands.

        Raises:
            DataError: a line that is not a row of `model`.
        """
        for file in self.files(number, stage, output):
            if not marks:
                yield from load_jsonl(file, model)
                continue
            for line, text in marked_lines(file, marks):
                yield row_of(model, text, file=file, line=line)


def marked_lines(file: Path, marks: tuple[str, ...]) -> Iterator[tuple[int, bytes]]:
    """(line, text) of the lines that hold one of the marks, as JSON writes them."""
    needles = [json.dumps(mark, ensure_ascii=False)[1:-1].encode() for mark in marks]
    with file.open("rb") as lines:
        for number, text in enumerate(lines, start=1):
            if any(needle in text for needle in needles):
                yield number, text


def row_of(model: type[R], text: bytes, *, file: Path, line: int) -> R:
    """A line as a row.

    Raises:
        DataError: it is none.
    """
    from pydantic import ValidationError

    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        field, sentence = plain_problems(error)[0]
        where = f"{file}, line {line}" + (f", field {field}" if field else "")
        raise DataError(f"{where}: {sentence}. The run was written by another alignloop, or changed since") from None


def ids_of(file: Path) -> Iterator[str]:
    """Ids of a file's rows, in order, without reading more of them than that.

    Raises:
        DataError: a line is not JSON.
    """
    with file.open("rb") as lines:
        for line, text in enumerate(lines, start=1):
            found = _ID.match(text)
            if found is None and not text.strip():
                continue
            try:
                value = orjson.loads(text if found is None else found.group(1))
            except orjson.JSONDecodeError as error:
                raise DataError(
                    f"{file}, line {line}: not JSON ({error}). The run was written by another alignloop, or changed "
                    "since"
                ) from None
            if found is not None:
                yield str(value)
            elif isinstance(value, dict) and "id" in value:
                yield str(value["id"])
