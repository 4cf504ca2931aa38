"""What a run directory holds, and whether a run is at work in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from alignloop.errors import RunDirError
from alignloop.loop.final import final_damage
from alignloop.loop.house import stage_line
from alignloop.loop.round_inputs import Waiting, waiting
from alignloop.progress import Progress
from alignloop.records import RoundRow
from alignloop.report.table import text_tables
from alignloop.run_dir.layout import holder, stage_folder
from alignloop.run_dir.reader import HOW_TO_BEGIN, RunReader, begun_stage
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
    run = RunReader(run_dir, hint=HOW_TO_BEGIN)
    return Status(
        run_dir=run_dir,
        recipe=str(run.recipe.get("name", "?")),
        running=holder(run_dir),
        asked=int(run.recipe.get("rounds", 0)),
        rounds=tuple(_round(run, number) for number in run.rounds),
        rows=tuple(read_rounds(run_dir)),
    )


def verify_text(run_dir: Path, *, progress: Progress) -> str:
    """Read everything that a run has published, and say that it is whole.

    Raises:
        RunDirError: there is no run there, or something is damaged: a line each.
    """
    num_outputs, damaged = verify_run(RunReader(run_dir, hint=HOW_TO_BEGIN).run_dir, progress=progress)
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
            lines.append(f"  {entry.begun or stage_folder(1, 'collect')} {entry.waits.line}")
            lines += [f"    read   {entry.waits.files.questions}", f"    write  {entry.waits.files.answers}"]
        elif entry.begun is not None:
            lines.append(f"  {entry.begun} {'...' if status.running else 'was begun, and is gone on with'}")
    if status.rows:
        lines += ["", text_tables(status.rows)]
    if not status.running and done < status.asked:
        when = " when people are done" if any(entry.waits for entry in status.rounds) else ""
        lines += ["", f"The same `alignloop run` goes on from here{when}."]
    return "\n".join(lines)


def _round(run: RunReader, number: int) -> RoundStatus:
    stages = run.stages[number]
    return RoundStatus(
        number=number,
        lines=tuple(stage_line(stage.dir.name, stage.manifest, cached=False) for stage in stages),
        seconds=sum(sum(stage.manifest.seconds.values()) for stage in stages),
        begun=begun_stage(run.run_dir, number),
        waits=waiting(run.recipe, run.run_dir, number),
    )
