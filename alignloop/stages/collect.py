"""A round's preferences: its batch of the user's files, and new annotations of the last policy's candidates.

preferences as ingested --round's share--\\
round's own file --read, held-out prompts out--+--> preferences.jsonl
last round's candidates --pairs--> annotator --/    (simulated, a judge, or people, for whom the round stops)
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from alignloop.artifacts import Artifact
from alignloop.chat.reasoning import answer_of
from alignloop.config.recipe import CollectStageConfig
from alignloop.data.jsonl import dump_jsonl, load_jsonl
from alignloop.data.split import round_batch
from alignloop.errors import DataError, PeopleNeeded
from alignloop.judging.annotate import Annotations, Pair
from alignloop.pruning.benchmarks import benchmark_files
from alignloop.pruning.decontaminate import RULE, left_out_line
from alignloop.records import CandidateRow, PreferenceRow, PromptRow, Row, Source, by_prompt
from alignloop.run_dir.stage import Outputs as StageOutputs
from alignloop.run_dir.stage import Stage, StageContext
from alignloop.sampling.best_of_k import comparable, pick_best
from alignloop.stages.batch_file import Batch, none_left, read_batch
from alignloop.stages.select import endings, passed_over, reward_of


@dataclass(frozen=True)
class Inputs:
    preferences: Artifact
    scored: Artifact | None
    """The last round's scored candidates; None in the first round."""
    judge_prompt: str | None = None
    """Hash of the judging prompt, and of the judge's model: the recipe names both, and either may change under its
    name."""
    judge_model: str | None = None
    file: Artifact | None = None
    """The round's own file of preferences, with `batches: files`; None: its share of `preferences`."""
    earlier: tuple[Artifact, ...] = ()
    """The batches before, with `batches: files`: a file may use an id that one of them used for another row."""
    heldout: Artifact | None = None
    """With `batches: files`: rows of these prompts are left out."""
    prompts: Artifact | None = None
    """With `batches: files` and no file of prompts: what was sampled for so far, which the round's file adds to."""
    benchmarks: tuple[Artifact, ...] = ()
    """With `batches: files`: local data of the benchmarks that are kept out."""
    answers: Artifact | None = None
    """People's answers; None: they are asked, and the round stops."""


@dataclass(frozen=True, kw_only=True)
class Outputs(StageOutputs):
    preferences: Artifact
    verdicts: tuple[Artifact, ...] = ()
    """Every verdict of a judge or a person, ties and unreadable ones included; empty where none was asked."""
    prompts: tuple[Artifact, ...] = ()
    """What to sample for from now on, where the round's own file may bring prompts."""
    dropped: tuple[Artifact, ...] = ()
    """Rows of the round's own file that are left out, with reasons."""
    rejected_rows: tuple[Artifact, ...] = ()
    """Rows of the round's own file that cannot be read."""


@dataclass(frozen=True, kw_only=True)
class FromOutside:
    """What a round is given beside what the run has made; see `Inputs`."""

    file: Artifact | None = None
    answers: Artifact | None = None


def inputs(
    config: CollectStageConfig,
    preferences: Artifact,
    scored: Artifact | None,
    *,
    outside: FromOutside = FromOutside(),
    batches: tuple[Artifact, ...] = (),
    heldout: Artifact | None = None,
    prompts: Artifact | None = None,
) -> Inputs:
    """The stage's inputs: of what is there, that which the round's preferences come to depend on."""
    marks: dict[str, Any] = {}
    if config.annotator == "judge" and config.judge is not None and scored is not None:
        from alignloop.judging.identity import model_mark, prompt_mark

        marks = {"judge_prompt": prompt_mark(config.judge), "judge_model": model_mark(config.judge)}
    if config.annotator == "human" and scored is not None:
        marks = {"answers": outside.answers}
    if outside.file is not None:
        grown = prompts if config.prompts_grow else None
        marks |= {"file": outside.file, "earlier": batches, "heldout": heldout, "prompts": grown}
        if config.keep_out is not None:
            marks["benchmarks"] = benchmark_files(config.keep_out.tasks, config.keep_out.include_path)
    return Inputs(preferences, scored, **marks)


def prompts_to_sample(collected: Outputs, known: Artifact) -> Artifact:
    """What the round samples for: what was known before, or that with what its own file brought."""
    return collected.prompts[0] if collected.prompts else known


def run(config: CollectStageConfig, inputs: Inputs, ctx: StageContext) -> Outputs:
    batch = _batch(config, inputs, ctx)
    new = Annotations([], [], {"annotated": 0}, {})
    if config.annotator != "none" and config.num_annotations and inputs.scored is not None:
        candidates = list(load_jsonl(inputs.scored.path, CandidateRow))
        with ctx.activity("annotating"):
            new = _annotated(config, candidates, inputs.answers, ctx)
    written = _Written(ctx)
    outputs = Outputs(
        preferences=written.always("preferences.jsonl", [*batch.rows, *new.rows]),
        verdicts=written.where_any("verdicts.jsonl", new.verdicts),
        prompts=written.where_any("prompts.jsonl", batch.prompts),
        dropped=written.where_any("dropped.jsonl", batch.dropped),
        rejected_rows=written.where_any("rejected_rows.jsonl", batch.rejected),
        counts={**batch.counts, "preferences": len(batch.rows), **new.counts},
        metrics=new.metrics,
    )
    shutil.rmtree(ctx.dir / _KEPT, ignore_errors=True)
    return outputs


_KEPT = "judge"
"""Folder of what a judge has finished, until all of it stands in the stage's files."""
QUESTIONS = "to_annotate.jsonl"


@dataclass(frozen=True)
class _Written:
    """Rows written into the stage's folder, as artifacts."""

    ctx: StageContext

    def always(self, name: str, rows: Sequence[Row]) -> Artifact:
        dump_jsonl(self.ctx.dir / name, rows)
        return Artifact.of(self.ctx.dir / name)

    def where_any(self, name: str, rows: Sequence[Row]) -> tuple[Artifact, ...]:
        return (self.always(name, rows),) if rows else ()


def _batch(config: CollectStageConfig, inputs: Inputs, ctx: StageContext) -> Batch:
    if inputs.file is None:
        everyone = list(load_jsonl(inputs.preferences.path, PreferenceRow))
        assert config.batches != "files", "the round's file is among the inputs"
        return Batch(round_batch(everyone, round=ctx.round, batches=config.batches, split_rounds=config.split_rounds))
    assert config.reading is not None, "the recipe says how files are read"
    with ctx.activity("reading"):
        batch = read_batch(
            inputs.file.path,
            config=config.reading,
            earlier=[row for batch in inputs.earlier for row in load_jsonl(batch.path, PreferenceRow)],
            heldout=[] if inputs.heldout is None else list(load_jsonl(inputs.heldout.path, PreferenceRow)),
            prompts=None if inputs.prompts is None else list(load_jsonl(inputs.prompts.path, PromptRow)),
            keep_out=config.keep_out,
        )
    if held := [row for row in batch.dropped if row.rule == RULE]:
        ctx.progress.say(f"  {left_out_line(held, num_in=batch.counts['in'], what='rows of the round')}")
    if not batch.rows:
        num_heldout = len(batch.dropped) - len(held)
        raise DataError(none_left(inputs.file.path, round=ctx.round, num_held=len(held), num_heldout=num_heldout))
    return batch


def _annotated(
    config: CollectStageConfig, candidates: list[CandidateRow], answers: Artifact | None, ctx: StageContext
) -> Annotations:
    pairs = pairs_to_annotate(candidates, seed=ctx.seed)
    by = {"simulated": _simulated, "human": _by_people, "judge": _judged}[config.annotator]
    made = by(config, pairs, answers, ctx)
    num_prompts = len({row.prompt_id for row in candidates})
    passed = {f"{name}_candidates": num for name, num in passed_over(candidates).items()}
    return replace(made, counts={**made.counts, "prompts_without_pair": num_prompts - len(pairs), **passed})


def _simulated(
    config: CollectStageConfig, pairs: list[Pair], answers: Artifact | None, ctx: StageContext
) -> Annotations:
    from alignloop.quickstart.annotator import annotate

    rows = annotate(pairs, seed=ctx.seed)
    kept = rows[: config.num_annotations]
    return Annotations(kept, [], {"annotated": len(kept), "ties": len(pairs) - len(rows)}, {})


def _judged(config: CollectStageConfig, pairs: list[Pair], answers: Artifact | None, ctx: StageContext) -> Annotations:
    """The first `num_annotations` pairs: each costs, whatever comes of it."""
    from alignloop.judging.annotate import annotate
    from alignloop.judging.judge import open_judge

    assert config.judge is not None, "the recipe checks that there is one"
    judge = open_judge(
        config.judge,
        ctx.engine,
        dir=ctx.dir / _KEPT,
        seed=ctx.seed,
        max_model_len=config.judge_engine.max_model_len if config.judge_engine is not None else None,
        progress=ctx.progress,
    )
    return annotate(pairs[: config.num_annotations], judge=judge, both_orders=config.judge.both_orders)


def _by_people(
    config: CollectStageConfig, pairs: list[Pair], answers: Artifact | None, ctx: StageContext
) -> Annotations:
    """What people said of the first `num_annotations` pairs.

    Raises:
        PeopleNeeded: too few of them are answered; the questions lie in the stage's folder.
        DataError: the answers' file has lines that are no answers.
    """
    from alignloop.judging.people import annotations_of, questions, read_answers

    pairs = pairs[: config.num_annotations]
    if not pairs:
        ctx.progress.say("  nobody is asked: no prompt has two finished candidates that differ")
        return annotations_of([], {})
    asked = questions(pairs)
    said = {} if answers is None else read_answers(answers.path, asked=asked)
    needed = len(pairs) if config.min_annotated is None else min(config.min_annotated, len(pairs))
    if len(said) < needed:
        dump_jsonl(ctx.dir / QUESTIONS, asked)
        raise PeopleNeeded(
            f"{len(pairs) - len(said):,} of {len(pairs):,} pairs of completions have no answer yet: answer those in "
            f"{ctx.dir / QUESTIONS} in a file of their own, and give it as the input `answers`",
            questions=ctx.dir / QUESTIONS,
            num_asked=len(pairs),
            num_answered=len(said),
            num_needed=needed,
        )
    return annotations_of(pairs, said)


def pairs_to_annotate(candidates: list[CandidateRow], *, seed: int) -> list[Pair]:
    """Two candidates a prompt, finished and with text: the reward model's best and a random other, in random order.

    An annotator who judges the reward model's own pick against another candidate corrects it where it errs.
    """
    draw = random.Random(seed)
    pairs = []
    for prompt_id, rows in by_prompt(candidates).items():
        truncated, empty = endings(rows)
        best = rows[pick_best([reward_of(row) for row in rows], truncated=truncated, empty=empty)]
        compared = [rows[k] for k in comparable(truncated=truncated, empty=empty)]
        answer = answer_of(best.completion).strip()
        others = [row for row in compared if answer_of(row.completion).strip() != answer]
        if not others:
            continue
        two = [best, draw.choice(others)]
        draw.shuffle(two)
        first = rows[0]
        prompt = PromptRow(id=prompt_id, messages=first.messages, source=Source.of_round(first.round), meta=first.meta)
        pairs.append((prompt, two[0], two[1]))
    draw.shuffle(pairs)
    return pairs


STAGE = Stage("collect", Inputs, Outputs, run)
