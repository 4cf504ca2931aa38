"""A run: checks, rounds in order, and the best policy published."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignloop.config import Recipe, load_recipe
from alignloop.engines.open import LOG_FILE, log_named, open_engine
from alignloop.environment import prepare as prepare_environment
from alignloop.errors import UserError
from alignloop.evaluation.comparing import (
    Measured,
    ProtocolMismatch,
    read_differences,
    read_measured,
    require_same_protocol,
    write_differences,
)
from alignloop.evaluation.disagreement import flagged
from alignloop.loop.check import check, disk_needs_named, require_space
from alignloop.loop.final import publish_final
from alignloop.loop.plan_text import opening_lines
from alignloop.loop.rounds import Ending, ask_best, best_round, gate_metrics, gated, require_metric, run_rounds
from alignloop.progress import Progress, QuietProgress
from alignloop.records import RoundRow
from alignloop.report.rounds import round_row, seconds_of
from alignloop.run_dir.layout import enter, locked, require_same
from alignloop.run_dir.reader import RunReader, write_rounds
from alignloop.stages import base, evaluate
from alignloop.stages.runner import StageRunner

BY_CHANCE = "a round that lies further below the best so far than gate.max_regression is held back, if only by chance"


@dataclass(frozen=True)
class RunResult:
    """What a run leaves.

    Attributes:
        rounds: one row a round; the first is the base.
        final_model: complete Hugging Face directory of the best policy.
        final_round: the best by `best_metric` among those that passed the gate.
        num_engine_starts: 1 unless an engine died; 0 where everything was cached.
        seconds: wall time of this call.
    """

    run_dir: Path
    rounds: tuple[RoundRow, ...]
    final_model: Path
    final_round: int
    best_metric: str
    num_engine_starts: int
    seconds: float

    @property
    def report(self) -> Path:
        """The run's report, one HTML file; missing where it could not be made, which the run reports."""
        from alignloop.report.pages import REPORT

        return self.run_dir / REPORT


def run(
    recipe: str | Path | Mapping[str, Any] | Recipe = "quickstart",
    *,
    rounds: int | None = None,
    run_dir: str | Path | None = None,
    overrides: Sequence[str] = (),
    rebuild: bool = False,
    share_with: Sequence[str | Path] = (),
    progress: Progress | None = None,
) -> RunResult:
    """Run a recipe, or go on with it: published stages are taken over.

    Args:
        recipe: a YAML path, a bundled recipe's name, a mapping or a `Recipe`.
        rounds: overrides the recipe's.
        run_dir: default `runs/<recipe name>`.
        overrides: `a.b=value` strings.
        rebuild: redo stages that no longer match instead of refusing.
        share_with: run directories whose stages are taken over where they were made from the same things.

    Raises:
        UserError: recipe, data, base or run directory are wrong; before any training.
        PeopleNeeded: a round waits for people's answers (`collect.annotator: human`); the same call goes on with them.
    """
    prepare_environment()
    started = time.monotonic()
    more = [] if rounds is None else [f"rounds={rounds}"]
    config = load_recipe(recipe, overrides=[*overrides, *more])
    folder = Path(run_dir) if run_dir is not None else Path("runs") / config.name
    shown: Progress = progress or QuietProgress()
    others = _others(share_with, folder)
    require_same(folder, config, rebuild=rebuild)
    log_file = folder / LOG_FILE
    with log_named(log_file), locked(folder):
        checked = check(config, run_dir=folder)
        for line in opening_lines(checked, recipe=config, run_dir=folder):
            shown.say(line)
        require_space(folder, needed_bytes=checked.disk_bytes)
        with disk_needs_named(folder, needed_bytes=checked.disk_bytes):
            enter(folder, config, rebuild=rebuild)
            with open_engine(
                config.engine,
                log_file=log_file,
                say=lambda line: shown.say(f"  {line}"),
                fallback_known=True,  # a note of `check`, among the first lines
            ) as engine:
                stages = StageRunner(config, folder, engine, shown, rebuild=rebuild, share_with=others)
                ended = _Ended(stages)
                rows = ended.finish(run_rounds(stages, base_inputs=base.inputs(config), ended=ended))
                starts = engine.num_starts
            best = best_round(rows, config.best_metric)
            final = publish_final(folder, rows=rows, best=best, recipe=config, verified=stages.verified)
    return RunResult(folder, tuple(rows), final, best.round, config.best_metric, starts, time.monotonic() - started)


def _others(run_dirs: Sequence[str | Path], folder: Path) -> tuple[Path, ...]:
    """Other runs to share with; raises UserError where one is none, or the run itself."""
    others = tuple(Path(each) for each in run_dirs)
    for other in others:
        RunReader(other, hint="share with the directory of a run, as runs/NAME")
        if other.resolve() == folder.resolve():
            raise UserError(f"{other}: is the run itself, which goes on with its own stages; share with another run")
    return others


@dataclass
class _Ended:
    """What the run makes of its rounds; `measured` and `tested` are their benchmarks, those that choose and those that
    only report."""

    stages: StageRunner
    measured: dict[int, Measured] = field(default_factory=dict)
    tested: dict[int, Measured] = field(default_factory=dict)

    def __call__(self, number: int, ending: Ending, earlier: list[RoundRow]) -> RoundRow:
        recipe, run_dir, say = self.stages.recipe, self.stages.run_dir, self.stages.progress.say
        if ending.evaluation is None:  # by the schedule: it can be neither the best nor the last
            row = round_row(run_dir, number, policy=ending.policy, stderr={})
            write_rounds(run_dir, [*earlier, row])
            return row
        row = round_row(run_dir, number, policy=ending.policy, stderr=ending.evaluation.stderr)
        own = self.measured[number] = _measured(number, ending.evaluation)
        if ending.tested is not None:
            row = self._with_test(row, ending.tested)
        if number == 0:
            best_round([row], recipe.best_metric)  # what nothing reports is better known now than after round 1
            for metric in recipe.gate.metrics:
                require_metric(metric, [row])
            for metric in gate_metrics(recipe):
                if metric not in own.estimates:
                    say(f"  gate: {metric} is no mean over questions, so it has no interval: {BY_CHANCE}")
        else:
            self._compare()
            _require_one_protocol(self.measured[0], own, run_dir)
            row = gated(row, earlier, recipe, measured=self.measured)
            groups = own.protocol.groups
            row = flagged(row, differences=read_differences(run_dir), groups=groups)
        self._publish([*earlier, row], number)
        for flag in row.flags:
            say(f"  round {number}: {flag}")
        if row.gated:
            say(f"  round {number} does not pass the gate: {row.gated}; earlier checkpoints stay in use")
        return row

    def finish(self, rows: Sequence[RoundRow]) -> list[RoundRow]:
        """The rows with the best round's test, which is known to be the best now, and is compared with the last."""
        best, rows = best_round(rows, self.stages.recipe.best_metric), list(rows)
        if best.round not in self.tested:
            tested = ask_best(self.stages, best)
            if tested is not None:
                rows[best.round] = self._with_test(best, tested)
        self._compare(best=best.round)
        self._publish(rows, best.round)
        return rows

    def _with_test(self, row: RoundRow, tested: evaluate.Outputs) -> RoundRow:
        self.tested[row.round] = _measured(row.round, tested)
        metrics, stderr = {**row.metrics, **tested.metrics}, {**row.stderr, **tested.stderr}
        seconds = seconds_of(self.stages.run_dir, row.round)
        return row.model_copy(update={"metrics": metrics, "stderr": stderr, "seconds": seconds})

    def _compare(self, *, best: int | None = None) -> None:
        write_differences(self.stages.run_dir, self.measured, tested=self.tested, best=best)

    def _publish(self, rows: Sequence[RoundRow], number: int) -> None:
        """All rows, `number` the one that is new."""
        from alignloop.report.pages import write_report_or_say
        from alignloop.training.run_trackers import track_round

        run_dir, say = self.stages.run_dir, self.stages.progress.say
        write_rounds(run_dir, rows)
        track_round(run_dir, rows[number], names=self.stages.recipe.training.trackers, say=say)
        write_report_or_say(run_dir, say=say)


def _measured(number: int, evaluation: evaluate.Outputs) -> Measured:
    return read_measured(evaluation.report.path, evaluation.samples.path, name=f"round {number}")


def _require_one_protocol(first: Measured, last: Measured, run_dir: Path) -> None:
    """Gate and best round compare all rounds: the last must have been measured as the first was."""
    try:
        require_same_protocol(first, last)
    except ProtocolMismatch as error:
        stages = f"{run_dir}/round-*/*_evaluate"
        raise ProtocolMismatch(
            f"{error}\nRemove the evaluations that were made otherwise ({stages}) and run the same command again: they "
            "are measured anew, and nothing is trained again."
        ) from error
