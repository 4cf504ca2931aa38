"""What the benchmarks do not show of a round's model, on held-out preferences (docs/measures.md).

held-out prompts --engine--> answers: greedy, and some drawn --plain forward pass, policy and base--> drift, divergence
                                       |
                                       v
held-out preferences, what the last round and the base answered --reward models, this and the first--> accuracy, rewards
                                       |
                                       +--judge, where there is one--> who wins
the round's candidates and training rows --truth, where one is known--> how many are right

Every figure is of the same prompts in every round. Of the base, in round 0, there is what needs no reward model.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from alignloop.artifacts import Artifact, write_text
from alignloop.config.base import PositiveInt, Uncounted
from alignloop.config.engine import EngineComputes, JudgeSettings, computing, judging
from alignloop.config.evaluation import MeasureConfig
from alignloop.config.recipe import Recipe
from alignloop.config.sampling import SPREAD_PENALTY, Ensemble
from alignloop.data.jsonl import load_jsonl
from alignloop.errors import ModelError, UserError
from alignloop.evaluation.measures import Ending, Figures, add_texts
from alignloop.judging.prompt_file import PairwisePrompt, load_prompt
from alignloop.records import MeasuredRow, PreferenceRow, Strength, VerdictRow
from alignloop.run_dir.stage import Outputs as StageOutputs
from alignloop.run_dir.stage import Stage, StageContext
from alignloop.stages.asking import KEPT, check_judge, judge_marks, open_stage_judge
from alignloop.stages.facts import Facts
from alignloop.stages.measured_answers import (
    Heldout,
    HeldoutAnswers,
    add_judged,
    add_logprobs,
    answers_to,
    heldout_of,
    key_of,
    logprob_groups,
)
from alignloop.stages.measured_rewards import add_answers, add_preferences, rewards_by
from alignloop.stages.measured_truth import CHECKERS, add_truth, check_truth, load_truth
from alignloop.stages.reward_models import RewardModel, same
from alignloop.stages.training import can_train

if TYPE_CHECKING:
    from alignloop.chat.format import ChatFormat


@dataclass(frozen=True)
class Inputs:
    policy: Artifact
    heldout: Artifact
    base: Artifact | None = None
    """None: the policy is the base."""
    reward_model: RewardModel | None = None
    """The round's own, several the members of an ensemble; None: nothing is rewarded."""
    first_reward_model: RewardModel | None = None
    """The first round's, by which rounds are comparable; None: the round's own is the first."""
    base_answers: Artifact | None = None
    last_answers: Artifact | None = None
    judge_prompt: str | None = None
    """Hashes: the recipe names prompt and model, and either may change under its name."""
    judge_model: str | None = None
    scored: Artifact | None = None
    """The round's, as `RoundRows` has them; so the three that follow. None: no truth is asked about them."""
    preferences: Artifact | None = None
    sft_rows: Artifact | None = None
    pairs: Artifact | None = None


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


class Settings(Uncounted, MeasureConfig, EngineComputes):
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
    truth_source: str | None = None
    """Digest of the source of a truth of the user's own."""
    # As in `score`.
    ensemble: Ensemble = Field("average_weights", exclude_if=lambda name: name == "average_weights")
    penalty: float = Field(SPREAD_PENALTY, exclude_if=lambda penalty: penalty == SPREAD_PENALTY)


def settings(recipe: Recipe) -> Settings:
    """How answers are sampled, scored and judged counts, too. Raises UserError where the truth cannot be loaded."""
    config = recipe.measure
    own = config.truth if config.enabled and config.truth != CHECKERS else None
    judge, judge_engine = judging(recipe.judge if config.enabled and config.judge else None, recipe.engine)
    return Settings(
        **dict(config) | {"max_tokens": config.max_tokens or recipe.sample.max_tokens},
        strengths=recipe.reward.strengths,
        dtype=recipe.score.dtype,
        rows_per_microbatch=recipe.score.rows_per_microbatch,
        judged_by=judge,
        judge_engine=judge_engine,
        truth_source=None if own is None else load_truth(own).digest,
        ensemble=recipe.score.ensemble,
        penalty=recipe.score.penalty,
        **computing(recipe.engine),
    )


@dataclass(frozen=True)
class Before:
    """What a round's model is compared with: the base's and the last model's answers to the held-out prompts, and the
    first reward model (None before the first round has ended)."""

    base: Artifact
    base_answers: Artifact
    last_answers: Artifact
    first_reward_model: RewardModel | None = None


@dataclass(frozen=True)
class RoundRows:
    """What a truth is asked about, of a round: its scored candidates, its batch of preferences, and what SFT and DPO
    were trained on."""

    scored: Artifact | None = None
    preferences: Artifact | None = None
    sft_rows: Artifact | None = None
    pairs: Artifact | None = None


def inputs(
    recipe: Recipe, before: Before, *, policy: Artifact, reward_model: RewardModel, heldout: Artifact, rows: RoundRows
) -> Inputs:
    config = settings(recipe)
    more: dict[str, Any] = {} if config.judged_by is None else judge_marks(config.judged_by)
    more |= vars(rows) if config.enabled and config.truth is not None else {}
    return Inputs(
        policy=policy,
        heldout=heldout,
        base=before.base,
        reward_model=reward_model,
        first_reward_model=before.first_reward_model,
        base_answers=before.base_answers,
        last_answers=before.last_answers,
        **more,
    )


def of_base(base: Artifact, measured: Outputs) -> Before:
    """For the first round's model: the base is the last model, too."""
    return Before(base=base, base_answers=measured.completions, last_answers=measured.completions)


def after(before: Before, *, reward_model: RewardModel, measured: Outputs | None) -> Before:
    """Of a round that was not measured the answers before stay the last."""
    first = before.first_reward_model or reward_model
    last = before.last_answers if measured is None else measured.completions
    return replace(before, last_answers=last, first_reward_model=first)


def run(config: Settings, inputs: Inputs, ctx: StageContext) -> Outputs:
    from alignloop.chat.load import load_format

    rows = list(load_jsonl(inputs.heldout.path, PreferenceRow)) if config.enabled else []
    chat = load_format(inputs.policy.path)
    heldout = heldout_of(rows, chat=chat, config=config)
    made = _Measuring(config, inputs, ctx, chat)
    if not heldout.prompts:
        ctx.progress.say(f"  no answers are measured: {_why_nothing(config, heldout)}")
        made.with_truth()
        return made.publish(heldout, [], [])
    with ctx.activity("measuring"):
        ctx.engine.load_weights(inputs.policy.path)
        sampled = inputs.base is not None or inputs.reward_model is not None
        answers = answers_to(heldout.prompts, chat=chat, engine=ctx.engine, config=config, sampled=sampled)
        ctx.engine.sleep()
        published = made.rewarded(heldout, answers)
        made.with_logprobs(answers)
        texts = [answer.greedy for answer in answers]
        add_texts(made.figures, [Ending(one.text, len(one.ids), one.finished) for one in texts])
    verdicts = made.judged(published)
    made.with_truth()
    # Of the sampled completions how many the best of K is not picked from while a finished one with text is there.
    ended = [answer.endings for answer in answers if answer.sampled]
    passed_over = {f"{n}_completions": sum(sum(each[n]) for each in ended) for n in ("truncated", "empty") if ended}
    return made.publish(heldout, published, verdicts, **passed_over)


def _why_nothing(config: Settings, heldout: Heldout) -> str:
    if not config.enabled:
        return "measure.enabled is false"
    if not heldout.dropped:
        return "no preference row is held out (data.heldout_fraction)"
    return (
        f"none of the {len(heldout.dropped)} held-out rows leaves room for an answer of {config.max_tokens} tokens "
        f"within {config.max_model_len} (measure.max_tokens, engine.max_model_len)"
    )


@dataclass(frozen=True)
class _Measuring:
    """The stage at work: what is found goes to `figures`, in this order."""

    config: Settings
    inputs: Inputs
    ctx: StageContext
    chat: ChatFormat
    figures: Figures = field(default_factory=Figures)

    @property
    def forward(self) -> dict[str, Any]:
        config = self.config
        return {
            "rows_per_microbatch": config.rows_per_microbatch,
            "dtype": config.dtype,
            "progress": self.ctx.progress,
        }

    @property
    def rivals(self) -> dict[str, Artifact]:
        files = {"previous": self.inputs.last_answers, "base": self.inputs.base_answers}
        return {name: file for name, file in files.items() if file is not None}

    def rewarded(self, heldout: Heldout, answers: Sequence[HeldoutAnswers]) -> list[MeasuredRow]:
        own, first = self.inputs.reward_model, self.inputs.first_reward_model
        if own is None:
            return [self._row(answer, None, None) for answer in answers]
        rivals = {
            name: {key: self.chat.sampled_completion(row.completion_ids).token_ids for key, row in _by_key(file)}
            for name, file in self.rivals.items()
        }
        how = {"ensemble": self.config.ensemble, "penalty": self.config.penalty, **self.forward}
        by_own = rewards_by(own, heldout.rows, answers, rivals, chat=self.chat, **how)
        by_first = by_own
        if first is not None and not same(first, own):
            by_first = rewards_by(first, [], answers, rivals, chat=self.chat, **how)
        picks = by_own.best_picks(answers)
        say = self.ctx.progress
        add_answers(self.figures, by_own, answers, rivals, picks=picks, prefix="", progress=say)
        add_preferences(self.figures, by_own.margins, rows=heldout.rows, strengths=self.config.strengths)
        add_answers(self.figures, by_first, answers, rivals, picks=picks, prefix="first_", progress=say)
        rewards = zip(answers, by_own.greedy(answers), by_first.greedy(answers), strict=True)
        return [self._row(*found) for found in rewards]

    def _row(self, answer: HeldoutAnswers, reward: float | None, first_reward: float | None) -> MeasuredRow:
        greedy = answer.greedy
        return MeasuredRow(
            id=answer.row.id,
            messages=answer.row.messages,
            completion=greedy.text,
            completion_ids=list(greedy.ids),
            finish_reason="stop" if greedy.finished else "length",
            chosen=answer.row.chosen,
            round=self.ctx.round,
            policy=self.inputs.policy.digest,
            reward=reward,
            first_reward=first_reward,
        )

    def with_logprobs(self, answers: Sequence[HeldoutAnswers]) -> None:
        from alignloop.training.scoring import completion_logprobs

        groups = logprob_groups(answers, chat=self.chat)
        policy, base = self.inputs.policy, self.inputs.base
        ours = completion_logprobs(groups, checkpoint=policy.path, **self.forward)
        theirs = None if base is None else completion_logprobs(groups, checkpoint=base.path, **self.forward)
        add_logprobs(self.figures, groups, policy=ours, base=theirs)

    def judged(self, published: list[MeasuredRow]) -> list[VerdictRow]:
        """Verdicts against the last round's model and the base; where the two are one it is asked once."""
        if self.config.judged_by is None or not self.rivals:
            return []
        judge = open_stage_judge(self.config.judged_by, self.config.judge_engine, self.ctx)
        names: dict[str, list[str]] = {}
        for name, file in self.rivals.items():
            names.setdefault(file.digest, []).append(name)
        verdicts = []
        with self.ctx.activity("judging"):
            for same in names.values():
                theirs = dict(_by_key(self.rivals[same[0]]))
                verdicts += add_judged(
                    self.figures, published, theirs, names=same, judge=judge, progress=self.ctx.progress
                )
        return verdicts

    def with_truth(self) -> None:
        """What of the round's rows is right, where the recipe names a truth."""
        truth, inputs = self.config.truth, self.inputs
        if truth is None or not self.config.enabled:
            return
        rows = RoundRows(inputs.scored, inputs.preferences, inputs.sft_rows, inputs.pairs)
        with self.ctx.activity("measuring"):
            add_truth(self.figures, rows, truth=truth)

    def publish(
        self, heldout: Heldout, published: list[MeasuredRow], verdicts: list[VerdictRow], **counts: int
    ) -> Outputs:
        ctx, measures = self.ctx, self.figures.flat
        write_text(ctx.dir / "measures.json", json.dumps(measures, indent=1) + "\n")
        kept, dropped = len(heldout.rows), len(heldout.dropped)
        outputs = Outputs(
            measures=ctx.artifact("measures.json"),
            completions=ctx.write_rows("completions.jsonl", published),
            dropped=ctx.write_rows("dropped.jsonl", heldout.dropped),
            verdicts=ctx.write_any_rows("verdicts.jsonl", verdicts),
            counts={"in": kept + dropped, "kept": kept, "dropped": dropped, "prompts": len(published), **counts},
            metrics=measures,
        )
        shutil.rmtree(ctx.dir / KEPT, ignore_errors=True)
        return outputs


def _by_key(file: Artifact) -> list[tuple[int, MeasuredRow]]:
    return [(key_of(row), row) for row in load_jsonl(file.path, MeasuredRow)]


STAGE = Stage("measure", Inputs, Outputs, settings, run)


def check(facts: Facts) -> None:
    recipe, chat, findings = facts.recipe, facts.base.chat, facts.findings
    if not recipe.measure.enabled:
        return
    config: Settings | None = None
    with findings.collecting():
        config = settings(recipe)
        if config.truth is not None:
            check_truth(config.truth, facts)
    if config is None:
        return
    heldout = [row for row in facts.rows.heldout if chat is None or can_train(row, chat)]
    if not heldout:
        findings.notes.append(
            "measure: no preference row is held out, so rewards, win rates and the divergence from the base are not "
            "measured (data.heldout_fraction)"
        )
        return
    # What a template refuses is told where the training rows are looked at.
    with suppress(ModelError):
        found = Heldout([], [], []) if chat is None else heldout_of(heldout, chat=chat, config=config)
        if found.dropped:
            some = "none" if not found.prompts else f"only {len(found.rows):,}"
            findings.notes.append(
                f"measure: {some} of {len(heldout):,} held-out rows fits engine.max_model_len "
                f"({recipe.engine.max_model_len}); the first that does not: {found.dropped[0].id}: "
                f"{found.dropped[0].reason} - the others are not measured (measure.max_tokens, engine.max_model_len)"
            )
    by_collect = recipe.collect.annotator == "judge" and recipe.collect.num_annotations > 0 and recipe.rounds > 1
    if recipe.judge is None or not recipe.measure.judge or by_collect:
        return  # nobody is asked, or it has been looked at for `collect`
    with findings.collecting():
        if not isinstance(load_prompt(recipe.judge.prompt), PairwisePrompt):
            raise UserError(
                f"judge.prompt: {recipe.judge.prompt} compares no two, and measure.judge asks the judge to: name a "
                "pairwise prompt, or set measure.judge: false"
            )
    if not recipe.prune.judging_prompts and not facts.is_published(STAGE.name):
        check_judge(facts, recipe.judge)
