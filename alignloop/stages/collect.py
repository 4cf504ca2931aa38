"""A round's preferences: its batch of the user's file, and new annotations of the last policy's candidates."""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass

from alignloop.artifacts import Artifact
from alignloop.config.recipe import CollectStageConfig
from alignloop.data.jsonl import dump_jsonl, load_jsonl
from alignloop.data.split import round_batch
from alignloop.judging.annotate import Annotations
from alignloop.records import CandidateRow, PreferenceRow, PromptRow, Source
from alignloop.stage import Outputs as StageOutputs
from alignloop.stage import Stage, StageContext
from alignloop.stages.select import by_prompt, reward_of


@dataclass(frozen=True)
class Inputs:
    preferences: Artifact
    scored: Artifact | None
    """The last round's scored candidates; None in the first round."""
    judge_prompt: str | None = None
    """Hash of the judging prompt, and of the judge's model: the recipe names both, and either may change under its
    name."""
    judge_model: str | None = None


@dataclass(frozen=True, kw_only=True)
class Outputs(StageOutputs):
    preferences: Artifact
    verdicts: tuple[Artifact, ...] = ()
    """Every verdict of a judge with its answers, ties and unreadable ones included; empty where no judge was asked."""


def inputs(config: CollectStageConfig, preferences: Artifact, scored: Artifact | None) -> Inputs:
    """The stage's inputs, the judge's hashes among them where it will be asked."""
    if config.annotator != "judge" or config.judge is None or scored is None:
        return Inputs(preferences, scored)
    from alignloop.judging.identity import model_mark, prompt_mark

    return Inputs(preferences, scored, prompt_mark(config.judge), model_mark(config.judge))


def run(config: CollectStageConfig, inputs: Inputs, ctx: StageContext) -> Outputs:
    everyone = list(load_jsonl(inputs.preferences.path, PreferenceRow))
    batch = round_batch(everyone, round=ctx.round, batches=config.batches, split_rounds=config.split_rounds)
    new = Annotations([], [], {"annotated": 0}, {})
    if config.annotator != "none" and config.num_annotations and inputs.scored is not None:
        candidates = list(load_jsonl(inputs.scored.path, CandidateRow))
        with ctx.activity("annotating"):
            ask = _simulated if config.annotator == "simulated" else _judged
            new = ask(config, candidates, ctx)
    dump_jsonl(ctx.dir / "preferences.jsonl", [*batch, *new.rows])
    verdicts: tuple[Artifact, ...] = ()
    if new.verdicts:
        dump_jsonl(ctx.dir / "verdicts.jsonl", new.verdicts)
        verdicts = (Artifact.of(ctx.dir / "verdicts.jsonl"),)
    shutil.rmtree(ctx.dir / _KEPT, ignore_errors=True)
    return Outputs(
        preferences=Artifact.of(ctx.dir / "preferences.jsonl"),
        verdicts=verdicts,
        counts={"preferences": len(batch), **new.counts},
        metrics=new.metrics,
    )


_KEPT = "judge"
"""Folder of what a judge has finished, until all of it stands in the stage's files."""


def _simulated(config: CollectStageConfig, candidates: list[CandidateRow], ctx: StageContext) -> Annotations:
    from alignloop.quickstart.annotator import annotate

    rows = annotate(pairs_to_annotate(candidates, seed=ctx.seed), seed=ctx.seed)[: config.num_annotations]
    return Annotations(rows, [], {"annotated": len(rows)}, {})


def _judged(config: CollectStageConfig, candidates: list[CandidateRow], ctx: StageContext) -> Annotations:
    """The first `num_annotations` pairs: each costs, whatever comes of it.

    Truncated candidates are not compared: chosen, one would teach to stop in mid-sentence; rejected, little but length.
    """
    from alignloop.judging.annotate import annotate
    from alignloop.judging.judge import open_judge

    assert config.judge is not None, "the recipe checks that there is one"
    finished = [row for row in candidates if row.finish_reason == "stop"]
    pairs = pairs_to_annotate(finished, seed=ctx.seed)
    judge = open_judge(
        config.judge,
        ctx.engine,
        dir=ctx.dir / _KEPT,
        seed=ctx.seed,
        max_model_len=config.judge_engine.max_model_len if config.judge_engine is not None else None,
        progress=ctx.progress,
    )
    return annotate(pairs[: config.num_annotations], judge=judge, both_orders=config.judge.both_orders)


def pairs_to_annotate(
    candidates: list[CandidateRow], *, seed: int
) -> list[tuple[PromptRow, CandidateRow, CandidateRow]]:
    """Two candidates a prompt: the reward model's best and a random other, in random order.

    An annotator who judges the reward model's own pick against another candidate corrects it where it errs.
    """
    draw = random.Random(seed)
    pairs = []
    for prompt_id, rows in by_prompt(candidates).items():
        best = max(rows, key=reward_of)
        others = [row for row in rows if row.completion.strip() != best.completion.strip()]
        if not others or not best.completion.strip():
            continue
        two = [best, draw.choice(others)]
        draw.shuffle(two)
        first = rows[0]
        prompt = PromptRow(
            id=prompt_id, messages=first.messages, source=Source(file=f"round-{first.round:02d}"), meta=first.meta
        )
        pairs.append((prompt, two[0], two[1]))
    draw.shuffle(pairs)
    return pairs


STAGE = Stage("collect", Inputs, Outputs, run)
