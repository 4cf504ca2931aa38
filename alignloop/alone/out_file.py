"""The file a command makes: built in a folder beside it, put in place whole, with a manifest of what it is made from.

<out>.work/                 outlives a crash, and is removed when the file is there
<out stem>.manifest.json    as a stage's: a second call that would make the same file recognises it
<out stem>.dropped.jsonl    dropped rows with reasons; missing where there are none
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

from alignloop.artifacts import digest_of, disk_errors_named, load_json, stage_seed, write_text
from alignloop.config import Recipe
from alignloop.config.engine import EngineConfig
from alignloop.data.jsonl import dump_jsonl, load_jsonl
from alignloop.engines.open import LOG_FILE, log_named, open_engine
from alignloop.errors import RunDirError, UserError
from alignloop.progress import Progress, QuietProgress
from alignloop.records import DroppedRow, RejectedRow
from alignloop.run_dir.layout import locked, remove_locked
from alignloop.run_dir.manifest import MANIFEST, Manifest, changes_since, describe
from alignloop.run_dir.stage import ConfigT, InputsT, OutputsT, Stage
from alignloop.stages.runner import StageRunner

ROUND = 1
"""Stages run as in this round: the first that system prompts can be for."""
NO_ENGINE = EngineConfig(name="transformers")
"""For stages that use none: it never starts."""
DROPPED = "dropped.jsonl"
BEFORE_WORK = frozenset({"run.lock", "prompts.jsonl", "unscored.jsonl", ".fingerprint"})
"""What a working folder contains before a stage has made anything worth keeping."""


def check_out(out: Path, *, option: str = "--out") -> Path:
    """`out` as a path at which a file can be made.

    A UserError where it is a folder, or its own folder does not exist or is not writable.
    """
    out = out.expanduser()
    if out.is_dir():
        raise UserError(f"{option} {out}: this is a folder; name a file, for example {out / 'candidates.jsonl'}")
    folder = out.absolute().parent
    if not folder.is_dir():
        raise UserError(f"{option} {out}: the folder {folder} does not exist; make it first")
    if not os.access(folder, os.W_OK):
        raise UserError(f"{option} {out}: the folder {folder} cannot be written in; name another")
    return out


def check_writable(file: Path | None, *, option: str) -> None:
    """Raise a UserError where a report cannot be written at `file`, if there is to be one."""
    if file is None:
        return
    if file.is_dir() or not file.parent.is_dir():
        raise UserError(f"{option} {file}: no file can be written there; name one in a folder that exists")
    try:
        with tempfile.TemporaryFile(dir=file.parent):
            pass
    except OSError as error:
        raise UserError(f"{option} {file}: no file can be written there ({error.strerror}); name another") from error


def beside(out: Path, what: str) -> Path:
    """`<out's stem>.<what>`, for example `candidates.dropped.jsonl`."""
    return out.with_name(f"{out.stem}.{what}")


def manifest_of(out: Path) -> Path:
    """The path of the manifest of `out`."""
    return beside(out, MANIFEST)


def read_beside(file: Path) -> Manifest | None:
    """The manifest that says what a file is made from: its own, or that of the stage in whose folder it lies."""
    for path in (manifest_of(file), file.parent / MANIFEST):
        if path.is_file():
            try:
                return Manifest.of_values(load_json(path))
            except ValueError:
                return None
    return None


@contextmanager
def work_dir(out: Path) -> Iterator[Path]:
    """The folder `out` is made in; what a crash left there is reused.

    It is removed on success, and on failure where nothing was made in it yet. A UserError where another process is
    making the same file.
    """
    folder = out.with_name(out.name + ".work")
    try:
        with locked(folder):
            try:
                yield folder
            except BaseException:
                if not any(file.name not in BEFORE_WORK for file in folder.rglob("*") if file.is_file()):
                    remove_locked(folder)
                raise
            remove_locked(folder)
    except RunDirError as error:
        if "in use by process" in str(error):
            raise UserError(f"--out {out}: {error}".replace("--run-dir", "--out")) from error
        raise


@dataclass(frozen=True)
class _Bars(QuietProgress):
    """Bars, and no lines."""

    shown: Progress

    def task(self, label: str, *, total: int, unit: str) -> Any:
        return self.shown.task(label, total=total, unit=unit)


@dataclass(frozen=True)
class OneStage(Generic[ConfigT, InputsT, OutputsT]):
    """A stage with its inputs, as that of round 1 of its own run."""

    stage: Stage[ConfigT, InputsT, OutputsT]
    recipe: Recipe
    inputs: InputsT
    engine: EngineConfig = NO_ENGINE

    def make(
        self,
        out: Path,
        work: Path,
        progress: Progress,
        *,
        output: str,
        dropped: Sequence[DroppedRow] = (),
        beside_it: Mapping[str, str] | None = None,
        quietly: bool = False,
    ) -> bool:
        """Put the stage's output `output` at `out`; whether it was there already, made from the same things.

        Errors as for `is_made`.

        Args:
            dropped: rows dropped before the stage; its own drops follow them beside `out`.
            beside_it: further outputs, by the name they get beside `out`.
            quietly: without the stage's log lines.
        """
        if self.is_made(out):
            return True
        outputs = self.run(work, progress, quietly=quietly)
        own = getattr(outputs, "dropped", None)
        rows = [*dropped, *(load_jsonl(own.path, DroppedRow) if own is not None else ())]
        if rows:
            dump_jsonl(beside(out, DROPPED), rows)
        else:
            beside(out, DROPPED).unlink(missing_ok=True)
        for name, published in (beside_it or {}).items():
            shutil.copyfile(getattr(outputs, published).path, beside(out, name))
        put(getattr(outputs, output).path, out)
        return False

    def run(self, work: Path, progress: Progress, *, quietly: bool = False) -> OutputsT:
        """Run it in a working folder, going on from what an earlier call left there."""
        log_file = work / LOG_FILE
        with (
            log_named(log_file),
            open_engine(self.engine, log_file=log_file, say=lambda line: progress.say(f"  {line}")) as engine,
        ):
            stages = StageRunner(self.recipe, work, engine, _Bars(progress) if quietly else progress, rebuild=True)
            return stages.round(ROUND).run(self.stage, self.inputs)

    def is_made(self, out: Path) -> bool:
        """Whether `out` is what this would make; a UserError where it is something else, or was changed since."""
        if not out.exists():
            return False
        seed = stage_seed(self.recipe.seed, round=ROUND, stage=self.stage.name)
        described = describe(self.stage.settings(self.recipe), self.inputs, seed=seed)
        known = read_beside(out)
        advice = "name another file, or remove it"
        if known is None or known.stage != self.stage.name:
            raise UserError(f"{out} exists and is not what this command made there: {advice}")
        if changes := changes_since(known, described):
            lines = "\n".join(f"  - {change}" for change in changes)
            raise UserError(f"{out} exists, made from something else:\n{lines}\nTo have the new one, {advice}")
        if digest_of(out) not in {record.digest for record in known.records}:
            raise UserError(f"{out} exists, made from the same things, but was changed since: {advice}")
        return True


def put(source: Path, out: Path) -> None:
    """Copy a published stage's file to `out`, whole or not at all, its manifest before it."""
    write_text(manifest_of(out), (source.parent / MANIFEST).read_text(encoding="utf-8"))
    aside = out.with_name(out.name + ".tmp")
    with disk_errors_named(out, needed_bytes=source.stat().st_size):
        shutil.copyfile(source, aside)
        with aside.open("rb") as file:
            os.fsync(file.fileno())
    aside.replace(out)


def there_text(was_there: bool) -> str:
    """What follows the name of a file that was not made anew."""
    return ", there already and made from the same things" if was_there else ""


def unreadable(rejected: Iterable[RejectedRow]) -> list[DroppedRow]:
    """Rows of an input file that could not be read, as dropped rows."""
    return [
        DroppedRow(
            id=f"{Path(bad.file).name}:{bad.line}",
            stage="read",
            rule="unreadable",
            reason=f"field {bad.field}: {bad.reason}" if bad.field else bad.reason,
        )
        for bad in rejected
    ]


def read_dropped(out: Path) -> list[DroppedRow]:
    """The rows dropped on the way to `out`."""
    file = beside(out, DROPPED)
    return list(load_jsonl(file, DroppedRow)) if file.is_file() else []


def dropped_lines(out: Path) -> list[str]:
    """Number of dropped rows by rule, with the first reason of each; empty where there are none."""
    rows = read_dropped(out)
    if not rows:
        return []
    reasons = {row.rule: row.reason for row in reversed(rows)}
    counts = Counter(row.rule for row in rows)
    return [
        f"{len(rows):,} dropped  {beside(out, DROPPED)}",
        *(f"  {count:,} {rule}, such as: {reasons[rule]}" for rule, count in counts.items()),
    ]
