"""The user's files, read once: preferences with their held-out part, prompts, and what could not be read.

preferences --read--> --without benchmarks--> train | held out
prompts     --read--> --without benchmarks--> --without held-out prompts--> to sample for
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from alignloop.artifacts import Artifact
from alignloop.config.data import DataConfig
from alignloop.config.pruning import KeepOutConfig
from alignloop.config.recipe import Recipe
from alignloop.data.readers import read_preferences, read_prompts
from alignloop.data.split import heldout_split, prompt_key, without_prompts
from alignloop.errors import DataError
from alignloop.pruning.benchmarks import benchmark_files
from alignloop.pruning.decontaminate import ALL_LEFT_OUT, RowT, left_out_line, without_benchmarks
from alignloop.records import DroppedRow, PreferenceRow, PromptRow, RejectedRow
from alignloop.run_dir.stage import Outputs as StageOutputs
from alignloop.run_dir.stage import Stage, StageContext


@dataclass(frozen=True)
class Inputs:
    preferences: tuple[Artifact, ...]
    """With `batches: files` the first round's file alone: the others are read by their rounds."""
    prompts: tuple[Artifact, ...]
    """Empty: the prompts of the preferences."""
    benchmarks: tuple[Artifact, ...] = ()
    """Local data of the benchmarks that are kept out."""


@dataclass(frozen=True, kw_only=True)
class Outputs(StageOutputs):
    preferences: Artifact
    heldout: Artifact
    prompts: Artifact
    rejected_rows: Artifact
    dropped: tuple[Artifact, ...] = ()
    """Preferences that are left out, with reasons; empty where all that can be read are taken."""
    dropped_prompts: tuple[Artifact, ...] = ()
    """Likewise."""


class Settings(DataConfig):
    keep_out: KeepOutConfig | None = None
    """None: `prune.decontaminate` is off."""


def settings(recipe: Recipe) -> Settings:
    return Settings(**dict(recipe.data), keep_out=keep_out_of(recipe))


def keep_out_of(recipe: Recipe) -> KeepOutConfig | None:
    """What no row that comes in may hold; None: `prune.decontaminate` is off."""
    config = recipe.prune.decontaminate
    if not config.enabled:
        return None
    return KeepOutConfig(
        tasks=recipe.evaluate.tasks,
        include_path=recipe.evaluate.include_path,
        ngram=config.ngram,
        min_share=config.min_share,
    )


def inputs(recipe: Recipe, *, preferences: tuple[Artifact, ...], prompts: tuple[Artifact, ...]) -> Inputs:
    """The stage's inputs, with the data of the benchmarks that the recipe names."""
    keep_out = keep_out_of(recipe)
    benchmarks = () if keep_out is None else benchmark_files(keep_out.tasks, keep_out.include_path)
    return Inputs(preferences, prompts, benchmarks)


@dataclass(frozen=True)
class _Prompts:
    """To sample for: `num_in` == rows + dropped + rejected."""

    rows: list[PromptRow]
    dropped: list[DroppedRow] = field(default_factory=list)
    rejected: list[RejectedRow] = field(default_factory=list)

    @property
    def num_dropped(self) -> int:
        return len(self.dropped) + len(self.rejected)


def run(config: Settings, inputs: Inputs, ctx: StageContext) -> Outputs:
    """Read everything; the same prompt never lies on both sides of the held-out split.

    Raises:
        DataError: as the readers and the benchmarks; or every preference holds a benchmark's question, or no prompt of
            the file of prompts is left.
    """
    with ctx.activity("reading"):
        read = read_preferences([a.path for a in inputs.preferences], **config.reading)
    rows, dropped = _keep_out(read.rows, config, ctx, what="preferences", use="train on")
    train, heldout = heldout_split(
        rows, fraction=config.heldout_fraction, max_heldout=config.max_heldout, seed=ctx.seed
    )
    prompts = _prompts(config, inputs, train, heldout, ctx)

    kept, num_dropped = len(train) + len(heldout), len(read.rejected) + len(dropped)
    return Outputs(
        preferences=ctx.write_rows("preferences.jsonl", train),
        heldout=ctx.write_rows("heldout.jsonl", heldout),
        prompts=ctx.write_rows("prompts.jsonl", prompts.rows),
        rejected_rows=ctx.write_rows("rejected_rows.jsonl", [*read.rejected, *prompts.rejected]),
        dropped=ctx.write_any_rows("dropped.jsonl", dropped),
        dropped_prompts=ctx.write_any_rows("dropped_prompts.jsonl", prompts.dropped),
        counts={
            "in": kept + num_dropped,
            "kept": kept,
            "dropped": num_dropped,
            "dropped_by_read": len(read.rejected),
            "dropped_by_decontaminate": len(dropped),
            "heldout": len(heldout),
            "prompts_in": len(prompts.rows) + prompts.num_dropped,
            "prompts": len(prompts.rows),
            "prompts_dropped": prompts.num_dropped,
        },
    )


def _keep_out(
    rows: Sequence[RowT], config: Settings, ctx: StageContext, *, what: str, use: str
) -> tuple[list[RowT], list[DroppedRow]]:
    """The rows that hold no benchmark's question, and the others, of which a line is printed."""
    with ctx.activity("decontaminating"):
        kept, dropped = without_benchmarks(rows, config.keep_out, stage=STAGE.name)
    if dropped:
        line = left_out_line(dropped, num_in=len(rows), what=what)
        ctx.progress.say(f"  {line}")
        if not kept:
            raise DataError(f"{line}\nNothing is left to {use}: {ALL_LEFT_OUT}")
    return kept, dropped


def _prompts(
    config: Settings,
    inputs: Inputs,
    train: list[PreferenceRow],
    heldout: list[PreferenceRow],
    ctx: StageContext,
) -> _Prompts:
    """Those of the user's files, or of the preferences, which hold no benchmark any more."""
    found = _Prompts(prompts_of(train))
    if inputs.prompts:
        with ctx.activity("reading"):
            read = read_prompts([a.path for a in inputs.prompts], **config.reading_prompts)
        rows, dropped = _keep_out(read.rows, config, ctx, what="prompts", use="sample for")
        found = _Prompts(rows, dropped, list(read.rejected))
    rows, of_heldout = without_prompts(found.rows, heldout)
    if of_heldout and not rows:
        raise DataError(NO_PROMPT_LEFT)
    return replace(found, rows=rows, dropped=[*found.dropped, *map(_left_out, of_heldout)])


NO_PROMPT_LEFT = (
    "prompts: none is left to sample for once those of the held-out preferences are taken out - name a file of "
    "prompts, or lower data.heldout_fraction"
)
HELDOUT_REASON = "it is that of a held-out preference, which nothing trains on"


def _left_out(prompt: PromptRow) -> DroppedRow:
    return DroppedRow(id=prompt.id, stage="ingest", rule="heldout_prompt", reason=HELDOUT_REASON, source=prompt.source)


def prompts_of(rows: list[PreferenceRow]) -> list[PromptRow]:
    """Each distinct prompt of the preferences, once."""
    prompts: dict[int, PromptRow] = {}
    for row in rows:
        key = prompt_key(row.messages, seed=0)
        prompts.setdefault(key, PromptRow(id=f"{key:016x}", messages=row.messages, source=row.source, meta=row.meta))
    return list(prompts.values())


STAGE = Stage("ingest", Inputs, Outputs, settings, run)
