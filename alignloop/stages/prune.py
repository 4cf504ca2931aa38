"""Data pruning (section 4.2.3): the best-of-K rows and the batch's become the round's SFT rows; each drop has a reason.

best-of-K rows + chosen/edited rows (people's, or with a reward) + demonstrations
    --alignloop.pruning.pipeline--> SFT rows, dropped rows

Before the run begins `check` looks at all that its steps need beside the rows.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from alignloop.artifacts import Artifact
from alignloop.config.base import PositiveInt, Section
from alignloop.config.engine import EngineComputes, JudgeConfig, JudgeSettings, judging
from alignloop.config.pruning import MixConfig, PruneConfig
from alignloop.config.recipe import Recipe
from alignloop.config.training import Demonstrations, mix_of
from alignloop.data.jsonl import load_jsonl
from alignloop.data.split import prompt_key, windowed
from alignloop.engines.checkpoint import weight_files
from alignloop.errors import DataError, ModelError, UserError
from alignloop.judging.prompt_file import PointsPrompt, TextsPrompt, load_prompt
from alignloop.pruning.classifier import FOLDER
from alignloop.pruning.decontaminate import benchmark_files, benchmark_texts
from alignloop.pruning.items import Item, as_sft, item_of_demonstration, item_of_selected, item_of_target
from alignloop.pruning.models import POLICY, PruneJudge, embedding_by
from alignloop.pruning.pipeline import Pruning, prune
from alignloop.pruning.step import Tools
from alignloop.records import DroppedRow, PreferenceRow, PromptRow, SelectedRow, SftRow, Strength
from alignloop.run_dir.manifest import optional
from alignloop.run_dir.stage import Outputs as StageOutputs
from alignloop.run_dir.stage import Stage, StageContext
from alignloop.stages.asking import KEPT, check_judge
from alignloop.stages.facts import Facts

GATES = "gates"
"""The rule of what fails a gate of `score.reward_functions`."""


@dataclass(frozen=True)
class Inputs:
    selected: Artifact
    preferences: Artifact
    """The round's batch: its chosen/edited completions join; what is not people's has a reward by `score`."""
    policy: Artifact
    """Embeds the dialogs."""
    benchmarks: tuple[Artifact, ...] = ()
    """Local data that rows are compared with; like all fields below, it may change under the name the recipe has for
    it."""
    labelled: Artifact | None = None
    topic_model: str | None = None
    embedder: str | None = None
    judge_prompts: str | None = None
    judge_model: str | None = None
    demonstrations: tuple[Artifact, ...] = optional()
    """A file an entry of `sft.data`, as ingested."""


@dataclass(frozen=True, kw_only=True)
class Outputs(StageOutputs):
    rows: Artifact
    dropped: Artifact
    classifier: tuple[Artifact, ...] = ()
    answers: tuple[Artifact, ...] = ()
    """Every answer of the judge, a file a judging prompt."""


class DemonstrationSettings(Section):
    """`sft.data` as its rows are drawn. With a window, into how many shares they are split."""

    entries: tuple[Demonstrations, ...]
    data_window: PositiveInt | None
    split_rounds: PositiveInt | None

    def items(self, files: Sequence[Artifact], *, round: int) -> list[Item]:
        """The rows of the round, entry by entry."""
        found = []
        for entry, file in zip(self.entries, files, strict=True):
            rows = list(load_jsonl(file.path, SftRow))
            drawn = windowed(rows, round=round, window=self.data_window, split_rounds=self.split_rounds or 1)
            found += [item_of_demonstration(row, entry=entry.file) for row in drawn]
        return found


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
    demonstrations: DemonstrationSettings | None = Field(None, exclude_if=lambda settings: settings is None)

    @property
    def embedder_model(self) -> str | None:
        """None where that is the policy, or nothing is embedded."""
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
        tasks=recipe.evaluate.all_tasks if compared else (),
        include_path=recipe.evaluate.include_path if compared else None,
        strengths=recipe.reward.strengths,
        demonstrations=_of_demonstrations(recipe),
    )


def _of_demonstrations(recipe: Recipe) -> DemonstrationSettings | None:
    if not recipe.sft.data:
        return None
    window = recipe.sft.data_window
    split_rounds = None if window is None else recipe.data.split_rounds
    return DemonstrationSettings(entries=recipe.sft.data, data_window=window, split_rounds=split_rounds)


def inputs(
    recipe: Recipe,
    demonstrations: tuple[Artifact, ...] = (),
    *,
    selected: Artifact,
    preferences: Artifact,
    policy: Artifact,
) -> Inputs:
    """The stage's inputs, with marks of all that the recipe names by path."""
    from alignloop.judging.prompt_file import folder_mark

    config = settings(recipe)
    model = config.topic.model if config.topic.by == "classifier" else None
    topic_model = folder_mark(Path(model).expanduser()) if model else None
    shown = demonstrations if recipe.sft.data else ()
    named = named_by_path(config)
    return Inputs(selected, preferences, policy, topic_model=topic_model, demonstrations=shown, **named)


def named_by_path(config: Settings) -> dict[str, Any]:
    """Marks of what may change under the name that the recipe has for it, by field of the inputs."""
    from alignloop.judging.prompt_file import folder_mark, model_mark, prompts_mark

    topic, embedder = config.topic, config.embedder_model
    learns = topic.by == "classifier" and topic.labelled is not None
    labelled = Path(str(topic.labelled)).expanduser() if learns else None
    prompts = config.judging_prompts if config.judge is not None else ()
    return {
        "benchmarks": benchmark_files(config.tasks, config.include_path),
        "labelled": Artifact.of(labelled) if labelled is not None and labelled.is_file() else None,
        "embedder": None if embedder is None else folder_mark(Path(embedder).expanduser()),
        "judge_prompts": prompts_mark(prompts) if prompts else None,
        "judge_model": model_mark(config.judge) if prompts and config.judge is not None else None,
    }


def run(config: Settings, inputs: Inputs, ctx: StageContext) -> Outputs:
    items, left_out = _items(config, inputs, seed=ctx.seed)
    if config.demonstrations is not None:
        items += config.demonstrations.items(inputs.demonstrations, round=ctx.round)
    with ctx.activity("pruning"):
        pruned = prune(items, tools(config, ctx, policy=inputs.policy.path))
    for note in pruned.notes:
        ctx.progress.say(f"  {note}")
    gated = [row for row in left_out if row.rule == GATES]
    if not items and gated:
        raise DataError(
            f"no row for SFT: all {len(gated)} fail a gate of score.reward_functions, the first: {gated[0].id}: "
            f"{gated[0].reason}; lower the gate, or raise sample.num_candidates"
        )
    if not items:
        ctx.progress.say(f"  no row for SFT: prune.sources is [{', '.join(config.sources)}], and the round has none")
    elif not pruned.kept:
        by_rule = ", ".join(f"{name} {n}" for name, n in pruned.counts.items() if name.startswith("dropped_by"))
        raise DataError(f"prune dropped all {len(items)} rows: {by_rule}; loosen the steps under `prune`")
    return Outputs(
        rows=ctx.write_rows("rows.jsonl", map(as_sft, pruned.kept)),
        dropped=ctx.write_rows("dropped.jsonl", [*left_out, *pruned.dropped]),
        counts=_counted(pruned.counts, left_out) | _shown(config, pruned),
        metrics=pruned.metrics,
        **kept_beside(ctx.dir),
    )


def _items(config: Settings, inputs: Inputs, *, seed: int) -> tuple[list[Item], list[DroppedRow]]:
    """What is pruned: the picked candidates, then those drawn of the batch; and rows of no source that is wanted, or
    whose completion fails a gate of `score`."""
    selected = list(load_jsonl(inputs.selected.path, SelectedRow))
    batch = list(load_jsonl(inputs.preferences.path, PreferenceRow))
    sampled = selected if "on_policy" in config.sources else []
    wanted = [row for row in batch if row.origin in config.sources]
    unwanted = [("on_policy", row.id) for row in selected if not sampled]
    unwanted += [(row.origin, row.id) for row in batch if row.origin not in config.sources]
    if 0 <= config.human_rows < len(wanted):
        wanted = random.Random(seed).sample(wanted, config.human_rows)
    pass_rates = {prompt_key(row.messages, seed=0): row.pass_rate for row in selected}
    items = [item_of_selected(row) for row in sampled]
    for row in wanted:
        pass_rate = pass_rates.get(prompt_key(row.messages, seed=0))
        items.append(item_of_target(row, strengths=config.strengths, pass_rate=pass_rate))
    left_out = [
        DroppedRow(id=row_id, stage="prune", rule="sources", reason=f"prune.sources does not name {origin}")
        for origin, row_id in unwanted
    ]
    left_out += [
        DroppedRow(id=item.id, stage="prune", rule=GATES, reason=f"fails the gate of {', '.join(item.failed_gates)}")
        for item in items
        if item.failed_gates
    ]
    return [item for item in items if not item.failed_gates], left_out


def _counted(counts: dict[str, int], left_out: Sequence[DroppedRow]) -> dict[str, int]:
    """The counts with the rows that no step saw."""
    num, by_rule = len(left_out), Counter(row.rule for row in left_out)
    more = {"in": counts["in"] + num, "dropped": counts["dropped"] + num}
    return {**counts, **more, **{f"dropped_by_{rule}": n for rule, n in by_rule.items()}} if num else counts


def _shown(config: Settings, pruned: Pruning) -> dict[str, int]:
    """How many of the rows kept are demonstrations, repeats aside, where there may be some."""
    if config.demonstrations is None:
        return {}
    num_shown = len({item.row.id for item in pruned.kept if item.demonstration is not None})
    return {"demonstrations": num_shown, "other_rows": pruned.num_kept - num_shown}


def tools(config: Settings, ctx: StageContext, *, policy: Path | None) -> Tools:
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
    embedder, shown = config.semantic_dedup.embedder, config.demonstrations
    return Tools(
        config=config,
        seed=ctx.seed,
        demonstrations=MixConfig() if shown is None else mix_of(shown.entries),
        judge=judge,
        embedding=embedding_by(embedder, policy=policy, progress=ctx.progress, release=ctx.engine.sleep),
        benchmarks=(lambda: benchmark_texts(config.tasks, config.include_path)) if config.tasks else None,
        folder=ctx.dir,
        progress=ctx.progress,
    )


def kept_beside(folder: Path) -> dict[str, Any]:
    """What the steps left in a stage's folder beside the rows."""
    classifier = folder / FOLDER
    answers = sorted((folder / KEPT).glob("*/finished.jsonl"))
    return {
        "classifier": (Artifact.of(classifier),) if classifier.is_dir() else (),
        "answers": tuple(Artifact.of(file) for file in answers),
    }


STAGE = Stage("prune", Inputs, Outputs, settings, run)


def check(facts: Facts) -> None:
    config, judge = facts.recipe.prune, facts.recipe.judge
    for look in (_check_prompts, _check_classifier, _check_labelled, _check_embedder):
        with facts.findings.collecting():
            look(config)
    with facts.findings.collecting():
        shown = [row for rows in facts.rows.demonstrations.values() for row in rows]
        _check_topics(config, [*facts.rows.prompts, *facts.rows.train, *shown])
    if config.judging_prompts and judge is not None and not facts.is_published(STAGE.name):
        check_judge(facts, judge)


def _check_prompts(config: PruneConfig) -> None:
    points = {"difficulty.prompt": config.difficulty.prompt} if config.difficulty.by == "judge" else {}
    if config.quality.enabled and config.quality.by != "reward":
        points |= {"quality.general_prompt": config.quality.general_prompt}
        points |= {"quality.code_prompt": config.quality.code_prompt}
    for field, name in points.items():
        prompt = load_prompt(name)
        if not isinstance(prompt, PointsPrompt):
            raise UserError(f"prune.{field}: {name} is of kind {prompt.kind}; name a prompt of kind points")
    if config.difficulty.by == "judge":
        prompt = load_prompt(config.difficulty.prompt)
        if isinstance(prompt, PointsPrompt) and config.difficulty.max_points > prompt.verdict.maximum:
            raise UserError(
                f"prune.difficulty.max_points ({config.difficulty.max_points}) is above what "
                f"{config.difficulty.prompt} gives ({prompt.verdict.maximum})"
            )
    if config.difficulty.by == "intentions":
        _texts_prompt("difficulty.intentions_prompt", config.difficulty.intentions_prompt).with_labels(())
    if config.topic.by == "judge":
        _texts_prompt("topic.prompt", config.topic.prompt).with_labels(config.topic.labels)


def _texts_prompt(field: str, name: str) -> TextsPrompt:
    prompt = load_prompt(name)
    if not isinstance(prompt, TextsPrompt):
        raise UserError(f"prune.{field}: {name} is of kind {prompt.kind}; name a prompt of kind texts")
    return prompt


def _check_classifier(config: PruneConfig) -> None:
    """Its model exists, and knows its labels where it learns none."""
    from alignloop.pruning.classifier import classifier_labels

    topic = config.topic
    if topic.by != "classifier" or topic.model is None:
        return
    folder = Path(topic.model).expanduser()
    if not folder.is_dir():
        raise ModelError(f"prune.topic.model: {topic.model}: no such folder - download the model and give its path")
    if topic.labelled is None:
        _refuse_unknown_labels(config, classifier_labels(folder))
        return
    try:
        weight_files(folder)
    except ModelError as error:
        raise ModelError(f"prune.topic.model: {topic.model}: {error}") from error


def _check_labelled(config: PruneConfig) -> None:
    """The rows that a classifier learns from can be read."""
    from alignloop.pruning.topic import read_labelled

    if config.topic.by == "classifier" and config.topic.labelled is not None:
        rows = read_labelled(Path(config.topic.labelled).expanduser())
        _refuse_unknown_labels(config, [label for _, label in rows])


def _refuse_unknown_labels(config: PruneConfig, labels: Sequence[str]) -> None:
    """Topics that the mix names are the classifier's."""
    from alignloop.pruning.topic import split_label

    if config.mix.wanted and config.mix.by != "source":
        part = 0 if config.mix.by == "topic" else 1
        _refuse_unknown(config, known={name for label in labels if (name := split_label(label)[part])})


def _check_embedder(config: PruneConfig) -> None:
    """A local embedder exists; a hub's id is looked up when it is loaded."""
    name = config.semantic_dedup.embedder
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1
    if name != "policy" and config.semantic_dedup.enabled and looks_local and not Path(name).expanduser().is_dir():
        raise ModelError(f"prune.semantic_dedup.embedder: {name}: no such folder")


def _check_topics(config: PruneConfig, rows: Sequence[PromptRow | PreferenceRow | SftRow]) -> None:
    """Topics that the mix names occur, where they are known beforehand."""
    mix, topic = config.mix, config.topic
    if not mix.wanted or mix.by == "source" or not rows:
        return
    if topic.by == "column":
        column = topic.column if mix.by == "topic" else topic.fine_column
        _refuse_unknown(config, known={str(row.meta[column]) for row in rows if row.meta.get(column)})
    elif topic.by == "judge" and mix.by == "topic":
        _refuse_unknown(config, known=set(topic.labels))


def _refuse_unknown(config: PruneConfig, *, known: set[str]) -> None:
    unknown = sorted({*config.mix.shares, *config.mix.epochs} - known)
    if unknown:
        listed = ", ".join(sorted(known)[:20]) or "none"
        raise UserError(f"prune.mix: no row can be of {config.mix.by} {unknown[0]!r} - known: {listed}")
