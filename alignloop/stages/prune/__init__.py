"""Data pruning (section 4.2.3): the best-of-K rows and the batch's become the round's SFT rows; each drop has a reason.

best-of-K rows + chosen/edited rows (people's, or with a reward) --alignloop.pruning.pipeline--> SFT rows, dropped rows
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignloop.artifacts import Artifact
from alignloop.config.engine import EngineComputes, JudgeConfig, JudgeSettings, judging
from alignloop.config.pruning import PruneConfig
from alignloop.config.recipe import Recipe
from alignloop.data.jsonl import load_jsonl
from alignloop.data.split import prompt_key
from alignloop.errors import DataError
from alignloop.pruning.benchmarks import benchmark_files, benchmark_texts
from alignloop.pruning.embedding import POLICY, embedding_by
from alignloop.pruning.items import Item, as_sft, item_of_selected, item_of_target
from alignloop.pruning.judge import PruneJudge
from alignloop.pruning.pipeline import prune
from alignloop.pruning.step import Tools
from alignloop.records import PreferenceRow, SelectedRow, Strength
from alignloop.run_dir.stage import Outputs as StageOutputs
from alignloop.run_dir.stage import Stage, StageContext
from alignloop.stages.asking import KEPT


@dataclass(frozen=True)
class Inputs:
    selected: Artifact
    preferences: Artifact
    """The round's batch: its chosen/edited completions join; what is not people's has a reward by `score`."""
    policy: Artifact
    """Embeds the dialogs."""
    benchmarks: tuple[Artifact, ...] = ()
    """Local data of the benchmarks that rows are compared with; what the recipe names may change under its name, as
    all that follows."""
    labelled: Artifact | None = None
    """Labelled rows of the topic classifier."""
    topic_model: str | None = None
    embedder: str | None = None
    judge_prompts: str | None = None
    judge_model: str | None = None


@dataclass(frozen=True, kw_only=True)
class Outputs(StageOutputs):
    rows: Artifact
    dropped: Artifact
    classifier: tuple[Artifact, ...] = ()
    """The topic classifier, where one was fine-tuned."""
    answers: tuple[Artifact, ...] = ()
    """Every answer of the judge, a file a judging prompt."""


class Settings(PruneConfig):
    judge: JudgeSettings | None = None
    """None where no step asks one."""
    judge_engine: EngineComputes | None = None
    """Where the judge runs on the run's engine."""
    tasks: tuple[str, ...] = ()
    """Benchmarks whose questions no row may hold; empty where `decontaminate` is off."""
    include_path: str | None = None
    strengths: tuple[Strength, ...]
    """What people chose at these strengths is people's; those that train the reward model."""

    @property
    def embedder_model(self) -> str | None:
        """The model that embeds rows, where that is not the policy and anything is embedded."""
        by_embedding = self.decontaminate.enabled and self.decontaminate.embedding_threshold is not None
        used = self.semantic_dedup.enabled or by_embedding
        return self.semantic_dedup.embedder if used and self.semantic_dedup.embedder != POLICY else None


def settings(recipe: Recipe) -> Settings:
    judge = recipe.judge if recipe.prune.judging_prompts else None
    if judge is not None:  # its steps have prompts of their own, and give points in one order
        judge = judge.model_copy(update={"prompt": JudgeConfig(model="-").prompt, "both_orders": True})
    judge, judge_engine = judging(judge, recipe.engine)
    compared = recipe.prune.decontaminate.enabled
    return Settings(
        **dict(recipe.prune),
        judge=judge,
        judge_engine=judge_engine,
        tasks=recipe.evaluate.tasks if compared else (),
        include_path=recipe.evaluate.include_path if compared else None,
        strengths=recipe.reward.strengths,
    )


def inputs(recipe: Recipe, *, selected: Artifact, preferences: Artifact, policy: Artifact) -> Inputs:
    """The stage's inputs, with marks of all that the recipe names by path."""
    from alignloop.judging.identity import folder_mark, model_mark, prompts_mark

    config = settings(recipe)
    topic, embedder = config.topic, config.embedder_model
    learns = topic.by == "classifier" and topic.labelled is not None
    labelled = Path(str(topic.labelled)).expanduser() if learns else None
    prompts = config.judging_prompts
    return Inputs(
        selected,
        preferences,
        policy,
        benchmarks=benchmark_files(config.tasks, config.include_path),
        labelled=Artifact.of(labelled) if labelled is not None and labelled.is_file() else None,
        topic_model=folder_mark(Path(topic.model).expanduser()) if topic.by == "classifier" and topic.model else None,
        embedder=None if embedder is None else folder_mark(Path(embedder).expanduser()),
        judge_prompts=prompts_mark(prompts) if prompts and config.judge is not None else None,
        judge_model=model_mark(config.judge) if prompts and config.judge is not None else None,
    )


def run(config: Settings, inputs: Inputs, ctx: StageContext) -> Outputs:
    selected = list(load_jsonl(inputs.selected.path, SelectedRow))
    items = [item_of_selected(row) for row in selected]
    items += _batch_items(inputs.preferences, config, selected, seed=ctx.seed)
    with ctx.activity("pruning"):
        pruned = prune(items, tools(config, ctx, policy=inputs.policy.path))
    for note in pruned.notes:
        ctx.progress.say(f"  {note}")
    if not pruned.kept:
        by_rule = ", ".join(f"{name} {n}" for name, n in pruned.counts.items() if name.startswith("dropped_by"))
        raise DataError(f"prune dropped all {len(items)} rows: {by_rule}; loosen the steps under `prune`")
    return Outputs(
        rows=ctx.write_rows("rows.jsonl", map(as_sft, pruned.kept)),
        dropped=ctx.write_rows("dropped.jsonl", pruned.dropped),
        counts=pruned.counts,
        metrics=pruned.metrics,
        **kept_beside(ctx.dir),
    )


def tools(config: Settings, ctx: StageContext, *, policy: Path | None) -> Tools:
    """What the steps work with in a stage's folder."""
    judge = None
    if config.judge is not None and config.judging_prompts:
        judge = PruneJudge(
            config.judge,
            ctx.engine,
            dir=ctx.dir / KEPT,
            seed=ctx.seed,
            max_model_len=None if config.judge_engine is None else config.judge_engine.max_model_len,
            progress=ctx.progress,
        )
    embedder = config.semantic_dedup.embedder
    return Tools(
        config=config,
        seed=ctx.seed,
        judge=judge,
        embedding=embedding_by(embedder, policy=policy, progress=ctx.progress, release=ctx.engine.sleep),
        benchmarks=(lambda: benchmark_texts(config.tasks, config.include_path)) if config.tasks else None,
        folder=ctx.dir,
        progress=ctx.progress,
    )


CLASSIFIER = "topic_classifier"


def kept_beside(folder: Path) -> dict[str, Any]:
    """What the steps left in a stage's folder beside the rows."""
    classifier = folder / CLASSIFIER
    answers = sorted((folder / KEPT).glob("*/finished.jsonl"))
    return {
        "classifier": (Artifact.of(classifier),) if classifier.is_dir() else (),
        "answers": tuple(Artifact.of(file) for file in answers),
    }


def _batch_items(preferences: Artifact, config: Settings, selected: Sequence[SelectedRow], *, seed: int) -> list[Item]:
    rows = list(load_jsonl(preferences.path, PreferenceRow))
    if 0 <= config.human_rows < len(rows):
        rows = random.Random(seed).sample(rows, config.human_rows)
    pass_rates = {prompt_key(row.messages, seed=0): row.pass_rate for row in selected}
    return [
        item_of_target(row, strengths=config.strengths, pass_rate=pass_rates.get(prompt_key(row.messages, seed=0)))
        for row in rows
    ]


STAGE = Stage("prune", Inputs, Outputs, settings, run)
