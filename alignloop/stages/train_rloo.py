"""RLOO in place of pairs and DPO: the policy trains on what it samples as it trains (arXiv 2402.14740).

prompts --drawn, a batch at a time--> K completions (warm engine, the weights so far)
    --reward model, functions--> rewards --> advantages --> steps --> weights --swap--> the next batch

A batch's completions are on disk, with their rewards, before it is trained on: a stage that goes on trains on the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from alignloop.artifacts import Artifact, derive_seed, remove_path, write_whole
from alignloop.chat.reasoning import has_answer
from alignloop.config.engine import EngineComputes, computing
from alignloop.config.recipe import Recipe
from alignloop.config.rloo import RlooConfig
from alignloop.config.sampling import ScoreConfig
from alignloop.config.training import Layout, Reference, TrainingConfig
from alignloop.data.jsonl import load_jsonl
from alignloop.errors import UserError
from alignloop.progress import LinesAlone
from alignloop.records import CandidateRow, PromptRow, by_prompt, round_name
from alignloop.run_dir.manifest import PARTIAL
from alignloop.run_dir.stage import Stage, StageContext
from alignloop.sampling.candidate_values import function_values
from alignloop.sampling.reward_functions import load
from alignloop.stages import sample, training
from alignloop.stages.facts import Facts
from alignloop.stages.reward_models import RewardModel, check_members, members_of
from alignloop.stages.sampler import Sampler, ask
from alignloop.stages.score import check_gates, penalised, row_with_rewards, scored_row, unique

if TYPE_CHECKING:
    from alignloop.chat.format import ChatFormat
    from alignloop.training.rloo import SampledBatch
    from alignloop.training.scoring import FrozenModel

BATCHES = "batches"
"""In the stage's folder, while it runs: a file of rewarded completions a batch."""
SAMPLES = "samples.jsonl"
SAMPLED_TOKENS = "sampled_tokens"
"""The manifest's fact: tokens of all completions."""
WITHIN = ("sampling", "reward functions", "scoring")
"""Activities within the training, counted apart from it."""


@dataclass(frozen=True)
class Inputs:
    start: Artifact
    prompts: Artifact
    reference: Artifact | None = None
    """By `rloo.reference`; None where `rloo.kl_coefficient` is 0."""
    reward_model: RewardModel | None = None
    """Several: the members of an ensemble. None: rewards are those of `score.reward_functions` alone
    (`rloo.reward_model: false`)."""


@dataclass(frozen=True, kw_only=True)
class Outputs(training.Outputs):
    samples: Artifact
    """Every completion that was trained on, batch by batch, with its rewards."""


class Settings(RlooConfig, EngineComputes):
    reference: Literal["sft", "base", "previous"] = Field("sft", exclude=True)  # which model that is, the inputs say
    reward_model: bool = Field(True, exclude=True)  # so do they
    max_tokens: int
    """`sample.max_tokens`."""
    layout: Layout
    score: ScoreConfig
    sources: dict[str, str]
    """Digest of the source of each reward function, by `module:function`."""

    @property
    def sampling(self) -> sample.Settings:
        """What the policy itself says: at temperature 1, of all tokens, not steered."""
        engine = {name: getattr(self, name) for name in EngineComputes.model_fields}
        return sample.Settings(num_candidates=self.num_candidates, max_tokens=self.max_tokens, **engine)


def settings(recipe: Recipe) -> Settings:
    """How its completions are sampled and rewarded counts, too. Raises UserError where a function cannot be loaded."""
    names = [entry.function for entry in recipe.score.reward_functions]
    return Settings(
        **dict(recipe.rloo),
        max_tokens=recipe.sample.max_tokens,
        layout=recipe.training.layout,
        score=recipe.score,
        sources={name: load(name).digest for name in names},
        **computing(recipe.engine),
    )


def inputs(
    recipe: Recipe,
    start: Artifact,
    references: Mapping[Reference, Artifact],
    *,
    reward_model: RewardModel,
    prompts: Artifact,
) -> Inputs:
    """`references` has a model for each name of `rloo.reference`."""
    config = recipe.rloo
    return Inputs(
        start,
        prompts,
        reference=references[config.reference] if config.kl_coefficient else None,
        reward_model=reward_model if config.reward_model else None,
    )


def check(facts: Facts) -> None:
    """What would stop the stage, where it is to run."""
    recipe, findings = facts.recipe, facts.findings
    if recipe.policy.by != "rloo":
        return
    with findings.collecting():
        check_alone(recipe.training)
    if recipe.sample.max_tokens >= recipe.rloo.max_length:
        findings.problems.append(
            f"rloo.max_length ({recipe.rloo.max_length}) leaves no room for a prompt beside a completion of "
            f"sample.max_tokens ({recipe.sample.max_tokens}) - raise the first or lower the second"
        )


def check_alone(config: TrainingConfig) -> None:
    """Raises UserError where more than one process is to train."""
    if config.num_processes > 1:
        raise UserError(
            f"policy.by: rloo trains in one process, and training.num_processes is {config.num_processes}: set it to "
            "1, or policy.by: dpo"
        )


def run(config: Settings, inputs: Inputs, ctx: StageContext) -> Outputs:
    from alignloop.chat.load import load_format
    from alignloop.training.job import TrainJob, prompt_batches
    from alignloop.training.rloo import train_rloo
    from alignloop.training.variants import TrainedVariant

    check_alone(ctx.training)
    _check_inputs(config, inputs)
    chat, sampling = load_format(inputs.start.path), config.sampling
    sample.check_room(sampling, policy=inputs.start.path)
    prompts = list(load_jsonl(inputs.prompts.path, PromptRow))
    where = str(inputs.prompts.path)
    sample.check_ids(prompts, where=where)
    everyone = [ask(prompt, chat=chat, config=sampling, round=ctx.round, seed=ctx.seed) for prompt in prompts]
    room = min(config.max_model_len, config.max_length)
    asked, too_long = sample.with_room(everyone, sampling, room=room, stage=ctx.name, where=where)
    batches = prompt_batches(len(asked), config=config, seed=ctx.seed)
    drawn = sorted({number for batch in batches for minibatch in batch for number in minibatch})
    batcher = _Batcher(config, inputs, ctx, chat, [one.prompt for one in asked])
    (ctx.dir / BATCHES).mkdir(exist_ok=True)
    job = TrainJob(
        objective="rloo",
        groups=(),
        eval_groups=(),
        checkpoint=inputs.start.path,
        reference=None if inputs.reference is None else inputs.reference.path,
        out_dir=ctx.dir,
        config=config,
        seed=ctx.seed,
        progress=ctx.progress,
        training=ctx.training,
        run_name=f"{round_name(ctx.round)}/{ctx.dir.name.removesuffix(PARTIAL)}",
    )
    with ctx.activity("training"):
        result = train_rloo(job, batches=batches, sample_batch=batcher)
    ctx.seconds["training"] -= sum(ctx.seconds.get(name, 0.0) for name in WITHIN)
    files = [batcher.file(number) for number in range(len(batches))]
    write_whole(ctx.dir / SAMPLES, (file.read_bytes() for file in files))
    sampled_tokens = sum(len(row.completion_ids) for row in load_jsonl(ctx.dir / SAMPLES, CandidateRow))
    trained = TrainedVariant(None, {}, ctx.dir, tuple(drawn), result)
    fields = training.published("rloo", [trained], too_long, num_rows=len(drawn) + len(too_long), ctx=ctx)
    fields["facts"] |= {SAMPLED_TOKENS: sampled_tokens}
    remove_path(ctx.dir / BATCHES)
    return Outputs(**fields, samples=ctx.artifact(SAMPLES))


def _check_inputs(config: Settings, inputs: Inputs) -> None:
    """Raises UserError where there is nothing to learn from, or no model to measure the KL to."""
    if inputs.reference is None and config.kl_coefficient:
        raise UserError(
            f"rloo.kl_coefficient is {config.kl_coefficient:g}, and no reference model is given: name one (reference), "
            "or set it to 0"
        )
    rewarding = [entry for entry in config.score.reward_functions if entry.weight or entry.gate is not None]
    if inputs.reward_model is None and not rewarding:
        raise UserError(
            "no reward model is given, and score.reward_functions has none with a weight or a gate: nothing would "
            "reward a completion - give a reward model (reward_model), or name a function"
        )
    if inputs.reward_model is not None:
        check_members(config.score, num_models=len(members_of(inputs.reward_model)))


@dataclass(frozen=True)
class _Batcher:
    """Samples and rewards a batch, or reads one that was; as `SampleBatch`."""

    config: Settings
    inputs: Inputs
    ctx: StageContext
    chat: ChatFormat
    prompts: Sequence[PromptRow]

    def file(self, number: int) -> Path:
        return self.ctx.dir / BATCHES / f"batch-{number:05d}.jsonl"

    def __call__(self, number: int, prompts: Sequence[int], policy: Callable[[], Path]) -> SampledBatch:
        from alignloop.packing.build import candidate_groups
        from alignloop.training.rloo import SampledBatch

        sampler = self._sampler(number)
        seed = derive_seed(self.ctx.seed, "batch", number)
        asked = [
            ask(self.prompts[prompt], chat=self.chat, config=sampler.config, round=self.ctx.round, seed=seed)
            for prompt in prompts
        ]
        rows = sampler.finished(asked, self.file(number))
        if rows is None:
            with self.ctx.activity("sampling"):
                self.ctx.engine.load_weights(policy())
                sampled = sampler.sample(asked, self.ctx.engine)
                self.ctx.engine.sleep()
            rows = self._rewarded(sampled)
            write_whole(self.file(number), (row.model_dump_json().encode() + b"\n" for row in rows))
        rewards = [self._worth(own) for own in by_prompt(rows).values()]
        return SampledBatch(candidate_groups(rows, self.chat), rewards, self._metrics(rows))

    def _sampler(self, number: int) -> Sampler:
        start, config = self.inputs.start.digest, self.config.sampling
        policy = f"{start} and {number} batches" if number else start
        return Sampler(self.chat, config, policy, self.ctx.round, range(config.num_candidates), mark=f"batch-{number}-")

    @cached_property
    def _reward_models(self) -> list[FrozenModel[float]]:
        """The members of an ensemble, the one that there is, or none; they stay loaded."""
        from alignloop.training.scoring import REWARD, FrozenModel

        if self.inputs.reward_model is None:
            return []
        score, progress = self.config.score, LinesAlone(self.ctx.progress)
        return [
            FrozenModel(member.path, REWARD, rows=score.rows_per_microbatch, dtype=score.dtype, progress=progress)
            for member in members_of(self.inputs.reward_model)
        ]

    def _rewarded(self, rows: Sequence[CandidateRow]) -> list[CandidateRow]:
        """As `score` has them: reward, values of the functions, total, failed gates."""
        from alignloop.packing.build import candidate_groups

        functions, values = unique(self.config.score.reward_functions), {}
        if functions:
            with self.ctx.activity("reward functions"):
                prompts = list(by_prompt(rows).values())
                values = {entry.function: function_values(entry.function, prompts) for entry in functions}
                check_gates(prompts, values, functions)
        with self.ctx.activity("scoring"):
            if not self._reward_models:
                return [
                    penalised(scored_row(row, 0.0, values, functions), self.config.score).model_copy(
                        update={"reward": None}
                    )
                    for row in rows
                ]
            groups = candidate_groups(rows, self.chat)
            by_member = [chain(*model(groups)) for model in self._reward_models]
            return [
                row_with_rewards(row, own, values, self.config.score)
                for row, own in zip(rows, zip(*by_member, strict=True), strict=True)
            ]

    def _worth(self, rows: Sequence[CandidateRow]) -> list[float]:
        """What each completion of a prompt counts."""
        from alignloop.objectives.rloo import least_for_failed

        totals = [row.total_reward or 0.0 for row in rows]
        return least_for_failed(totals, failed=[_failed(row) for row in rows], penalty=self.config.failure_penalty)

    def _metrics(self, rows: Sequence[CandidateRow]) -> dict[str, float]:
        """Means over the batch: `reward` is the total, before the KL and before what failed is set back."""
        names = [entry.function for entry in self.config.score.reward_functions]
        raw = [row.reward for row in rows if row.reward is not None]
        values = {name: [row.extra_rewards[name] for row in rows if name in row.extra_rewards] for name in names}
        return {
            "reward": fmean(row.total_reward or 0.0 for row in rows),
            **({"reward_model": fmean(raw)} if raw and names else {}),
            **{name: fmean(found) for name, found in values.items() if found},
            "failed": fmean(_failed(row) for row in rows),
            "completion_tokens": fmean(len(row.completion_ids) for row in rows),
            "stop_rate": fmean(row.finish_reason == "stop" for row in rows),
        }


def _failed(row: CandidateRow) -> bool:
    return row.finish_reason != "stop" or not has_answer(row.completion) or bool(row.failed_gates)


STAGE = Stage("train_rloo", Inputs, Outputs, settings, run)
