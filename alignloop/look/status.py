"""What a run directory holds, and whether a run is at work in it."""

from __future__ import annotations

from pathlib import Path

from alignloop.errors import RunDirError
from alignloop.loop.final import final_damage
from alignloop.loop.round_inputs import Waiting, waiting
from alignloop.progress import Progress
from alignloop.report.rounds import groups_of, text_tables
from alignloop.run_dir.layout import holder, stage_folder
from alignloop.run_dir.reader import HOW_TO_BEGIN, RunReader, begun_stage, read_rounds
from alignloop.run_dir.verification import verify_run
from alignloop.stages.runner import stage_line

MOST_ENDED = 10
"""The last so many rounds that have ended get a line of their own."""


def verify_text(run_dir: Path, *, progress: Progress) -> str:
    """Read everything that a run has published, and say that it is whole; RunDirError where there is no run or
    something is damaged: a line each."""
    run = RunReader(run_dir, hint=HOW_TO_BEGIN)
    num_outputs, damaged = verify_run(run.run_dir, progress=progress)
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


def status_text(run_dir: Path) -> str:
    """Finished rounds in a line each, the open one stage by stage, the table so far. Only reads; RunDirError where
    there is no run."""
    run = RunReader(run_dir, hint=HOW_TO_BEGIN)
    holding, rows = holder(run_dir), read_rounds(run_dir)
    done, wanted = max((row.round for row in rows), default=0), int(run.recipe.get("rounds", 0))
    running = f"running as process {holding}" if holding else "not running"
    lines = [f"{run_dir}: {run.recipe.get('name', '?')}, {done} of {wanted} rounds done, {running}"]
    waits = {number: waiting(run.recipe, run_dir, number) for number in run.rounds}
    finished = {row.round for row in rows}
    ended = [number for number, wait in waits.items() if number in finished and wait is None]
    if left_out := ended[1:-MOST_ENDED]:
        lines.append(f"rounds {left_out[0]} to {left_out[-1]}: ended")
    for number, wait in waits.items():
        if number in left_out:
            continue
        if number in ended:
            seconds = sum(sum(stage.manifest.seconds.values()) for stage in run.stages[number])
            lines.append(f"round {number}: {len(run.stages[number])} stages, {seconds:.0f} s")
        else:
            lines += [f"round {number}:", *_open_round(run, number, wait, is_running=holding is not None)]
    if rows:
        lines += ["", text_tables(rows, groups=groups_of(run_dir))]
    if holding is None and done < wanted:
        when = " when people are done" if any(waits.values()) else ""
        lines += ["", f"The same `alignloop run` goes on from here{when}."]
    return "\n".join(lines)


def _open_round(run: RunReader, number: int, wait: Waiting | None, *, is_running: bool) -> list[str]:
    """Its published stages, and what becomes of the one that has begun."""
    lines = [stage_line(stage.dir.name, stage.manifest, cached=False) for stage in run.stages[number]]
    begun = begun_stage(run.run_dir, number)
    if wait is not None and not is_running:
        lines.append(f"  {begun or stage_folder(1, 'collect')} {wait.line}")
        lines += [f"    read   {wait.files.questions}", f"    write  {wait.files.answers}"]
    elif begun is not None:
        lines.append(f"  {begun} {'...' if is_running else 'was begun, and is gone on with'}")
    return lines
