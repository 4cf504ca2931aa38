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
from alignloop.config.recipe import PruneStageConfig
from alignloop.data.jsonl import dump_jsonl, load_jsonl
from alignloop.data.split import prompt_key
from alignloop.errors import DataError
from alignloop.pruning.benchmarks import benchmark_files, benchmark_texts
from alignloop.pruning.embedding import embedding_by
from alignloop.pruning.items import Item, as_sft, item_of_selected, item_of_target
from alignloop.pruning.judge import PruneJudge
from alignloop.pruning.pipeline import prune
from alignloop.pruning.step import Tools
from alignloop.records import PreferenceRow, SelectedRow
from alignloop.run_dir.stage import Outputs as StageOutputs
from alignloop.run_dir.stage import Stage, StageContext


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


def inputs(config: PruneStageConfig, *, selected: Artifact, preferences: Artifact, policy: Artifact) -> Inputs:
    """The stage's inputs, with marks of all that the config names by path."""
    from alignloop.judging.identity import folder_mark, model_mark, prompts_mark

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


def run(config: PruneStageConfig, inputs: Inputs, ctx: StageContext) -> Outputs:
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
    dump_jsonl(ctx.dir / "rows.jsonl", map(as_sft, pruned.kept))
    dump_jsonl(ctx.dir / "dropped.jsonl", pruned.dropped)
    return Outputs(
        rows=Artifact.of(ctx.dir / "rows.jsonl"),
        dropped=Artifact.of(ctx.dir / "dropped.jsonl"),
        counts=pruned.counts,
        metrics=pruned.metrics,
        **kept_beside(ctx.dir),
    )


def tools(config: PruneStageConfig, ctx: StageContext, *, policy: Path | None) -> Tools:
    """What the steps work with in a stage's folder."""
    judge = None
    if config.judge is not None and config.judging_prompts:
        judge = PruneJudge(
            config.judge,
            ctx.engine,
            dir=ctx.dir / JUDGE,
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


JUDGE = "judge"
CLASSIFIER = "topic_classifier"


def kept_beside(folder: Path) -> dict[str, Any]:
    """What the steps left in a stage's folder beside the rows."""
    classifier = folder / CLASSIFIER
    answers = sorted((folder / JUDGE).glob("*/finished.jsonl"))
    return {
        "classifier": (Artifact.of(classifier),) if classifier.is_dir() else (),
        "answers": tuple(Artifact.of(file) for file in answers),
    }


def _batch_items(
    preferences: Artifact, config: PruneStageConfig, selected: Sequence[SelectedRow], *, seed: int
) -> list[Item]:
    rows = list(load_jsonl(preferences.path, PreferenceRow))
    if 0 <= config.human_rows < len(rows):
        rows = random.Random(seed).sample(rows, config.human_rows)
    pass_rates = {prompt_key(row.messages, seed=0): row.pass_rate for row in selected}
    return [
        item_of_target(row, strengths=config.strengths, pass_rate=pass_rates.get(prompt_key(row.messages, seed=0)))
        for row in rows
    ]


STAGE = Stage("prune", Inputs, Outputs, run)
