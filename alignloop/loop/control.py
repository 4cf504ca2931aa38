"""The same run with one organ removed, at equal annotations and equal training tokens: what was that organ worth?

finished run --its recipe, a kind's settings, its tokens a round--> recipe of the control
    --run, sharing what both make from the same things--> control --question by question--> what the run gained
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from alignloop.config import Recipe, load_recipe
from alignloop.errors import UserError, did_you_mean
from alignloop.loop.run import RunResult, run
from alignloop.progress import Progress, QuietProgress
from alignloop.report.facts import RunRecord, read_run
from alignloop.report.paired import Comparison, Spent, compare_runs
from alignloop.run_dir.layout import changed_fields
from alignloop.run_dir.reader import RunReader
from alignloop.terminal import wrapped
from alignloop.training.variants import num_trainings

Settings = Mapping[str, Any]
"""`a.b` of the recipe -> its value in the control."""
ANNOTATED_ALONE = ("file", "annotated")
_ANNOTATORS = ("min_annotated", "strength_gaps", "policies", "edits")
"""Keys of `collect` that want an annotator."""


@dataclass(frozen=True)
class Kind:
    """What a control goes without.

    Attributes:
        removed: the organ, in a sentence.
        settings: what it is in the recipe. Lists of sources keep what the run's recipe names of them.
        reward_prunes: whether pruning may go by rewards.
        tokens: which stage trains on the run's tokens of which stages.
    """

    removed: str
    settings: Settings
    reward_prunes: bool = True
    tokens: Literal["each", "sft", "dpo"] = "each"


KINDS: Mapping[str, Kind] = {
    "offline": Kind(
        "No loop: what is annotated is what the base says, in every round, and nothing that a policy says, or the "
        "reward model picks, is trained on.",
        {
            "sample.policy": "base",
            "collect.pairing": "random",
            "collect.policies": None,
            "prune.sources": ANNOTATED_ALONE,
            "pairs.sources": ANNOTATED_ALONE,
        },
        reward_prunes=False,
    ),
    "random-pick": Kind(
        "No reward model: it still trains and scores, and picks nothing: neither the candidate that SFT trains on, nor "
        "pairs, nor what is annotated.",
        {"select.pick": "random", "collect.pairing": "random", "pairs.sources": ANNOTATED_ALONE},
        reward_prunes=False,
    ),
    "sft-only": Kind("No DPO: its tokens go to SFT.", {"pairs.sources": ()}, tokens="sft"),
    "dpo-only": Kind("No SFT: its tokens go to DPO.", {"prune.sources": ()}, tokens="dpo"),
    "no-annotation": Kind(
        "No annotations: the user's files are all that people, or a judge, ever said.",
        {"collect.annotator": "none", **dict.fromkeys(f"collect.{key}" for key in _ANNOTATORS)},
    ),
    "no-pruning": Kind(
        "No pruning: SFT trains on every row. Questions of the benchmarks stay out, as in every run.",
        {f"prune.{step}.enabled": False for step in ("clean", "quality", "difficulty", "near_duplicates")}
        | {"prune.semantic_dedup.enabled": False, "prune.mix": {}},
    ),
}
NO_PEOPLE = "no-annotation"
"""The kind for which people are not asked again: every other one has answers of its own to compare."""


@dataclass(frozen=True)
class ControlResult:
    """A finished control, and the run against it."""

    run: RunResult
    compared: Comparison


def control(
    recipe: str | Path | Mapping[str, Any] | Recipe = "quickstart",
    *,
    kind: str,
    of: str | Path | None = None,
    run_dir: str | Path | None = None,
    rounds: int | None = None,
    overrides: Sequence[str] = (),
    rebuild: bool = False,
    progress: Progress | None = None,
) -> ControlResult:
    """Make the control of a finished run, or go on with it, and compare the two.

    Args:
        recipe: the run's own, as `run` takes it.
        kind: one of KINDS.
        of: the run; default `runs/<recipe name>`.
        run_dir: the control's; default `<of>-<kind>`.
        rounds: default: as many as the run has.

    Raises:
        UserError: no such kind, the run is not finished or of another recipe, it lacks the organ, people would have to
            annotate again; and as `run`.
    """
    shown: Progress = progress or QuietProgress()
    _require_kind(kind)
    own = load_recipe(recipe, overrides=overrides)
    folder = Path(of) if of is not None else Path("runs") / own.name
    source = _finished(folder, own, rounds=rounds)
    number = source.num_done if rounds is None else rounds
    config = control_recipe(
        own, kind, spent=Spent.of([e for e in source.rounds if 1 <= e.number <= number]), rounds=number
    )
    for line in wrapped(f"{kind} of {folder}. {KINDS[kind].removed}", "control  ", " " * 9):
        shown.say(line)
    named = folder if folder.name not in ("", "..") else folder.resolve()
    target = named.with_name(f"{named.name}-{kind}") if run_dir is None else Path(run_dir)
    made = run(config, run_dir=target, share_with=[folder], rebuild=rebuild, progress=shown)
    return ControlResult(made, compare_runs([folder, target]))


def control_recipe(recipe: Recipe, kind: str, *, spent: Spent, rounds: int) -> Recipe:
    """The recipe of a run's control, in which training goes on until it has had what the run's `rounds` had on average.

    Raises:
        UserError: no such kind, or the recipe lacks the organ that it goes without; people would have to be asked
            again.
    """
    _require_kind(kind)
    if recipe.policy.by != "dpo":
        raise UserError(
            f"--kind {kind}: controls are of runs that train DPO, and policy.by is {recipe.policy.by} - run the recipe "
            "itself with what you want to compare set otherwise"
        )
    if recipe.collect.annotator == "human" and kind != NO_PEOPLE:
        raise UserError(
            f"--kind {kind}: its policies give answers of their own, which people would have to compare anew "
            f"(collect.annotator: human) - take --kind {NO_PEOPLE}, or a judge in place of people in both runs"
        )
    settings = dict(KINDS[kind].settings)
    for key in (key for key in settings if key.endswith(".sources")):
        known = getattr(recipe, key.partition(".")[0]).sources
        settings[key] = [source for source in known if source in settings[key]]
    if not KINDS[kind].reward_prunes:
        settings |= _not_by_reward(recipe)
    without = _with(recipe, settings)
    if without == recipe:
        raise UserError(f"--kind {kind}: the run goes without that already: there is nothing to compare")
    return _with(without, {**_tokens(recipe, kind, spent, rounds), "name": f"{recipe.name}-{kind}", "rounds": rounds})


def _require_kind(kind: str) -> None:
    if kind not in KINDS:
        near = did_you_mean(kind, KINDS)
        raise UserError(f"--kind {kind}: no such control; {near or 'known: ' + ', '.join(KINDS)}")


def _not_by_reward(recipe: Recipe) -> Settings:
    """Pruning in which no reward decides what is good or hard; what a judge decides stays."""
    quality, difficulty = recipe.prune.quality, recipe.prune.difficulty
    # Deduplication ranks what is near by the same as quality, also where quality is off.
    found: dict[str, Any] = {"prune.quality.by": "judge"}
    if quality.by == "reward":
        found["prune.quality.enabled"] = False
    if difficulty.by == "pass_rate" and recipe.select.pass_by == "reward":
        found["prune.difficulty.enabled"] = False
    return found


def _tokens(recipe: Recipe, kind: str, spent: Spent, rounds: int) -> Settings:
    """How long SFT and DPO train: the mean of the rounds that have them, whatever number of steps that takes."""
    sft, dpo, both = spent.sft_tokens, spent.dpo_tokens, spent.sft_tokens + spent.dpo_tokens
    wanted = {"each": {"sft": sft, "dpo": dpo}, "sft": {"sft": both}, "dpo": {"dpo": both}}[KINDS[kind].tokens]
    settings: dict[str, Any] = {}
    for name, tokens in wanted.items():
        num_due = sum(name == "dpo" or recipe.sft.is_due(number) for number in range(1, rounds + 1))
        a_training = round(tokens / max(1, num_due) / num_trainings(getattr(recipe, name)))
        if a_training:
            settings |= {f"{name}.train_tokens": a_training, f"{name}.max_steps": None}
    return settings


def _with(recipe: Recipe, settings: Settings) -> Recipe:
    return load_recipe(recipe, overrides=[f"{key}={json.dumps(value)}" for key, value in settings.items()])


def _finished(folder: Path, recipe: Recipe, *, rounds: int | None) -> RunRecord:
    """The run that a control is made of; raises UserError where it is no finished run of this recipe, or a shorter one
    than the control."""
    again = f"alignloop run RECIPE --run-dir {folder}"
    resolved = RunReader(folder, hint=f"a control is made of a finished run: `{again}` makes one, or name it (--of)")
    changes = changed_fields(resolved.recipe, recipe.model_dump(mode="json"))
    if changes:
        raise UserError(
            f"{folder}: is a run of another recipe:\n"
            + "\n".join(f"  - {change}" for change in changes)
            + "\nA control differs from its run in one organ alone. Give the run's recipe with the --set that it had "
            f"({folder / 'recipe.yaml'} is a recipe that has it all), or another run with --of."
        )
    run, wanted = read_run(folder), resolved.recipe["rounds"]
    if run.num_done < wanted:
        raise UserError(
            f"{folder}: {run.num_done} of its {wanted} rounds are done, and a control is made of a finished run - "
            f"finish it with `{again}`"
        )
    if rounds is not None and rounds > run.num_done:
        raise UserError(
            f"--rounds {rounds}: {folder} has {run.num_done}, and what its later rounds trained on is not known - give "
            f"it as many first (`{again} --rounds {rounds}`), or ask for fewer"
        )
    return run
