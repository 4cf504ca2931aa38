"""What a run directory holds, and whether a run is at work in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignloop.artifacts import PARTIAL, read_manifest
from alignloop.errors import RunDirError
from alignloop.loop.final import final_damage
from alignloop.loop.house import stage_line
from alignloop.loop.round_inputs import Waiting, waiting
from alignloop.progress import Progress
from alignloop.records import RoundRow
from alignloop.report.table import text_tables
from alignloop.run_dir.layout import RESOLVED, holder, read_resolved, round_numbers, stage_dirs
from alignloop.run_dir.rounds_file import read_rounds
from alignloop.run_dir.verification import verify_run


@dataclass(frozen=True)
class RoundStatus:
    """A round's published stages as lines, and the folder of the one begun; None where none is.

    Attributes:
        waits: for people; None where it does not.
    """

    number: int
    lines: tuple[str, ...]
    seconds: float
    begun: str | None
    waits: Waiting | None = None


@dataclass(frozen=True)
class Status:
    """A run directory at a glance.

    Attributes:
        running: the process at work; None where nothing runs.
        asked: rounds the recipe asks for.
        rows: the finished rounds, the base's first.
    """

    run_dir: Path
    recipe: str
    running: str | None
    asked: int
    rounds: tuple[RoundStatus, ...]
    rows: tuple[RoundRow, ...]


def read_status(run_dir: Path) -> Status:
    """Look, without touching anything.

    Raises:
        RunDirError: there is no run there.
    """
    resolved = read_resolved(run_dir)
    if resolved is None:
        raise RunDirError(_no_run(run_dir))
    return Status(
        run_dir=run_dir,
        recipe=str(resolved.get("name", "?")),
        running=holder(run_dir),
        asked=int(resolved.get("rounds", 0)),
        rounds=tuple(_round(run_dir, number, resolved) for number in round_numbers(run_dir)),
        rows=tuple(read_rounds(run_dir)),
    )


def verify_text(run_dir: Path, *, progress: Progress) -> str:
    """Read everything that a run has published, and say that it is whole.

    Raises:
        RunDirError: there is no run there, or something is damaged: a line each.
    """
    if read_resolved(run_dir) is None:
        raise RunDirError(_no_run(run_dir))
    num_outputs, damaged = verify_run(run_dir, progress=progress)
    damaged += [
        f"{run_dir / row.policy}: is gone, the policy of round {row.round} in rounds.jsonl"
        for row in read_rounds(run_dir)
        if not (run_dir / row.policy).is_dir()
    ]
    damaged += [line for line in [final_damage(run_dir)] if line]
    if damaged:
        raise RunDirError(
            "\n".join(damaged)
            + f"\n{run_dir}: damaged, see above. Remove the folder of each stage named and run again: "
            "it is redone, and what follows from it is taken over where it comes out the same"
        )
    return f"{run_dir}: all {num_outputs:,} outputs of its stages hold the bytes that were published"


def status_text(status: Status) -> str:
    """For the screen: finished rounds in a line each, the open one stage by stage, the table so far."""
    done = max((row.round for row in status.rows), default=0)
    running = f"running as process {status.running}" if status.running else "not running"
    lines = [f"{status.run_dir}: {status.recipe}, {done} of {status.asked} rounds done, {running}"]
    finished = {row.round for row in status.rows}
    for entry in status.rounds:
        if entry.number in finished and entry.waits is None:
            lines.append(f"round {entry.number}: {len(entry.lines)} stages, {entry.seconds:.0f} s")
            continue
        lines.append(f"round {entry.number}:")
        lines += entry.lines
        if entry.waits is not None and not status.running:
            lines.append(f"  {entry.begun or '01_collect'} {entry.waits.line}")
            lines += [f"    read   {entry.waits.files.questions}", f"    write  {entry.waits.files.answers}"]
        elif entry.begun is not None:
            lines.append(f"  {entry.begun} {'...' if status.running else 'was begun, and is gone on with'}")
    if status.rows:
        lines += ["", text_tables(status.rows)]
    if not status.running and done < status.asked:
        when = " when people are done" if any(entry.waits for entry in status.rounds) else ""
        lines += ["", f"The same `alignloop run` goes on from here{when}."]
    return "\n".join(lines)


def _round(run_dir: Path, number: int, resolved: Mapping[str, Any]) -> RoundStatus:
    folders = stage_dirs(run_dir, number)
    manifests = [(folder.name, manifest) for folder in folders if (manifest := read_manifest(folder)) is not None]
    partial = sorted(run_dir.glob(f"round-{number:02d}/*{PARTIAL}"))
    return RoundStatus(
        number=number,
        lines=tuple(stage_line(name, manifest, cached=False) for name, manifest in manifests),
        seconds=sum(sum(manifest.seconds.values()) for _, manifest in manifests),
        begun=partial[-1].name.removesuffix(PARTIAL) if partial else None,
        waits=waiting(resolved, run_dir, number),
    )


def _no_run(run_dir: Path) -> str:
    folder = next((folder for folder in (run_dir, run_dir.parent) if folder.is_dir()), Path())
    near = sorted(str(path.parent) for path in folder.glob(f"*/{RESOLVED}"))[:5]
    hint = f"runs there: {', '.join(near)}" if near else "`alignloop run` starts one"
    return f"{run_dir}: no run lies here; {hint}"
