"""A round's preferences: its batch of the user's file, and new annotations of the last policy's candidates."""

from __future__ import annotations

import random
from dataclasses import dataclass

from alignloop.artifacts import Artifact
from alignloop.config.recipe import CollectStageConfig
from alignloop.data.jsonl import dump_jsonl, load_jsonl
from alignloop.data.split import round_batch
from alignloop.records import CandidateRow, PreferenceRow, PromptRow, Source
from alignloop.stage import Outputs as StageOutputs
from alignloop.stage import Stage, StageContext
from alignloop.stages.select import by_prompt, reward_of


@dataclass(frozen=True)
class Inputs:
    preferences: Artifact
    scored: Artifact | None
    """The last round's scored candidates; None in the first round."""


@dataclass(frozen=True, kw_only=True)
class Outputs(StageOutputs):
    preferences: Artifact


def run(config: CollectStageConfig, inputs: Inputs, ctx: StageContext) -> Outputs:
    everyone = list(load_jsonl(inputs.preferences.path, PreferenceRow))
    batch = round_batch(everyone, round=ctx.round, batches=config.batches, split_rounds=config.split_rounds)
    annotated: list[PreferenceRow] = []
    if config.annotator == "simulated" and config.num_annotations and inputs.scored is not None:
        from alignloop.quickstart.annotator import annotate

        with ctx.activity("annotating"):
            candidates = list(load_jsonl(inputs.scored.path, CandidateRow))
            annotated = annotate(pairs_to_annotate(candidates, seed=ctx.seed), seed=ctx.seed)
            annotated = annotated[: config.num_annotations]
    dump_jsonl(ctx.dir / "preferences.jsonl", [*batch, *annotated])
    return Outputs(
        preferences=Artifact.of(ctx.dir / "preferences.jsonl"),
        counts={"preferences": len(batch), "annotated": len(annotated)},
    )


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
