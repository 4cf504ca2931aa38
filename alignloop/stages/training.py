"""What the training stages share: rows in, checkpoints, logs and a summary out; and the checks of answers and
lengths."""

from __future__ import annotations

import operator
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from statistics import fmean
from typing import TYPE_CHECKING, Any, TypeVar

from alignloop.artifacts import Artifact, write_text
from alignloop.chat.format import ChatFormat
from alignloop.chat.reasoning import THINK_START, split_reasoning
from alignloop.chat.tool_turns import uses_tools
from alignloop.config.recipe import Recipe
from alignloop.config.training import DpoConfig, ObjectiveName, OptimizerConfig
from alignloop.data.split import asked
from alignloop.data.turns import untrained_turn
from alignloop.errors import ModelError
from alignloop.records import DroppedRow, Message, PreferenceRow, PromptRow, SftRow, Source, round_name
from alignloop.run_dir.manifest import PARTIAL, optional
from alignloop.run_dir.stage import Outputs as StageOutputs
from alignloop.run_dir.stage import StageContext
from alignloop.stages.facts import Facts, Findings
from alignloop.stages.sample import check_lengths

if TYPE_CHECKING:
    from alignloop.packing.groups import PromptGroup
    from alignloop.training.job import TrainJob
    from alignloop.training.variants import TrainedVariant

T = TypeVar("T", PreferenceRow, PromptRow)
NUM_SAMPLED = 200
"""Rows tokenised: enough for a mean, and done in well under a second."""
SUMMARY = "train_summary.json"
LOG = "train_log.jsonl"
DROPPED = "dropped.jsonl"
TRAINED_TOKENS = "trained_tokens"
"""The manifest's fact: tokens of rows as packed that went through the model to train it, over all variants."""


@dataclass(frozen=True, kw_only=True)
class Outputs(StageOutputs):
    checkpoints: tuple[Artifact, ...]
    """Oldest first, one variant after another."""
    logs: tuple[Artifact, ...]
    """A line a step; one a variant."""
    summary: Artifact
    """`TrainSummary`: what each checkpoint is and how it does on held-out rows."""
    dropped: tuple[Artifact, ...] = ()
    optimizer: tuple[Artifact, ...] = optional()
    """Its state at the end, where the next round goes on with it (`dpo.carry_optimizer`)."""


def train_stage(
    objective: ObjectiveName,
    *,
    config: OptimizerConfig,
    groups: Sequence[PromptGroup],
    eval_groups: Sequence[PromptGroup],
    start: Artifact,
    ctx: StageContext,
    reference: Artifact | None = None,
    optimizer: Artifact | None = None,
    left_out: Sequence[DroppedRow] = (),
) -> Outputs:
    """Train, once or once a variant; metrics are means over the variants. `left_out` are rows that did not become
    groups. Without any group a policy stays what it is; a reward model without a row is an error."""
    from alignloop.training.job import TrainJob
    from alignloop.training.variants import train_variants

    job = TrainJob(
        objective=objective,
        groups=groups,
        eval_groups=eval_groups,
        checkpoint=start.path,
        reference=None if reference is None else reference.path,
        out_dir=ctx.dir,
        config=config,
        seed=ctx.seed,
        progress=ctx.progress,
        training=ctx.training,
        run_name=f"{round_name(ctx.round)}/{ctx.dir.name.removesuffix(PARTIAL)}",
        optimizer=None if optimizer is None else optimizer.path,
        keeps_optimizer=isinstance(config, DpoConfig) and config.carry_optimizer,
    )
    models = {"start": start.digest, "reference": None if reference is None else reference.digest}
    ctx.engine.sleep()
    with ctx.activity("training"):
        has_rows = bool(groups) or objective == "reward"
        trained = train_variants(job, models=models) if has_rows else [_untrained(job)]
    dropped = [*left_out, *_dropped(trained, [group.id for group in groups], stage=ctx.name)]
    return Outputs(**published(objective, trained, dropped, num_rows=len(groups) + len(left_out), ctx=ctx))


def published(
    objective: ObjectiveName,
    trained: Sequence[TrainedVariant],
    dropped: Sequence[DroppedRow],
    *,
    num_rows: int,
    ctx: StageContext,
) -> dict[str, Any]:
    """The fields of `Outputs`, of what was trained on `num_rows` rows but those that were dropped."""
    from alignloop.training.job import OPTIMIZER

    checkpoints = tuple(Artifact.of(path) for variant in trained for path in variant.result.checkpoints)
    metrics = [variant.result.metrics for variant in trained]
    in_all = [name for name in metrics[0] if all(name in other for other in metrics)]
    return {
        "checkpoints": checkpoints,
        "logs": tuple(Artifact.of(variant.dir / LOG) for variant in trained),
        "summary": _summary(objective, trained, checkpoints, ctx),
        "dropped": ctx.write_any_rows(DROPPED, dropped),
        "counts": _counts(dropped, num_rows=num_rows),
        "metrics": {name: sum(each[name] for each in metrics) / len(metrics) for name in in_all},
        "facts": {TRAINED_TOKENS: sum(variant.result.num_tokens for variant in trained)},
        "optimizer": (ctx.artifact(OPTIMIZER),) if (ctx.dir / OPTIMIZER).is_file() else (),
    }


def _untrained(job: TrainJob) -> TrainedVariant:
    """What a policy's training publishes where it has no row: a copy of what it would have begun from."""
    from alignloop.training.average import average_checkpoints
    from alignloop.training.job import OPTIMIZER, TrainResult
    from alignloop.training.variants import TrainedVariant

    job.progress.say(f"  {job.objective}: no row to train on: the checkpoint it begins from is published as it is")
    checkpoint = average_checkpoints([job.checkpoint], out_dir=job.checkpoint_path(0))
    write_text(job.out_dir / LOG, "")
    if job.keeps_optimizer and job.optimizer is not None:
        shutil.copyfile(job.optimizer, job.out_dir / OPTIMIZER)
    result = TrainResult((checkpoint,), {}, num_steps=0, num_tokens=0, dropped=(), checkpoint_metrics=({},))
    return TrainedVariant(None, {}, job.out_dir, (), result)


def _summary(
    objective: ObjectiveName, trained: Sequence[TrainedVariant], checkpoints: Sequence[Artifact], ctx: StageContext
) -> Artifact:
    from alignloop.training.average import TrainedCheckpoint, TrainSummary

    described = [(variant, metrics) for variant in trained for metrics in variant.result.checkpoint_metrics]
    summary = TrainSummary(
        objective=objective,
        checkpoints=tuple(
            TrainedCheckpoint(
                file=artifact.path.relative_to(ctx.dir.resolve()).as_posix(),
                digest=artifact.digest,
                step=int(artifact.path.name.removeprefix("step-")),
                variant=variant.number,
                changed=variant.changed,
                metrics=metrics,
            )
            for artifact, (variant, metrics) in zip(checkpoints, described, strict=True)
        ),
    )
    write_text(ctx.dir / SUMMARY, summary.model_dump_json(indent=1) + "\n")
    return ctx.artifact(SUMMARY)


def _dropped(trained: Sequence[TrainedVariant], ids: Sequence[str], *, stage: str) -> list[DroppedRow]:
    """Rows that no variant trained on: no variant drew them, or they are too long."""
    drawn = {row for variant in trained for row in variant.rows}
    rows = [
        DroppedRow(id=row_id, stage=stage, rule="draw", reason="no variant drew it (data_fraction)")
        for index, row_id in enumerate(ids)
        if index not in drawn
    ]
    # `|` of counters is the larger count of each row: what several variants drop is dropped once.
    too_long = reduce(operator.or_, [Counter(variant.result.dropped) for variant in trained])
    return rows + [
        DroppedRow(id=row_id, stage=stage, rule="length", reason=reason) for row_id, reason in too_long.elements()
    ]


def _counts(dropped: Sequence[DroppedRow], *, num_rows: int) -> dict[str, int]:
    """A row is kept where at least one variant trains on it."""
    rules = Counter(row.rule for row in dropped)
    reasons = {f"dropped_by_{rule}": rules[rule] for rule in ("strength", "batch", "draw") if rules[rule]}
    return {
        "in": num_rows,
        "kept": num_rows - len(dropped),
        "dropped": len(dropped),
        **reasons,
        "dropped_by_length": rules["length"],
    }


def check_answers(facts: Facts, *, chat: ChatFormat) -> None:
    """Every text that training may take as an answer, against what the chat template can put behind its prompt."""
    rows, findings = [*facts.rows.train, *facts.rows.heldout], facts.findings
    shown = [row for entry in facts.rows.demonstrations.values() for row in entry]
    answers = [(row.source, text) for row in rows for text in _answers(row)]
    targets = [(row.source, row.target.text) for row in shown]
    for what, texts in (("preferences", answers), ("sft.data", targets)):
        for reason, found in _by_reason((source, chat.refusal(text)) for source, text in texts):
            findings.problems.append(
                f"{what}: {len(found)} of {len(texts)} answers cannot be trained (first: {found[0]}): {reason}"
            )
    _note_reasoning([text for _, text in (*answers, *targets)], chat=chat, findings=findings)
    check_tool_turns(facts, chat=chat)
    if facts.recipe.sft.train_on == "all_assistant":
        _check_earlier([*rows, *shown], chat=chat, findings=findings)


def check_tool_turns(facts: Facts, *, chat: ChatFormat) -> None:
    """Every dialog with tools up to its completion, rendered: what the template cannot write is a problem, by file."""
    rows = facts.rows
    shown = [row for entry in rows.demonstrations.values() for row in entry]
    for what, of in (
        ("preferences", [*rows.train, *rows.heldout]),
        ("prompts", rows.prompts if facts.recipe.prompts else []),
        ("sft.data", shown),
    ):
        dialogs = [(row.source, asked(row)) for row in of if uses_tools(asked(row))]
        for reason, found in _by_reason((source, _unrendered(messages, chat)) for source, messages in dialogs):
            facts.findings.problems.append(
                f"{what}: {len(found)} of {len(dialogs)} dialogs with tools cannot be rendered (first: {found[0]}): "
                f"{reason}"
            )


def _unrendered(messages: Sequence[Message], chat: ChatFormat) -> str | None:
    try:
        chat.prompt_ids(messages)
    except ModelError as error:
        return str(error)
    return None


def can_train(row: PreferenceRow, chat: ChatFormat) -> bool:
    return all(chat.refusal(text) is None for text in _answers(row))


def _note_reasoning(texts: Sequence[str], *, chat: ChatFormat, findings: Findings) -> None:
    num_reasoned = sum(split_reasoning(text)[0] is not None for text in texts)
    if num_reasoned and not chat.takes_reasoning:
        findings.notes.append(
            f"{num_reasoned} of {len(texts)} answers begin with {THINK_START}: the chat template takes no reasoning, "
            "so it is trained as text"
        )
    elif chat.trains_reasoning and THINK_START in chat.plain_opening and num_reasoned < len(texts):
        findings.notes.append(
            f"{len(texts) - num_reasoned} of {len(texts)} answers hold no reasoning: they teach the template's empty "
            "thinking block"
        )


def _check_earlier(rows: Sequence[PreferenceRow | SftRow], *, chat: ChatFormat, findings: Findings) -> None:
    """`all_assistant` trains every answer of a dialog: earlier ones must stand as sampling asks, too."""
    marked = [(row.source, mark) for row in rows if (mark := untrained_turn(row.meta))]
    if marked:
        source, mark = marked[0]
        findings.problems.append(
            f"sft.train_on: all_assistant: {len(marked)} of {len(rows)} rows hold turns that are marked as not to be "
            f"trained on (first: {source}, {mark}) - set sft.train_on: last_assistant, or "
            "take the rows out"
        )
    earlier = [(row.source, m.content) for row in rows for m in asked(row) if m.role == "assistant"]
    for reason, found in _by_reason((source, chat.earlier_refusal(text)) for source, text in earlier):
        findings.problems.append(
            f"sft.train_on: all_assistant: {len(found)} of {len(earlier)} earlier answers cannot be trained (first: "
            f"{found[0]}): {reason} - set sft.train_on: last_assistant, or chat_template to "
            "one that writes all answers alike (docs/templates.md)"
        )


def _answers(row: PreferenceRow) -> Iterator[str]:
    """Those whose ids the template makes: sampled ones are behind the generation prompt as they are."""
    return (completion.text for completion in row.ranked if completion.token_ids is None)


def _by_reason(found: Iterable[tuple[Source, str | None]]) -> Iterable[tuple[str, list[Source]]]:
    reasons: dict[str, list[Source]] = {}
    for source, reason in found:
        if reason is not None:
            reasons.setdefault(reason, []).append(source)
    return reasons.items()


@dataclass(frozen=True)
class Lengths:
    """In tokens, over the sampled rows.

    Attributes:
        prompt: mean length of a prompt to sample for.
        completion: mean length of a preference's longer completion.
        preferences: (prompt, longer completion) of each preference looked at.
    """

    prompt: float
    completion: float
    preferences: tuple[tuple[int, int], ...]

    def of_training(self, *, num_completions: int, max_length: int) -> float:
        """Mean tokens of a row that trains with so many completions; rows over `max_length` are left out, as 0."""
        kept = [p + num_completions * c for p, c in self.preferences if p + c <= max_length]
        return sum(kept) / len(self.preferences) if kept else 0.0


def measure_lengths(facts: Facts, *, chat: ChatFormat) -> Lengths:
    """Tokenise a sample, and compare its lengths with the limits of model and recipe."""
    rows, recipe, findings, positions = facts.rows, facts.recipe, facts.findings, facts.base.max_positions
    prompts = _tokenised(rows.prompts, lambda row: (len(chat.prompt_ids(row.messages)), 0), recipe, findings)
    preferences = _tokenised(rows.train, lambda row: _pair_length(row, chat), recipe, findings)
    if positions is not None and recipe.engine.max_model_len > positions:
        findings.problems.append(
            f"engine.max_model_len: {recipe.engine.max_model_len} tokens, but the base has {positions} positions - "
            f"set it to at most {positions}, and sample.max_tokens below it"
        )
    check_lengths(facts, [prompt for prompt, _ in prompts])
    groups = [prompt + completion for prompt, completion in preferences]
    joined = groups
    if not recipe.reward.isolate:
        joined = [length for length, _ in _tokenised(rows.train, lambda r: (_joined(r, chat), 0), recipe, Findings())]
    for name, lengths in (("reward", joined), ("sft", groups), ("dpo", groups)):
        _check_max_length(name, lengths, recipe, positions, findings)
    return Lengths(
        prompt=fmean(prompt for prompt, _ in prompts) if prompts else 0.0,
        completion=fmean(completion for _, completion in preferences) if preferences else 0.0,
        preferences=tuple(preferences),
    )


def _pair_length(row: PreferenceRow, chat: ChatFormat) -> tuple[int, int]:
    # Whether they can be trained is `check_answers`'s to say.
    texts = [text for text in (row.best, row.rejected) if chat.refusal(text) is None]
    longest = max((len(chat.completion(text).token_ids) for text in texts), default=0)
    return len(chat.prompt_ids(row.messages)), longest


def _joined(row: PreferenceRow, chat: ChatFormat) -> int:
    """Tokens of the prompt and all completions in one row."""
    texts = [one.text for one in row.ranked if chat.refusal(one.text) is None]
    return len(chat.prompt_ids(row.messages)) + sum(len(chat.completion(text).token_ids) for text in texts)


def _tokenised(
    rows: Sequence[T], length: Callable[[T], tuple[int, int]], recipe: Recipe, findings: Findings
) -> list[tuple[int, int]]:
    sampled = random.Random(recipe.seed).sample(list(rows), min(NUM_SAMPLED, len(rows)))
    found = []
    for row in sampled:
        try:
            found.append(length(row))
        except ModelError as error:
            findings.problems.append(f"{row.source}: {error}")
            break
    return found


def _check_max_length(
    name: str, lengths: Sequence[int], recipe: Recipe, positions: int | None, findings: Findings
) -> None:
    config: OptimizerConfig = getattr(recipe, name)
    longest = max(lengths, default=0)
    if positions is not None and min(longest, config.max_length) > positions:
        findings.problems.append(
            f"{name}.max_length: {config.max_length} lets rows of {longest} tokens through, but the base has only "
            f"{positions} positions - set it to at most {positions}; longer rows are then left out and counted"
        )
    num_long = sum(length > config.max_length for length in lengths)
    if num_long and num_long == len(lengths):
        findings.problems.append(
            f"{name}.max_length: all {num_long} rows looked at are longer than {config.max_length} tokens (longest "
            f"{longest}): nothing would be left to train on - raise it"
        )
    elif num_long:
        share = num_long / len(lengths)
        findings.notes.append(f"{name}.max_length {config.max_length}: {share:.0%} of the rows are longer and left out")
