"""Rounds 0..N in order: what each leaves to the next, which policy samples, and the gate.

round 0: ingest -> base -> evaluate -> [bootstrap -> average] -> measure [-> evaluate_test]
round r: run_round(start resolved from rounds 0..r-1) [-> evaluate_test] -> a row
best:    [evaluate_test]

A round that falls too far on a metric its recipe names is not sampled from, built on, or published.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist

from alignloop.artifacts import Artifact
from alignloop.config import Recipe
from alignloop.data.files import data_files
from alignloop.errors import PeopleNeeded, UserError
from alignloop.evaluation.comparing import Measured, change_of, require_same_protocol
from alignloop.loop.round import RoundEnd, RoundStart, run_round
from alignloop.loop.round_inputs import answers_of, ask_people, files_of_rounds, round_file
from alignloop.records import RoundRow
from alignloop.run_dir.manifest import published
from alignloop.stages import average, base, bootstrap, collect, evaluate, ingest, measure
from alignloop.stages.other_policies import last_policies, named_policies
from alignloop.stages.runner import StageRunner

ROUNDING = 1e-9
"""A fall of exactly `gate.max_regression` passes, whatever its last binary digits are."""
FALSE_ALARMS = 0.05
"""Share of runs of `ALARMED_ROUNDS` rounds, all as good as their base, in which the gate may hold one back."""
ALARMED_ROUNDS = 6
"""The paper's number; a round's own share does not depend on how many are still to come."""


@dataclass(frozen=True)
class Ending:
    """What a round ends with: its policy (of round 0 the base), the benchmarks that choose, and those that only report,
    where they were asked."""

    policy: Artifact
    evaluation: evaluate.Outputs | None
    tested: evaluate.Outputs | None


Ended = Callable[[int, Ending, list[RoundRow]], RoundRow]
"""(round, what it ends with, the rows before) -> its row."""


def run_rounds(
    stages: StageRunner,
    *,
    base_inputs: base.Inputs,
    ended: Ended,
    choose: Callable[[Recipe, Sequence[RoundRow], Mapping[int, Artifact]], Artifact] | None = None,
) -> list[RoundRow]:
    """All rounds of the runner's recipe; `choose` picks the policy that samples from round 2 on, by default
    `sampling_policy`. Raises PeopleNeeded where a round waits for answers; its questions are then in `annotations/`."""
    recipe, run_dir, say = stages.recipe, stages.run_dir, stages.progress.say
    say("round 0: the base")
    prepared = prepare(stages.round(0), base_inputs=base_inputs)
    start, policies = prepared.start, {0: prepared.start.policy}
    variants, named = dict[int, tuple[Artifact, ...]](), named_policies(recipe)
    rows = [ended(0, prepared.ending, [])]
    for number in range(1, recipe.rounds + 1):
        say(f"round {number} of {recipe.rounds}")
        if number > 1:
            start = replace(start, policy=(choose or sampling_policy)(recipe, rows, policies))
        others = other_policies(recipe, rows, policies, policy=start.policy, variants=variants, named=named)
        start = replace(start, other_policies=others)
        # A round's own file and people's answers, as they lie there when it begins.
        files = collect.RoundFiles(
            file=round_file(recipe, run_dir, number), answers=answers_of(recipe, run_dir, number)
        )
        try:
            end = run_round(stages.round(number), replace(start, files=files))
        except PeopleNeeded as wait:
            raise ask_people(wait, run_dir=run_dir, number=number) from wait
        policies[number], variants[number] = end.policy, end.variants
        is_due = number == recipe.rounds or (recipe.evaluate.test_rounds == "all" and recipe.evaluates(number))
        tested = _test(stages, end.policy, is_due=is_due)
        rows.append(ended(number, Ending(end.policy, end.evaluation, tested), rows))
        start = next_start(recipe, start, end, passed=rows[-1].gated is None)
    return rows


@dataclass(frozen=True)
class Prepared:
    start: RoundStart
    ending: Ending


def prepare(stages: StageRunner, *, base_inputs: base.Inputs) -> Prepared:
    recipe = stages.recipe
    data = stages.run(ingest.STAGE, ingest_inputs(recipe, run_dir=stages.run_dir))
    ready = stages.run(base.STAGE, base_inputs)
    evaluation = stages.run(evaluate.STAGE, evaluate.Inputs(ready.checkpoint))
    policy = ready.checkpoint  # what samples first; reward model and SFT start from the base itself
    # A base that brings no chat template has no chat behaviour to sample from.
    if recipe.bootstrap == "always" or (recipe.bootstrap == "auto" and not ready.metrics["had_template"]):
        stages.progress.say(
            "  the base has no chat behaviour: to sample first it is fine-tuned on the first batch's chosen/edited"
            " completions"
        )
        tuned = stages.run(bootstrap.STAGE, bootstrap.Inputs(policy, data.preferences, data.heldout))
        policy = stages.run(average.SFT, average.of(tuned)).checkpoint
    answered = stages.run(measure.STAGE, measure.Inputs(ready.checkpoint, data.heldout))
    start = RoundStart(
        policy=policy,
        base=ready.checkpoint,
        previous=ready.checkpoint,
        average=ready.checkpoint,
        sft_start=ready.checkpoint,
        reward_start=ready.checkpoint,
        reward_model=None,
        preferences=data.preferences,
        heldout=data.heldout,
        prompts=data.prompts,
        batches=(),
        scored=None,
        before=measure.of_base(ready.checkpoint, answered),
        demonstrations=data.demonstrations,
    )
    tested = _test(stages, ready.checkpoint, is_due=True)
    return Prepared(start, Ending(ready.checkpoint, evaluation, tested))


def _test(stages: StageRunner, policy: Artifact, *, is_due: bool) -> evaluate.Outputs | None:
    """The test tasks of the round that the runner is at. Where they are not due yet, because it may be neither the last
    nor the best, what an earlier call has asked stands."""
    if not stages.recipe.evaluate.test_tasks:
        return None
    return stages.run_due(evaluate.TEST, evaluate.Inputs(policy), is_due=is_due)


def ask_best(stages: StageRunner, best: RoundRow) -> evaluate.Outputs | None:
    """The test tasks of the best round, which is known after the last; it was not asked them before."""
    return _test(stages.back_to(best.round), published(stages.run_dir / best.policy), is_due=True)


def next_start(recipe: Recipe, start: RoundStart, end: RoundEnd, *, passed: bool = True) -> RoundStart:
    """`start_from: previous` goes on from this round's checkpoint, `base` from the base, where the first round began. A
    policy that has not `passed` the gate leaves its data and its reward model."""
    return replace(
        start,
        previous=end.policy if passed else start.previous,
        average=end.average if passed else start.average,
        optimizer=end.optimizer if passed else start.optimizer,
        reward_model=end.reward_model,
        sft_start=end.policy if passed and recipe.sft.start_from == "previous" else start.sft_start,
        reward_start=end.reward_average if recipe.reward.start_from == "previous" else start.reward_start,
        prompts=end.prompts,
        batches=(*start.batches, end.batch),
        scored=end.scored,
        other_candidates=end.other_candidates,
        before=measure.after(start.before, reward_model=end.reward_model, measured=end.measured),
    )


def sampling_policy(recipe: Recipe, rows: Sequence[RoundRow], policies: Mapping[int, Artifact]) -> Artifact:
    """The checkpoint a later round samples from, by `sample.policy`: of the rounds that passed the gate the last, the
    last up to a round, or the best so far."""
    last = recipe.sample.policy_round or len(rows)
    passed = [row for row in rows[1:] if row.gated is None and row.round <= last]
    if not passed or recipe.sample.policy == "base":
        return policies[0]
    if recipe.sample.policy != "best":
        return policies[passed[-1].round]
    # The bare base never samples again: round 1's policy at least has chat behaviour.
    return policies[best_round(passed, recipe.best_metric).round]


def other_policies(
    recipe: Recipe,
    rows: Sequence[RoundRow],
    policies: Mapping[int, Artifact],
    *,
    policy: Artifact,
    variants: Mapping[int, tuple[Artifact, ...]],
    named: tuple[Artifact, ...] = (),
) -> tuple[Artifact, ...]:
    """The models of `collect.policies` beside `policy`: those that it names, or as many of the run's own as there are
    so far; the base is none of these."""
    if named:
        return last_policies(len(named), policy, variants=(), passed=named)
    passed = [row.round for row in reversed(rows[1:]) if row.gated is None]
    of_policy = next((number for number in passed if policies[number].path == policy.path), 0)
    return last_policies(
        recipe.collect.num_policies - 1,
        policy,
        variants=variants.get(of_policy, ()),
        passed=[policies[number] for number in passed],
    )


def best_round(rows: Sequence[RoundRow], metric: str) -> RoundRow:
    """The round with the highest `metric` of those that were asked the benchmarks and passed the gate, the later of
    equals; raises UserError if it is not reported."""
    asked = [row for row in rows if row.metrics]
    require_metric(metric, asked, field="best_metric")
    return max((row for row in asked if row.gated is None), key=lambda row: (row.metrics[metric], row.round))


def ingest_inputs(recipe: Recipe, *, run_dir: Path | None = None) -> ingest.Inputs:
    """The user's files with their digests; where each is a round's own, only the first round's, which `run_dir` knows
    if it began."""
    if recipe.data.batches == "files":
        preferences = files_of_rounds(recipe, run_dir, number=1)
    else:
        preferences = data_files(recipe.preferences, kind="preferences")
    return ingest.inputs(
        recipe,
        preferences=tuple(Artifact.of(file) for file in preferences),
        prompts=tuple(Artifact.of(file) for file in data_files(recipe.prompts, kind="prompts")),
    )


def gated(row: RoundRow, earlier: Sequence[RoundRow], recipe: Recipe, *, measured: Mapping[int, Measured]) -> RoundRow:
    """`row`, with the reason if it does not pass: each metric that has fallen too far below the best of the rounds that
    passed, with its value, the best, the interval and the limit.

    It has where the whole interval of its difference to the best, paired by question, lies below
    `-gate.max_regression`. A plain 95 % interval does not do: the best of several rounds is ahead partly by chance, and
    every round is asked. Of runs of six rounds that are all as good as their base it holds one back in 29 %. So the
    interval is simultaneous (Bonferroni): its upper end has an error of `FALSE_ALARMS`, shared evenly by
    `ALARMED_ROUNDS` rounds, the metrics, and the rounds of which the best was chosen. Of such runs it holds one back
    in 4 %. A metric that is no mean over questions has no interval: there the figures alone are compared.

    Args:
        earlier: the rounds before, the base first, as this function returned them.
        measured: every round's benchmarks by its number.

    Raises:
        UserError: a named metric is not reported.
        ProtocolMismatch: the best round was measured otherwise.
    """
    limit = recipe.gate.max_regression
    if limit is None:
        return row.model_copy(update={"gated": None})
    passed = [other for other in earlier if other.gated is None]
    metrics = gate_metrics(recipe)
    num_errors = simultaneous(len(passed), num_metrics=len(metrics))
    reasons = []
    for metric in metrics:
        require_metric(metric, [row, *passed])
        best = max(passed, key=lambda other: (other.metrics[metric], other.round))
        before, after = measured[best.round], measured[row.round]
        require_same_protocol(before, after)
        fall, least, most = _fall(metric, before, after, num_errors=num_errors)
        if least > limit + ROUNDING:
            reach = f" ({least:.4f} to {most:.4f})" if most > least else ""
            reasons.append(
                f"{metric} {row.metrics[metric]:.4f} is {fall:.4f}{reach} below round {best.round}'s "
                f"{best.metrics[metric]:.4f}"
            )
    reason = f"{'; '.join(reasons)} (gate.max_regression {limit:g})" if reasons else None
    return row.model_copy(update={"gated": reason})


def _fall(metric: str, before: Measured, after: Measured, *, num_errors: float) -> tuple[float, float, float]:
    """By how much a metric fell, at least and at most; all three are one where it has no interval."""
    fall = before.values[metric] - after.values[metric]
    change = change_of(metric, before, after, num_errors=num_errors)
    if change is None or change.low is None or change.high is None:
        return fall, fall, fall
    return fall, -change.high, -change.low


def simultaneous(num_passed: int, *, num_metrics: int = 1) -> float:
    """Standard errors on either side of a difference to the best of `num_passed` rounds, see `gated`."""
    return NormalDist().inv_cdf(1.0 - FALSE_ALARMS / (ALARMED_ROUNDS * num_metrics * num_passed))


def gate_metrics(recipe: Recipe) -> tuple[str, ...]:
    """What the gate compares; none where every round passes."""
    return () if recipe.gate.max_regression is None else recipe.gate.metrics or (recipe.best_metric,)


def require_metric(metric: str, rows: Sequence[RoundRow], *, field: str = "gate.metrics") -> None:
    """Raises UserError, with what is reported, where one of `rows` lacks `metric`."""
    for row in rows:
        if metric not in row.metrics:
            known = ", ".join(sorted(row.metrics))
            raise UserError(f"{field}: {metric!r} is not reported by this run's tasks - reported: {known}")
