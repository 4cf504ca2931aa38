"""The user's files, read once: preferences with their held-out part, prompts, and what could not be read."""

from __future__ import annotations

from dataclasses import dataclass

from alignloop.artifacts import Artifact
from alignloop.config.data import DataConfig
from alignloop.data.jsonl import dump_jsonl
from alignloop.data.readers import read_preferences, read_prompts
from alignloop.data.split import heldout_split, prompt_key
from alignloop.records import DroppedRow, PreferenceRow, PromptRow
from alignloop.stage import Outputs as StageOutputs
from alignloop.stage import Stage, StageContext


@dataclass(frozen=True)
class Inputs:
    preferences: tuple[Artifact, ...]
    """With `batches: files` the first round's file alone: the others are read by their rounds."""
    prompts: tuple[Artifact, ...]
    """Empty: the prompts of the preferences."""


@dataclass(frozen=True, kw_only=True)
class Outputs(StageOutputs):
    preferences: Artifact
    heldout: Artifact
    prompts: Artifact
    rejected_rows: Artifact
    dropped: tuple[Artifact, ...] = ()
    """Prompts that are left out, with reasons; empty where all are taken."""


def run(config: DataConfig, inputs: Inputs, ctx: StageContext) -> Outputs:
    """Read everything; the same prompt never lies on both sides of the held-out split."""
    read = read_preferences([a.path for a in inputs.preferences], **config.reading)
    train, heldout = heldout_split(
        read.rows, fraction=config.heldout_fraction, max_heldout=config.max_heldout, seed=ctx.seed
    )
    rejected = list(read.rejected)
    if inputs.prompts:
        read_also = read_prompts([a.path for a in inputs.prompts], **config.reading_prompts)
        prompts = read_also.rows
        rejected += read_also.rejected
    else:
        prompts = prompts_of(train)
    heldout_keys = {_key(row) for row in heldout}
    left_out = [_left_out(row) for row in prompts if _key(row) in heldout_keys]
    prompts = [row for row in prompts if _key(row) not in heldout_keys]
    dump_jsonl(ctx.dir / "preferences.jsonl", train)
    dump_jsonl(ctx.dir / "heldout.jsonl", heldout)
    dump_jsonl(ctx.dir / "prompts.jsonl", prompts)
    dump_jsonl(ctx.dir / "rejected_rows.jsonl", rejected)
    dropped: tuple[Artifact, ...] = ()
    if left_out:
        dump_jsonl(ctx.dir / "dropped.jsonl", left_out)
        dropped = (Artifact.of(ctx.dir / "dropped.jsonl"),)
    kept = len(train) + len(heldout)
    return Outputs(
        preferences=Artifact.of(ctx.dir / "preferences.jsonl"),
        heldout=Artifact.of(ctx.dir / "heldout.jsonl"),
        prompts=Artifact.of(ctx.dir / "prompts.jsonl"),
        rejected_rows=Artifact.of(ctx.dir / "rejected_rows.jsonl"),
        dropped=dropped,
        counts={
            "in": kept + len(read.rejected),
            "kept": kept,
            "dropped": len(read.rejected),
            "heldout": len(heldout),
            "prompts": len(prompts),
            "prompts_dropped": len(left_out),
        },
    )


HELDOUT_REASON = "it is that of a held-out preference, which nothing trains on"


def _left_out(prompt: PromptRow) -> DroppedRow:
    return DroppedRow(id=prompt.id, stage="ingest", rule="heldout_prompt", reason=HELDOUT_REASON)


def prompts_of(rows: list[PreferenceRow]) -> list[PromptRow]:
    """Each distinct prompt of the preferences, once."""
    prompts: dict[int, PromptRow] = {}
    for row in rows:
        key = _key(row)
        prompts.setdefault(key, PromptRow(id=f"{key:016x}", messages=row.messages, source=row.source, meta=row.meta))
    return list(prompts.values())


def _key(row: PreferenceRow | PromptRow) -> int:
    return prompt_key(row.messages, seed=0)


STAGE = Stage("ingest", Inputs, Outputs, run)
