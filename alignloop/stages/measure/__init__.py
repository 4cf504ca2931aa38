"""What the benchmarks do not show of a round's model, on held-out preferences (docs/measures.md).

held-out prompts --engine--> answers: greedy, and some drawn --plain forward pass, policy and base--> drift, divergence
                                       |
                                       v
held-out preferences, what the last round and the base answered --reward models, this and the first--> accuracy, rewards
                                       |
                                       +--judge, where there is one--> who wins

Every figure is of the same prompts in every round. Of the base, in round 0, there is what needs no reward model.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from alignloop.artifacts import Artifact, write_text
from alignloop.config.base import PositiveInt
from alignloop.config.engine import EngineComputes, JudgeSettings, computing, judging
from alignloop.config.measure import MeasureConfig
from alignloop.config.recipe import Recipe
from alignloop.data.jsonl import load_jsonl
from alignloop.evaluation.measures.figures import Figures
from alignloop.records import MeasuredRow, PreferenceRow, Strength, VerdictRow
from alignloop.run_dir.stage import Outputs as StageOutputs
from alignloop.run_dir.stage import Stage, StageContext
from alignloop.stages.asking import KEPT, judge_marks, open_stage_judge
from alignloop.stages.measure.answers import (
    Answer,
    Heldout,
    add_endings,
    add_logprobs,
    answer,
    endings,
    heldout_of,
    key_of,
    logprob_groups,
    measured_row,
)
from alignloop.stages.measure.judge import add_judged
from alignloop.stages.measure.rewards import Scored, add_answers, add_preferences, best_picks, rewards_by

if TYPE_CHECKING:
    from alignloop.chat.format import ChatFormat


@dataclass(frozen=True)
class Inputs:
    policy: Artifact
    heldout: Artifact
    base: Artifact | None = None
    """What the policy is held against; None: the policy is the base."""
    reward_model: Artifact | None = None
    """The round's own; None: nothing is rewarded."""
    first_reward_model: Artifact | None = None
    """The first round's, by which rounds are comparable; None: the round's own is the first."""
    base_answers: Artifact | None = None
    """What the base answered to the same prompts."""
    last_answers: Artifact | None = None
    """What the last round's model answered."""
    judge_prompt: str | None = None
    """Hash of the judging prompt, and of the judge's model: the recipe names both, and either may change under its
    name."""
    judge_model: str | None = None


@dataclass(frozen=True, kw_only=True)
class Outputs(StageOutputs):
    measures: Artifact
    """`measures.json`: figure -> value, a standard error under `<figure>_stderr`; empty where nothing is measured."""
    completions: Artifact
    """The greedy answers (`MeasuredRow`)."""
    dropped: Artifact
    """Held-out preferences that do not fit the engine."""
    verdicts: tuple[Artifact, ...] = ()
    """Every verdict of a judge, where one was asked."""


class Settings(MeasureConfig, EngineComputes):
    max_tokens: PositiveInt
    strengths: tuple[Strength, ...]
    """Held-out preferences of these strengths tell the reward model's accuracy: those that it trains on."""
    dtype: Literal["float32", "bfloat16"]
    """In which rewards and logprobs are computed."""
    rows_per_microbatch: PositiveInt = Field(16, exclude=True)
    judged_by: JudgeSettings | None = None
    """None where no judge is asked."""
    judge_engine: EngineComputes | None = None
    """Where the judge runs on the run's engine."""


def settings(recipe: Recipe) -> Settings:
    """How answers are sampled, scored and judged counts, too."""
    config = recipe.measure
    judge, judge_engine = judging(recipe.judge if config.enabled and config.judge else None, recipe.engine)
    return Settings(
        **dict(config) | {"max_tokens": config.max_tokens or recipe.sample.max_tokens},
        strengths=recipe.reward.strengths,
        dtype=recipe.score.dtype,
        rows_per_microbatch=recipe.score.rows_per_microbatch,
        judged_by=judge,
        judge_engine=judge_engine,
        **computing(recipe.engine),
    )


@dataclass(frozen=True)
class Before:
    """What a round's model is held against.

    Attributes:
        base_answers, last_answers: to the held-out prompts, by the base and by the last round's model.
        first_reward_model: None before the first round has ended.
    """

    base: Artifact
    base_answers: Artifact
    last_answers: Artifact
    first_reward_model: Artifact | None = None


def inputs(recipe: Recipe, before: Before, *, policy: Artifact, reward_model: Artifact, heldout: Artifact) -> Inputs:
    """The stage's inputs in a round."""
    config, marks = settings(recipe), dict[str, str | None]()
    if config.judged_by is not None:
        marks |= judge_marks(config.judged_by)
    return Inputs(
        policy=policy,
        heldout=heldout,
        base=before.base,
        reward_model=reward_model,
        first_reward_model=before.first_reward_model,
        base_answers=before.base_answers,
        last_answers=before.last_answers,
        **marks,
    )


def of_base(base: Artifact, measured: Outputs) -> Before:
    """What the first round's model is held against: the base is the last model, too."""
    return Before(base=base, base_answers=measured.completions, last_answers=measured.completions)


def after(before: Before, *, reward_model: Artifact, measured: Outputs) -> Before:
    """What the next round's model is held against."""
    first = before.first_reward_model or reward_model
    return replace(before, last_answers=measured.completions, first_reward_model=first)


def run(config: Settings, inputs: Inputs, ctx: StageContext) -> Outputs:
    from alignloop.chat.load import load_format

    rows = list(load_jsonl(inputs.heldout.path, PreferenceRow)) if config.enabled else []
    chat = load_format(inputs.policy.path)
    heldout = heldout_of(rows, chat=chat, config=config)
    if not heldout.prompts:
        ctx.progress.say(f"  nothing is measured: {_why_nothing(config, heldout)}")
        return _published(ctx, Figures(), heldout, [], [])
    figures = Figures()
    with ctx.activity("measuring"):
        ctx.engine.load_weights(inputs.policy.path)
        sampled = inputs.base is not None or inputs.reward_model is not None
        answers = answer(heldout.prompts, chat=chat, engine=ctx.engine, config=config, sampled=sampled)
        ctx.engine.sleep()
        given = _rewarded(figures, config, inputs, ctx, heldout=heldout, answers=answers, chat=chat)
        _with_logprobs(figures, config, inputs, ctx, answers=answers, chat=chat)
        add_endings(figures, answers, chat=chat)
    verdicts = _judged(figures, config, inputs, ctx, given)
    return _published(ctx, figures, heldout, given, verdicts, passed_over=_passed_over(answers, chat))


def _rewarded(
    figures: Figures,
    config: Settings,
    inputs: Inputs,
    ctx: StageContext,
    *,
    heldout: Heldout,
    answers: list[Answer],
    chat: ChatFormat,
) -> list[MeasuredRow]:
    """The answers with their rewards; what is to be said of rewards goes to `figures`."""

    def published(one: Answer, reward: float | None = None, first: float | None = None) -> MeasuredRow:
        policy = inputs.policy.digest
        return measured_row(one, chat=chat, round=ctx.round, policy=policy, reward=reward, first_reward=first)

    if inputs.reward_model is None:
        return [published(one) for one in answers]
    rivals = {name: _by_prompt(file) for name, file in _rivals(inputs).items()}
    scored = Scored(heldout.rows, answers, rivals, chat)
    own = rewards_by(inputs.reward_model.path, scored=scored, config=config, progress=ctx.progress)
    first = own
    if inputs.first_reward_model is not None and inputs.first_reward_model.digest != inputs.reward_model.digest:
        first = rewards_by(
            inputs.first_reward_model.path, scored=replace(scored, rows=[]), config=config, progress=ctx.progress
        )
    picks = best_picks(own, scored=scored)
    add_answers(figures, own, scored=scored, picks=picks, prefix="")
    add_preferences(figures, own.margins, rows=heldout.rows, config=config)
    add_answers(figures, first, scored=scored, picks=picks, prefix="first_")
    said = [scored.ids(one.greedy.token_ids) for one in answers]
    return [
        published(one, of[ids], by_first[ids])
        for one, ids, of, by_first in zip(answers, said, own.of, first.of, strict=True)
    ]


def _with_logprobs(
    figures: Figures,
    config: Settings,
    inputs: Inputs,
    ctx: StageContext,
    *,
    answers: list[Answer],
    chat: ChatFormat,
) -> None:
    from alignloop.training.scoring import completion_logprobs

    groups = logprob_groups(answers, chat=chat)
    policy, base = (
        None
        if model is None
        else completion_logprobs(
            groups,
            checkpoint=model.path,
            rows_per_microbatch=config.rows_per_microbatch,
            dtype=config.dtype,
            progress=ctx.progress,
        )
        for model in (inputs.policy, inputs.base)
    )
    assert policy is not None, "there is always a policy"
    add_logprobs(figures, groups, policy=policy, base=base)


def _judged(
    figures: Figures, config: Settings, inputs: Inputs, ctx: StageContext, given: list[MeasuredRow]
) -> list[VerdictRow]:
    """Verdicts against the last round's model and the base; where the two are one it is asked once."""
    rivals = _rivals(inputs)
    if config.judged_by is None or not rivals:
        return []
    judge = open_stage_judge(config.judged_by, config.judge_engine, ctx)
    names: dict[str, list[str]] = {}
    for name, file in rivals.items():
        names.setdefault(file.digest, []).append(name)
    verdicts = []
    with ctx.activity("judging"):
        for same in names.values():
            theirs = _by_prompt(rivals[same[0]])
            verdicts += add_judged(figures, given, theirs, names=same, judge=judge, progress=ctx.progress)
    return verdicts


def _rivals(inputs: Inputs) -> dict[str, Artifact]:
    files = {"previous": inputs.last_answers, "base": inputs.base_answers}
    return {name: file for name, file in files.items() if file is not None}


def _by_prompt(file: Artifact) -> Mapping[int, MeasuredRow]:
    return {key_of(row): row for row in load_jsonl(file.path, MeasuredRow)}


def _why_nothing(config: Settings, heldout: Heldout) -> str:
    if not config.enabled:
        return "measure.enabled is false"
    if not heldout.dropped:
        return "no preference row is held out (data.heldout_fraction)"
    return (
        f"none of the {len(heldout.dropped)} held-out rows leaves room for an answer of {config.max_tokens} tokens "
        f"within {config.max_model_len} (measure.max_tokens, engine.max_model_len)"
    )


def _passed_over(answers: list[Answer], chat: ChatFormat) -> dict[str, int]:
    """Of the sampled completions how many the best of K is not picked from while a finished one with text is there."""
    ended = [endings(given, chat) for given in answers if given.sampled]
    return {f"{name}_completions": sum(sum(each[name]) for each in ended) for name in ("truncated", "empty") if ended}


def _published(
    ctx: StageContext,
    figures: Figures,
    heldout: Heldout,
    given: list[MeasuredRow],
    verdicts: list[VerdictRow],
    *,
    passed_over: Mapping[str, int] | None = None,
) -> Outputs:
    measures = figures.flat
    write_text(ctx.dir / "measures.json", json.dumps(measures, indent=1) + "\n")
    kept, dropped = len(heldout.rows), len(heldout.dropped)
    outputs = Outputs(
        measures=ctx.artifact("measures.json"),
        completions=ctx.write_rows("completions.jsonl", given),
        dropped=ctx.write_rows("dropped.jsonl", heldout.dropped),
        verdicts=ctx.write_any_rows("verdicts.jsonl", verdicts),
        counts={"in": kept + dropped, "kept": kept, "dropped": dropped, "prompts": len(given), **(passed_over or {})},
        metrics=measures,
    )
    shutil.rmtree(ctx.dir / KEPT, ignore_errors=True)
    return outputs


STAGE = Stage("measure", Inputs, Outputs, settings, run)
