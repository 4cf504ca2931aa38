"""What people put beside the run for a round: its own file of preferences, and their answers.

Both may appear while a run is under way. A finished round keeps what its manifest names, so that nothing that comes
later makes it stale.

<run>/annotations/round-NN.to_annotate.jsonl    what people are asked
<run>/annotations/round-NN.annotated.jsonl      what they say
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignloop.artifacts import Artifact, digest_of, write_text
from alignloop.config import Recipe
from alignloop.data.files import data_files
from alignloop.data.jsonl import numbered_lines
from alignloop.data.parsing import parse_row
from alignloop.data.problems import BadRow
from alignloop.errors import DataError, PeopleNeeded, UserError
from alignloop.judging.people import ANSWER_COLUMNS, answered_ids
from alignloop.records import round_name
from alignloop.run_dir.reader import all_published, published_stage

ANNOTATIONS = "annotations"


@dataclass(frozen=True)
class PeopleFiles:
    questions: Path
    answers: Path


@dataclass(frozen=True)
class Waiting:
    """A round that waits for people, and does not go on without `num_needed` answers."""

    round: int
    files: PeopleFiles
    num_asked: int
    num_answered: int
    num_needed: int

    @property
    def line(self) -> str:
        pairs = "1 pair" if self.num_asked == 1 else f"{self.num_asked:,} pairs"
        needed = "" if self.num_needed == self.num_asked else f", {self.num_needed:,} needed"
        return f"waits for people: {self.num_answered:,} of {pairs} answered{needed}"


def people_files(run_dir: Path, number: int) -> PeopleFiles:
    stem = run_dir / ANNOTATIONS / round_name(number)
    return PeopleFiles(stem.with_suffix(".to_annotate.jsonl"), stem.with_suffix(".annotated.jsonl"))


def answers_of(recipe: Recipe, run_dir: Path, number: int) -> Artifact | None:
    """People's answers for a round; None where nobody is asked or nobody has answered yet."""
    file = people_files(run_dir, number).answers
    return Artifact.of(file) if recipe.collect.annotator == "human" and number > 1 and file.is_file() else None


def waiting(recipe: Mapping[str, Any], run_dir: Path, number: int) -> Waiting | None:
    """Whether a round waits for people, by its files; None where it does not. The recipe is in plain values."""
    files = people_files(run_dir, number)
    collect = recipe.get("collect") or {}
    is_collected = all_published(run_dir, [number], stage="collect")
    if collect.get("annotator") != "human" or not files.questions.is_file() or is_collected:
        return None
    asked = set(_ids(files.questions))
    answered = len(asked & answered_ids(files.answers)) if files.answers.is_file() else 0
    least = collect.get("min_annotated")
    needed = len(asked) if least is None else min(int(least), len(asked))
    return Waiting(number, files, len(asked), answered, needed) if answered < needed else None


def ask_people(wait: PeopleNeeded, *, run_dir: Path, number: int) -> PeopleNeeded:
    """Put a round's questions where people look for them, and say what to do. A file of questions that people have
    changed stays as it is; one of other questions is moved aside."""
    files = people_files(run_dir, number)
    files.questions.parent.mkdir(parents=True, exist_ok=True)
    notes = _write_questions(wait.questions, files)
    pairs = "1 pair of completions" if wait.num_asked == 1 else f"{wait.num_asked:,} pairs of completions"
    needed = f" ({wait.num_needed:,} are needed)" if wait.num_needed < wait.num_asked else ""
    lines = [
        f"round {number} waits for people: {pairs} to compare, {wait.num_answered:,} answered{needed}",
        f"  read   {files.questions}",
        "         a pair a line: id, messages (the prompt), first, second",
        f"  write  {files.answers}",
        '         a line a pair, for example {"id": "...", "choice": "first"}',
        *(f"         {name:<9} {what}" for name, what in ANSWER_COLUMNS.items()),
    ]
    if wait.num_answered and not needed:
        lines.append("  Or set collect.min_annotated: the round then goes on with so many of them.")
    return PeopleNeeded(
        "\n".join([*lines, *notes]),
        questions=files.questions,
        num_asked=wait.num_asked,
        num_answered=wait.num_answered,
        num_needed=wait.num_needed,
    )


def _write_questions(new: Path, files: PeopleFiles) -> list[str]:
    """Returns what is worth saying about the files that were there before."""
    text = new.read_text(encoding="utf-8")
    there = files.questions.read_bytes() if files.questions.is_file() else None
    notes = []
    if there not in (None, text.encode()):
        if _ids(files.questions) == _ids(new):
            return [
                f"  {files.questions.name} was changed since it was written: if your answers are in it, save it as "
                f"{files.answers.name}"
            ]
        aside = files.questions.with_suffix(".before.jsonl")
        files.questions.replace(aside)
        notes = [f"  The questions that lay there were others: they are kept in {aside.name}"]
    write_text(files.questions, text)
    return notes


def _ids(questions: Path) -> list[str]:
    """Without those of lines that a person has broken."""
    ids = []
    for _, offset, line in numbered_lines(questions):
        with suppress(BadRow):
            row = parse_row(line, line=None, offset=offset)
            if isinstance(row, dict) and "id" in row:
                ids.append(str(row["id"]))
    return ids


def round_file(recipe: Recipe, run_dir: Path, number: int) -> Artifact | None:
    """The file whose rows are a round's batch; None unless `data.batches` is `files`."""
    if recipe.data.batches != "files":
        return None
    file = files_of_rounds(recipe, run_dir, number=number)[-1]
    if not file.is_file():
        raise DataError(f"preferences: {file}: no such file, and round {number} takes its preferences from it")
    return Artifact.of(file)


def files_of_rounds(recipe: Recipe, run_dir: Path | None, *, number: int) -> list[Path]:
    """The files that rounds 1 to `number` take their preferences from, where each file is one round's.

    A round takes the first file, in order, that no earlier round took; where all are taken, the last once more. A round
    that has begun its work keeps its file, whatever comes later. Raises DataError where a pattern matches nothing, or
    the file of a finished round is gone.
    """
    files = [file.resolve() for file in data_files(recipe.preferences, kind="preferences")]
    chosen: list[Path] = []
    for round_number in range(1, number + 1):
        known = None if run_dir is None else _recorded(run_dir, round_number)
        free = [file for file in files if file not in chosen]
        if known is None or run_dir is None:
            chosen.append((free or files[-1:])[0])
        else:
            chosen.append(_again(known, files, run_dir, round_number))
    return chosen


def _recorded(run_dir: Path, number: int) -> Mapping[str, str] | None:
    """Digest and path of the file a round was made from; None where it has not begun."""
    collected = published_stage(run_dir, number, "collect")
    if collected is not None and isinstance(collected.manifest.inputs.get("file"), dict):
        return dict(collected.manifest.inputs["file"])
    if number == 1:  # its file is the one whose rows were held out before it began
        ingested = published_stage(run_dir, 0, "ingest")
        if ingested is not None and ingested.manifest.inputs.get("preferences"):
            return dict(ingested.manifest.inputs["preferences"][0])
    return None


def _again(known: Mapping[str, str], files: Sequence[Path], run_dir: Path, number: int) -> Path:
    """The same file now, at the same path or moved, with the same bytes."""
    path = (run_dir.resolve() / known["path"]).resolve()
    if path in files:
        return path
    moved = [file for file in files if file.is_file() and digest_of(file) == known["digest"]]
    if moved:
        return moved[0]
    raise UserError(
        f"{path}: round {number} took its preferences from this file, which is not among `preferences` any more - put "
        "it back, or choose another --run-dir"
    )
