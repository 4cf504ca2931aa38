"""Rounds 1..N: resume, the best policy so far, and what each round hands to the next.

round 0: ingest -> base -> evaluate -> [bootstrap -> average] -> measure
round r: run_round(start resolved from rounds 0..r-1) -> a line of rounds.jsonl
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from alignloop.artifacts import Artifact
from alignloop.chat.templates import template_file
from alignloop.config import Recipe, load_recipe
from alignloop.config.bundled import resolve_base
from alignloop.config.environment import prepare as prepare_environment
from alignloop.data.files import data_files
from alignloop.engines.base import Engine
from alignloop.errors import PeopleNeeded
from alignloop.evaluation.comparing import (
    Measured,
    ProtocolMismatch,
    read_differences,
    read_measured,
    require_same_protocol,
    write_differences,
)
from alignloop.evaluation.measures.over_optimisation import flagged
from alignloop.loop.final import publish_final
from alignloop.loop.gate import gated, require_metric
from alignloop.loop.house import House, RoundHouse, require_space
from alignloop.loop.round import RoundEnd, RoundStart, run_round
from alignloop.loop.round_inputs import answers_of, files_of_rounds, hand_out, round_file
from alignloop.preflight import check
from alignloop.preflight.disk import disk_needs_named
from alignloop.preflight.lines import opening_lines
from alignloop.progress import Progress, QuietProgress
from alignloop.records import RoundRow
from alignloop.report.rounds import round_row
from alignloop.run_dir.layout import enter, locked, require_same
from alignloop.run_dir.rounds_file import write_rounds
from alignloop.stages import average, base, bootstrap, collect, evaluate, ingest, measure


@dataclass(frozen=True)
class RunResult:
    """What a run leaves.

    Attributes:
        rounds: one row a round; the first is the base.
        final_model: complete Hugging Face directory of the best policy.
        final_round: the round it comes from, the best by `best_metric` among those that passed the gate.
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
        """The run's report, one HTML file; not there where it could not be made, which the run says."""
        from alignloop.report.html.write import REPORT

        return self.run_dir / REPORT


def run(
    recipe: str | Path | Mapping[str, Any] | Recipe = "quickstart",
    *,
    rounds: int | None = None,
    run_dir: str | Path | None = None,
    overrides: Sequence[str] = (),
    rebuild: bool = False,
    progress: Progress | None = None,
) -> RunResult:
    """Run a recipe, or go on with it: published stages are taken over.

    Args:
        recipe: a YAML path, a bundled recipe's name, a mapping or a `Recipe`.
        rounds: overrides the recipe's.
        run_dir: default `runs/<recipe name>`.
        overrides: `a.b=value` strings.
        rebuild: redo stages that no longer match instead of refusing.

    Raises:
        UserError: recipe, data, base or run directory are wrong; before any training.
        PeopleNeeded: a round waits for people's answers (`collect.annotator: human`); the same call goes on with them.
    """
    prepare_environment()
    started = time.monotonic()
    more = [] if rounds is None else [f"rounds={rounds}"]
    config = load_recipe(recipe, overrides=[*overrides, *more])
    folder = Path(run_dir) if run_dir is not None else Path("runs") / config.name
    progress = progress or QuietProgress()
    require_same(folder, config, rebuild=rebuild)
    with locked(folder):
        checked = check(config, run_dir=folder)
        for line in opening_lines(checked, recipe=config, run_dir=folder):
            progress.say(line)
        require_space(folder, needed_bytes=checked.disk_bytes)
        with disk_needs_named(folder, needed_bytes=checked.disk_bytes):
            enter(folder, config, rebuild=rebuild)
            with _open_engine(config, folder, progress) as engine:
                house = House(
                    run_dir=folder,
                    seed=config.seed,
                    engine=engine,
                    progress=progress,
                    training=config.training,
                    rebuild=rebuild,
                )
                rows = _run_rounds(house, config)
                starts = engine.num_starts
            best = best_round(rows, config.best_metric)
            final = publish_final(folder, rows=rows, best=best, recipe=config, verified=house.verified)
    return RunResult(folder, tuple(rows), final, best.round, config.best_metric, starts, time.monotonic() - started)


def _run_rounds(house: House, recipe: Recipe) -> list[RoundRow]:
    house.progress.say("round 0: the base")
    prepared = prepare(house.round(0), recipe, base_inputs=base_inputs(recipe))
    start = prepared.start
    rows = [round_row(house.run_dir, 0, policy=prepared.base, stderr=prepared.evaluation.stderr)]
    best_round(rows, recipe.best_metric)  # a metric that nothing reports is better known now than after round 1
    for metric in recipe.gate.metrics:
        require_metric(metric, rows)
    _round_ended(house, recipe, rows)
    measured = [_measured(prepared.evaluation, number=0)]
    policies = {0: start.policy}
    for number in range(1, recipe.rounds + 1):
        house.progress.say(f"round {number} of {recipe.rounds}")
        if number > 1:
            start = replace(start, policy=sampling_policy(recipe, rows, policies))
        start = replace(start, outside=from_outside(recipe, house.run_dir, number))
        try:
            end = run_round(house.round(number), recipe, start)
        except PeopleNeeded as wait:
            raise hand_out(wait, run_dir=house.run_dir, number=number) from wait
        policies[number] = end.policy
        row = round_row(house.run_dir, number, policy=end.policy, stderr=end.evaluation.stderr)
        measured.append(_measured(end.evaluation, number=number))
        write_differences(house.run_dir, measured)
        _require_one_protocol(measured, house.run_dir)
        row = gated(row, rows, recipe)
        rows.append(flagged(row, rows, differences=read_differences(house.run_dir)))
        _round_ended(house, recipe, rows)
        for flag in rows[-1].flags:
            house.progress.say(f"  round {number}: {flag}")
        if reason := rows[-1].gated:
            house.progress.say(f"  round {number} does not pass the gate: {reason}; earlier checkpoints stay in use")
        start = next_start(recipe, start, end, passed=rows[-1].gated is None)
    return rows


@dataclass(frozen=True)
class Prepared:
    """What round 0 leaves: the first round's start, the base made ready, and its benchmarks."""

    start: RoundStart
    base: Artifact
    evaluation: evaluate.Outputs


def prepare(room: RoundHouse, recipe: Recipe, *, base_inputs: base.Inputs) -> Prepared:
    """Round 0: the user's data, the base made ready, its benchmarks."""
    data = room.run(ingest.STAGE, recipe.ingest_stage, ingest_inputs(recipe, run_dir=room.house.run_dir))
    ready = room.run(base.STAGE, recipe.base_stage, base_inputs)
    evaluation = room.run(evaluate.STAGE, recipe.evaluate_stage, evaluate.Inputs(ready.checkpoint))
    policy = ready.checkpoint  # what samples first; reward model and SFT start from the base itself
    if wants_bootstrap(recipe, had_template=bool(ready.metrics["had_template"])):
        room.house.progress.say(
            "  the base has no chat behaviour: to sample first it is fine-tuned on the first batch's chosen/edited"
            " completions"
        )
        given = bootstrap.Inputs(policy, data.preferences, data.heldout)
        tuned = room.run(bootstrap.STAGE, recipe.bootstrap_stage, given)
        policy = room.run(average.STAGE, recipe.averaging.sft, average.of(tuned)).checkpoint
    answered = room.run(measure.STAGE, recipe.measure_stage, measure.Inputs(ready.checkpoint, data.heldout))
    start = RoundStart(
        policy=policy,
        sft_start=ready.checkpoint,
        reward_start=ready.checkpoint,
        preferences=data.preferences,
        heldout=data.heldout,
        prompts=data.prompts,
        batches=(),
        scored=None,
        before=measure.of_base(ready.checkpoint, answered),
    )
    return Prepared(start, ready.checkpoint, evaluation)


def next_start(recipe: Recipe, start: RoundStart, end: RoundEnd, *, passed: bool = True) -> RoundStart:
    """`start_from: previous` goes on from this round's checkpoint, `base` from the base, where the first round began.

    Args:
        passed: whether the round's policy passed the gate; one that did not hands on its data and its reward model.
    """
    return replace(
        start,
        sft_start=end.policy if passed and recipe.sft.start_from == "previous" else start.sft_start,
        reward_start=end.reward_model if recipe.reward.start_from == "previous" else start.reward_start,
        prompts=end.prompts,
        batches=(*start.batches, end.batch),
        scored=end.scored,
        before=measure.after(start.before, reward_model=end.reward_model, measured=end.measured),
    )


def sampling_policy(recipe: Recipe, rows: Sequence[RoundRow], policies: Mapping[int, Artifact]) -> Artifact:
    """The checkpoint a later round samples from: the last that passed the gate, or the best so far."""
    passed = [row for row in rows[1:] if row.gated is None]
    if not passed:
        return policies[0]
    if recipe.sample.policy == "previous":
        return policies[passed[-1].round]
    # The bare base never samples again: round 1's policy at least has chat behaviour.
    return policies[best_round(passed, recipe.best_metric).round]


def best_round(rows: Sequence[RoundRow], metric: str) -> RoundRow:
    """The round with the highest `metric` among those that passed the gate; the later one of equals.

    Raises:
        UserError: the benchmarks report no such metric.
    """
    require_metric(metric, rows, field="best_metric")
    return max((row for row in rows if row.gated is None), key=lambda row: (row.metrics[metric], row.round))


def from_outside(recipe: Recipe, run_dir: Path, number: int) -> collect.FromOutside:
    """A round's own file and people's answers, as they lie there when it begins."""
    return collect.FromOutside(file=round_file(recipe, run_dir, number), answers=answers_of(recipe, run_dir, number))


def ingest_inputs(recipe: Recipe, *, run_dir: Path | None = None) -> ingest.Inputs:
    """The user's files with their digests; where each is a round's own, the first round's alone.

    Args:
        run_dir: knows which file the first round took, where it has begun.
    """
    if recipe.data.batches == "files":
        preferences = files_of_rounds(recipe, run_dir, number=1)
    else:
        preferences = data_files(recipe.preferences, kind="preferences")
    return ingest.inputs(
        recipe.ingest_stage,
        preferences=tuple(Artifact.of(file) for file in preferences),
        prompts=tuple(Artifact.of(file) for file in data_files(recipe.prompts, kind="prompts")),
    )


def base_inputs(recipe: Recipe) -> base.Inputs:
    """The base's folder with its digest, or its hub id; likewise its chat template's file or name."""
    path = Path(resolve_base(recipe.base)).expanduser()
    return base.Inputs(
        base=Artifact.of(path) if path.is_dir() else recipe.base,
        chat_template=template_input(recipe),
    )


def template_input(recipe: Recipe) -> str | Artifact | None:
    """The recipe's chat template: its file with a digest, or the name of one that we ship."""
    file = None if recipe.chat_template is None else template_file(recipe.chat_template)
    return recipe.chat_template if file is None else Artifact.of(file)


def wants_bootstrap(recipe: Recipe, *, had_template: bool) -> bool:
    """`auto`: a base that brings no chat template has no chat behaviour to sample from."""
    return recipe.bootstrap == "always" or (recipe.bootstrap == "auto" and not had_template)


def _open_engine(recipe: Recipe, run_dir: Path, progress: Progress) -> Engine:
    from alignloop.engines.open import open_engine

    return open_engine(
        recipe.engine,
        log_file=run_dir / "engine.log",
        say=lambda line: progress.say(f"  {line}"),
        fallback_said=True,  # a note of `check`, among the first lines
    )


def _measured(evaluation: evaluate.Outputs, *, number: int) -> Measured:
    return read_measured(evaluation.report.path, evaluation.samples.path, name=f"round {number}")


def _require_one_protocol(measured: Sequence[Measured], run_dir: Path) -> None:
    """The best round, and the gate, compare all rounds: the last one must have been measured as the first was."""
    try:
        require_same_protocol(measured[0], measured[-1])
    except ProtocolMismatch as error:
        stages = f"{run_dir}/round-*/*_evaluate"
        raise ProtocolMismatch(
            f"{error}\nRemove the evaluations that were made otherwise ({stages}) and run the same command again: they "
            "are measured anew, and nothing is trained again."
        ) from error


def _round_ended(house: House, recipe: Recipe, rows: Sequence[RoundRow]) -> None:
    """What a person looks at while the run goes on."""
    from alignloop.report.html.write import write_report_or_say
    from alignloop.training.run_trackers import track_round

    write_rounds(house.run_dir, rows)
    track_round(house.run_dir, rows[-1], names=recipe.training.trackers, say=house.progress.say)
    write_report_or_say(house.run_dir, say=house.progress.say)
