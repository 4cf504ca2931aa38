"""What pruning will need, before anything is trained: its judge, labelled rows, models, and topics that can be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from alignloop.config.pruning import PruneConfig
from alignloop.engines.checkpoint import weight_files
from alignloop.errors import ModelError, UserError
from alignloop.judging.prompt_file import PointsPrompt, TextsPrompt, load_prompt
from alignloop.records import PreferenceRow, PromptRow
from alignloop.stages import prune
from alignloop.stages.asking import check_judge
from alignloop.stages.facts import Facts


def check(facts: Facts) -> None:
    """Look at all that the steps of `prune` need beside the round's rows."""
    config, judge, findings = facts.recipe.prune, facts.recipe.judge, facts.findings
    with findings.collecting():
        _check_prompts(config)
    with findings.collecting():
        _check_classifier(config)
    with findings.collecting():
        _check_embedder(config)
    with findings.collecting():
        _check_topics(config, [*facts.rows.prompts, *facts.rows.train])
    if config.judging_prompts and judge is not None and not facts.is_published(prune.STAGE.name):
        check_judge(facts, judge)


def _check_prompts(config: PruneConfig) -> None:
    """Each judging prompt is there and of the kind its step asks by.

    Raises:
        UserError: names the field.
    """
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
    """Its model is there, and the rows it learns from can be read, or it knows its labels."""
    from alignloop.pruning.classifier import classifier_labels
    from alignloop.pruning.topic import read_labelled

    topic = config.topic
    if topic.by != "classifier" or topic.model is None:
        return
    folder = Path(topic.model).expanduser()
    if not folder.is_dir():
        raise ModelError(f"prune.topic.model: {topic.model}: no such folder - download the model and give its path")
    labels: set[str]
    if topic.labelled is None:
        labels = set(classifier_labels(folder))
    else:
        labels = set(read_labelled(Path(topic.labelled).expanduser()).topics)
        try:
            weight_files(folder)
        except ModelError as error:
            raise ModelError(f"prune.topic.model: {topic.model}: {error}") from error
    if config.mix.wanted and config.mix.by == "topic":
        _refuse_unknown(config, known=labels)


def _check_embedder(config: PruneConfig) -> None:
    """A local embedder is there; a hub's id is looked up when it is loaded."""
    name = config.semantic_dedup.embedder
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1
    if name != "policy" and config.semantic_dedup.enabled and looks_local and not Path(name).expanduser().is_dir():
        raise ModelError(f"prune.semantic_dedup.embedder: {name}: no such folder")


def _check_topics(config: PruneConfig, rows: Sequence[PromptRow | PreferenceRow]) -> None:
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
