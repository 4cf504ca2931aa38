"""What the training stages share: rows in, checkpoints, logs and a summary out."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING

from alignloop.artifacts import PARTIAL, Artifact, write_text
from alignloop.config.training import ObjectiveName, SftConfig
from alignloop.records import DroppedRow, SftRow, round_name
from alignloop.run_dir.stage import Outputs as StageOutputs
from alignloop.run_dir.stage import StageContext

if TYPE_CHECKING:
    from alignloop.packing.groups import PromptGroup
    from alignloop.training.job import TrainConfig
    from alignloop.training.variants import TrainedVariant

SUMMARY = "train_summary.json"
LOG = "train_log.jsonl"
DROPPED = "dropped.jsonl"


@dataclass(frozen=True, kw_only=True)
class Outputs(StageOutputs):
    checkpoints: tuple[Artifact, ...]
    """Oldest first, one variant after another."""
    logs: tuple[Artifact, ...]
    """A line a step; one a variant."""
    summary: Artifact
    """`TrainSummary`: what each checkpoint is and how it does on held-out rows."""
    dropped: tuple[Artifact, ...] = ()
    """Rows that did not train, with reasons; empty where all did."""


def train_stage(
    objective: ObjectiveName,
    *,
    config: TrainConfig,
    groups: Sequence[PromptGroup],
    eval_groups: Sequence[PromptGroup],
    start: Artifact,
    ctx: StageContext,
    reference: Artifact | None = None,
    left_out: Sequence[DroppedRow] = (),
) -> Outputs:
    """Train, once or once a variant; metrics are means over the variants.

    Args:
        left_out: rows that did not become groups.
    """
    from alignloop.training.variants import train_variants

    ctx.engine.sleep()
    with ctx.activity("training"):
        trained = train_variants(
            objective,
            groups=groups,
            eval_groups=eval_groups,
            start=start,
            reference=reference,
            out_dir=ctx.dir,
            config=config,
            seed=ctx.seed,
            progress=ctx.progress,
            training=ctx.training,
            run_name=f"{round_name(ctx.round)}/{_folder_name(ctx)}",
        )
    dropped = [*left_out, *_dropped(trained, [group.id for group in groups], stage=ctx.name)]
    checkpoints = tuple(Artifact.of(path) for variant in trained for path in variant.result.checkpoints)
    return Outputs(
        checkpoints=checkpoints,
        logs=tuple(Artifact.of(variant.dir / LOG) for variant in trained),
        summary=_summary(objective, trained, checkpoints, ctx),
        dropped=ctx.write_any_rows(DROPPED, dropped),
        counts=_counts(dropped, num_rows=len(groups) + len(left_out)),
        metrics=_means([variant.result.metrics for variant in trained]),
    )


def fine_tune(
    config: SftConfig,
    start: Artifact,
    rows: Sequence[SftRow],
    heldout: Sequence[SftRow],
    ctx: StageContext,
    *,
    left_out: Sequence[DroppedRow] = (),
) -> Outputs:
    """Cross-entropy on target tokens; the prompt is masked. `left_out` as for `train_stage`."""
    from alignloop.chat.load import load_format
    from alignloop.packing.build import sft_groups

    chat = load_format(start.path)
    return train_stage(
        "sft",
        config=config,
        groups=sft_groups(rows, chat, train_on=config.train_on),
        eval_groups=sft_groups(heldout, chat, train_on=config.train_on),
        start=start,
        ctx=ctx,
        left_out=left_out,
    )


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
        for place, row_id in enumerate(ids)
        if place not in drawn
    ]
    # `|` of counters is the larger count of each row: what several variants drop is dropped once.
    too_long = reduce(operator.or_, [Counter(variant.result.dropped) for variant in trained])
    rows += [DroppedRow(id=row_id, stage=stage, rule="length", reason=reason) for row_id, reason in too_long.elements()]
    return rows


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


def _folder_name(ctx: StageContext) -> str:
    return ctx.dir.name.removesuffix(PARTIAL)


def _means(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of the numbers that all of them have."""
    names = [name for name in metrics[0] if all(name in other for other in metrics)]
    return {name: sum(each[name] for each in metrics) / len(metrics) for name in names}
