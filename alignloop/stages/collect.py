"""A round's preferences: its batch of the user's files, and new annotations of the last policy's candidates.

preferences as ingested --round's share--\\
round's own file --read, held-out prompts out--+--> preferences.jsonl
last round's candidates --pairs--> annotator --/    (a function, a judge, or people, for whom the round stops)
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import Field

from alignloop.artifacts import Artifact
from alignloop.chat.reasoning import answer_of
from alignloop.config.base import PositiveInt
from alignloop.config.data import AnnotatedPairing, ChooseBy, CollectConfig, DataConfig
from alignloop.config.engine import EngineComputes, JudgeSettings, judging
from alignloop.config.pruning import KeepOutConfig
from alignloop.config.recipe import Recipe
from alignloop.data.jsonl import dump_jsonl, load_jsonl
from alignloop.data.split import round_batch
from alignloop.errors import DataError, PeopleNeeded, UserError
from alignloop.judging.annotate import Annotations, Pair
from alignloop.judging.prompt_file import EditPrompt, PairwisePrompt, load_prompt
from alignloop.pruning.decontaminate import RULE, benchmark_files, left_out_line
from alignloop.records import CandidateRow, PreferenceRow, PromptRow, Source, by_prompt
from alignloop.run_dir.manifest import optional
from alignloop.run_dir.stage import Outputs as StageOutputs
from alignloop.run_dir.stage import Stage, StageContext
from alignloop.sampling.best_of_k import comparable
from alignloop.sampling.ensemble import spread_of_gap
from alignloop.sampling.reward_functions import load
from alignloop.stages.asking import KEPT, check_judge, judge_marks, open_stage_judge
from alignloop.stages.facts import Facts
from alignloop.stages.incoming import Batch, keep_out_of, none_left, read_batch
from alignloop.stages.score import check_function
from alignloop.stages.select import best_of, endings, passed_over

QUESTIONS = "to_annotate.jsonl"
FIRST_ANNOTATED = 2
"""The first round that finds candidates of a round before."""


@dataclass(frozen=True)
class Inputs:
    preferences: Artifact
    scored: Artifact | None
    """The last round's scored candidates; None in the first round."""
    judge_prompt: str | None = None
    """Hashes: the recipe names prompt and model, and either may change under its name."""
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
    other_candidates: tuple[Artifact, ...] = optional()
    """With `policies`: the last round's answers of each other model."""


@dataclass(frozen=True, kw_only=True)
class Outputs(StageOutputs):
    preferences: Artifact
    verdicts: tuple[Artifact, ...] = ()
    """Every verdict of a judge or a person, also ties and unreadable ones; empty where none was asked."""
    prompts: tuple[Artifact, ...] = ()
    """What to sample for from now on, where the round's own file may bring prompts."""
    dropped: tuple[Artifact, ...] = ()
    rejected_rows: tuple[Artifact, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RoundFiles:
    """What people put beside the run for a round; see `Inputs`."""

    file: Artifact | None = None
    answers: Artifact | None = None


class Settings(CollectConfig):
    judge: JudgeSettings | None
    judge_engine: EngineComputes | None = None
    """Where the judge runs on the run's engine."""
    annotator_source: str | None = None
    """Digest of the source of a function that annotates."""
    min_annotated: PositiveInt | None = Field(None, exclude=True)
    choose_by: ChooseBy = Field("chance", exclude_if=lambda how: how == "chance")
    policies: int | tuple[str, ...] | None = Field(None, exclude=True)
    """Whose answers those are, the inputs say."""
    edits: str | None = Field(None, exclude_if=lambda prompt: prompt is None)
    edits_source: str | None = Field(None, exclude_if=lambda digest: digest is None)
    """Digest of the judging prompt that asks for edits."""
    batches: Literal["split", "files", "all"]
    split_rounds: PositiveInt
    reading: DataConfig | None = None
    """How a round's own file is read, with `batches: files`."""
    keep_out: KeepOutConfig | None = None
    """What rows of a round's own file may not hold; None: `prune.decontaminate` is off."""
    prompts_grow: bool = False
    """Whether a round's own file brings prompts to sample for, too: where the recipe names no file of prompts."""


def settings(recipe: Recipe) -> Settings:
    """The source of a function that annotates counts, too; raises UserError where it cannot be loaded."""
    judge, judge_engine = judging(recipe.judge if recipe.collect.annotator == "judge" else None, recipe.engine)
    of_files = recipe.data.batches == "files"
    config = recipe.collect
    return Settings(
        **dict(config),
        annotator_source=load(config.annotator).digest if config.by_function else None,
        edits_source=None if config.edits is None else load_prompt(config.edits).digest,
        judge=judge,
        judge_engine=judge_engine,
        batches=recipe.data.batches,
        split_rounds=recipe.data.split_rounds,
        reading=recipe.data if of_files else None,
        keep_out=keep_out_of(recipe) if of_files else None,
        prompts_grow=of_files and not recipe.prompts,
    )


def inputs(
    recipe: Recipe,
    preferences: Artifact,
    scored: Artifact | None,
    *,
    other_candidates: tuple[Artifact, ...] = (),
    files: RoundFiles = RoundFiles(),
    batches: tuple[Artifact, ...] = (),
    heldout: Artifact | None = None,
    prompts: Artifact | None = None,
) -> Inputs:
    """The stage's inputs: only those that the round's preferences depend on."""
    config, marks = settings(recipe), dict[str, Any]()
    if config.annotator == "judge" and config.judge is not None and scored is not None:
        marks |= judge_marks(config.judge)
    if config.annotator == "human" and scored is not None:
        marks = {"answers": files.answers}
    if config.policies is not None and scored is not None:
        marks["other_candidates"] = other_candidates
    if files.file is not None:
        grown = prompts if config.prompts_grow else None
        marks |= {"file": files.file, "earlier": batches, "heldout": heldout, "prompts": grown}
        if config.keep_out is not None:
            marks["benchmarks"] = benchmark_files(config.keep_out.tasks, config.keep_out.include_path)
    return Inputs(preferences, scored, **marks)


def check(facts: Facts) -> None:
    """The judge compares, and can be reached, where this run will ask it; a function finds its columns."""
    recipe, findings, judge = facts.recipe, facts.findings, facts.recipe.judge
    if recipe.collect.by_function:
        with findings.collecting():
            _check_annotator(recipe.collect.annotator, facts.rows.prompts)
        if not recipe.collect.num_annotations:
            findings.notes.append(
                f"collect.annotator is {recipe.collect.annotator}, but collect.num_annotations is 0: it is never asked"
            )
        return
    if judge is None or recipe.collect.annotator != "judge":
        return
    if not recipe.collect.num_annotations:
        findings.notes.append("collect.annotator is judge, but collect.num_annotations is 0: it is never asked to")
        return
    with findings.collecting():
        comparing = load_prompt(judge.prompt)
        if not isinstance(comparing, PairwisePrompt):
            raise UserError(f"judge.prompt: {judge.prompt} compares no two; annotating wants a pairwise prompt")
        if recipe.collect.edits is not None:
            _check_edits(facts, recipe.collect.edits, comparing)
    if recipe.rounds < FIRST_ANNOTATED:
        findings.notes.append(
            "judge: the first round has no candidates to annotate yet, so in a run of one round collect never asks it"
        )
    elif not facts.is_published(STAGE.name, first_round=FIRST_ANNOTATED):
        check_judge(facts, judge)


def _check_edits(facts: Facts, source: str, comparing: PairwisePrompt) -> None:
    """Raises UserError where the prompt asks for no edit, or for the reason that the judge is not asked for."""
    sample, judge = facts.recipe.sample, facts.recipe.judge
    prompt = load_prompt(source)
    if not isinstance(prompt, EditPrompt):
        raise UserError(f"collect.edits: {source} asks for no better text; take `edit`, or a prompt of that kind")
    if prompt.wants_criticism and comparing.reason is None:
        raise UserError(
            f"collect.edits: {source} goes by the judge's reason ({{criticism}}), and judge.prompt asks for none: name "
            "a field of its answer as `reason`, or leave {criticism} out of the first"
        )
    if judge is not None and judge.max_tokens < sample.max_tokens:
        facts.findings.notes.append(
            f"collect.edits: an edit may be as long as an answer (sample.max_tokens {sample.max_tokens}), and one over "
            f"judge.max_tokens ({judge.max_tokens}) is cut, and counted as unreadable"
        )


def _check_annotator(function: str, prompts: Sequence[PromptRow]) -> None:
    try:
        check_function(function, prompts)
    except UserError as error:
        raise UserError(f"collect.annotator: {error}") from error


def prompts_to_sample(collected: Outputs, known: Artifact) -> Artifact:
    """What the round samples for: the known prompts, or those and its own file's."""
    return collected.prompts[0] if collected.prompts else known


def run(config: Settings, inputs: Inputs, ctx: StageContext) -> Outputs:
    batch = _batch(config, inputs, ctx)
    new = Annotations([], [], {"annotated": 0}, {})
    if config.annotator != "none" and config.num_annotations and inputs.scored is not None:
        candidates = list(load_jsonl(inputs.scored.path, CandidateRow))
        others = [row for file in inputs.other_candidates for row in load_jsonl(file.path, CandidateRow)]
        _say_models(config, 1 + len(inputs.other_candidates), ctx)
        with ctx.activity("annotating"):
            new = _annotated(config, candidates, others, inputs.answers, ctx)
    outputs = Outputs(
        preferences=ctx.write_rows("preferences.jsonl", [*batch.rows, *new.rows]),
        verdicts=ctx.write_any_rows("verdicts.jsonl", new.verdicts),
        prompts=ctx.write_any_rows("prompts.jsonl", batch.prompts),
        dropped=ctx.write_any_rows("dropped.jsonl", batch.dropped),
        rejected_rows=ctx.write_any_rows("rejected_rows.jsonl", batch.rejected),
        counts={**batch.counts, "preferences": len(batch.rows), **new.counts},
        metrics=new.metrics,
    )
    shutil.rmtree(ctx.dir / KEPT, ignore_errors=True)
    return outputs


def _batch(config: Settings, inputs: Inputs, ctx: StageContext) -> Batch:
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


def _say_models(config: Settings, num_models: int, ctx: StageContext) -> None:
    """Say where fewer models have answered than the recipe asks for."""
    if num_models < config.num_policies:
        so = "its own answers are compared" if num_models == 1 else f"pairs are of {num_models} models"
        ctx.progress.say(
            f"  collect.policies asks for {config.num_policies} models, and the last round had {num_models}: {so}"
        )


def _annotated(
    config: Settings,
    candidates: list[CandidateRow],
    others: list[CandidateRow],
    answers: Artifact | None,
    ctx: StageContext,
) -> Annotations:
    pairs = pairs_to_annotate(
        candidates,
        others,
        seed=ctx.seed,
        pairing=config.pairing,
        pairs_per_prompt=config.pairs_per_prompt,
        choose_by=config.choose_by,
    )
    if config.by_function or config.annotator == "simulated":
        made = _by_function(config, pairs, ctx)
    elif config.annotator == "human":
        made = _by_people(config, pairs[: config.num_annotations], answers, ctx)
    else:
        # The first pairs: each costs, whatever comes of it.
        made = _by_judge(config, pairs[: config.num_annotations], ctx)
    without_pair = {row.prompt_id for row in candidates} - {prompt.id for prompt, _, _ in pairs}
    passed = {f"{name}_candidates": num for name, num in passed_over([*candidates, *others]).items()}
    return replace(made, counts={**made.counts, "prompts_without_pair": len(without_pair), **passed})


def _by_function(config: Settings, pairs: list[Pair], ctx: StageContext) -> Annotations:
    """Of all pairs, the first `num_annotations` that are told apart."""
    from alignloop.judging.by_function import STRENGTH_GAPS, FunctionAnnotator, annotate
    from alignloop.quickstart.annotator import SIMULATED

    own = FunctionAnnotator(config.annotator, strength_gaps=config.strength_gaps or STRENGTH_GAPS)
    made = annotate(pairs, by=own if config.by_function else SIMULATED, seed=ctx.seed)
    if pairs and not made.rows:
        ctx.progress.say(
            f"  {config.annotator} tells none of {len(pairs)} pairs apart: the round has no new preference"
        )
    kept = made.rows[: config.num_annotations]
    return replace(made, rows=kept, counts={**made.counts, "annotated": len(kept)})


def _by_judge(config: Settings, pairs: list[Pair], ctx: StageContext) -> Annotations:
    from alignloop.judging.annotate import annotate

    judge, editor = config.judge, None
    assert judge is not None, "the recipe checks that there is one"
    if config.edits is not None:
        asked_to_edit = judge.model_copy(update={"prompt": config.edits})
        editor = open_stage_judge(asked_to_edit, config.judge_engine, ctx, folder="edits")
    return annotate(
        pairs,
        judge=open_stage_judge(judge, config.judge_engine, ctx),
        both_orders=judge.both_orders,
        editor=editor,
    )


def _by_people(config: Settings, pairs: list[Pair], answers: Artifact | None, ctx: StageContext) -> Annotations:
    """What people answered for these pairs. Raises PeopleNeeded where too few are answered, with the questions in the
    stage's folder, and DataError where the answers' file has lines that are no answers."""
    from alignloop.judging.people import annotations_of, questions, read_answers

    if not pairs:
        ctx.progress.say("  nobody is asked: no prompt has two finished candidates that differ")
        return annotations_of([], {})
    asked = questions(pairs)
    answered = {} if answers is None else read_answers(answers.path, asked=asked)
    needed = len(pairs) if config.min_annotated is None else min(config.min_annotated, len(pairs))
    if len(answered) < needed:
        dump_jsonl(ctx.dir / QUESTIONS, asked)
        raise PeopleNeeded(
            f"{len(pairs) - len(answered):,} of {len(pairs):,} pairs of completions have no answer yet: answer those "
            f"in {ctx.dir / QUESTIONS} in a file of their own, and give it as the input `answers`",
            questions=ctx.dir / QUESTIONS,
            num_asked=len(pairs),
            num_answered=len(answered),
            num_needed=needed,
        )
    return annotations_of(pairs, answered)


def pairs_to_annotate(
    candidates: list[CandidateRow],
    of_other_models: Sequence[CandidateRow] = (),
    *,
    seed: int,
    pairing: AnnotatedPairing = "best_random",
    pairs_per_prompt: int = 1,
    choose_by: ChooseBy = "chance",
) -> list[Pair]:
    """Pairs of finished candidates with text that differ, in random order or widest spread first, each prompt's first
    pair before any prompt's second: the reward model's best and a random other, or two random ones; then random ones of
    the rest. An annotator who judges the reward model's own pick against another candidate corrects it where it errs.

    Where other models have answered, the two are of two models, each drawn as likely as another; the best is the
    policy's.

    Raises DataError where the spread chooses, and a candidate has no rewards by the members of an ensemble.
    """
    draw, more = random.Random(seed), by_prompt(of_other_models)
    turns: list[list[Pair]] = [[] for _ in range(pairs_per_prompt)]
    for prompt_id, rows in by_prompt(candidates).items():
        own = _comparable(rows)
        left = [*own, *_comparable(more.get(prompt_id, []))]
        prompt = PromptRow(
            id=prompt_id, messages=rows[0].messages, source=Source.of_round(rows[0].round), meta=rows[0].meta
        )
        for turn in turns:
            if not left:
                break
            one = best_of(rows) if pairing == "best_random" and turn is turns[0] and own else _drawn(left, draw)
            answer = answer_of(one.completion).strip()
            others = [row for row in left if answer_of(row.completion).strip() != answer]
            if of_other_models:
                others = [row for row in others if row.policy != one.policy]
            if not others:
                break
            two = [one, _drawn(others, draw)]
            draw.shuffle(two)
            turn.append((prompt, two[0], two[1]))
            left = [row for row in left if row not in two]
    for turn in turns:
        draw.shuffle(turn)
        if choose_by == "spread":
            turn.sort(key=_spread, reverse=True)
    return [pair for turn in turns for pair in turn]


def _spread(pair: Pair) -> float:
    """How little the members of an ensemble agree on a pair."""
    _, one, other = pair
    for row in (one, other):
        if not row.member_rewards:
            raise DataError(
                f"candidate {row.id} has no member_rewards, and collect.choose_by is spread: score the candidates with "
                "score.ensemble, or set collect.choose_by: chance"
            )
    return spread_of_gap(one.member_rewards, other.member_rewards)


def _comparable(rows: Sequence[CandidateRow]) -> list[CandidateRow]:
    truncated, empty = endings(rows)
    return [rows[k] for k in comparable(truncated=truncated, empty=empty)]


def _drawn(rows: Sequence[CandidateRow], draw: random.Random) -> CandidateRow:
    """One of these: of several models each is as likely, however many candidates it has."""
    models = list(dict.fromkeys(row.policy for row in rows))
    if len(models) == 1:
        return draw.choice(rows)
    model = draw.choice(models)
    return draw.choice([row for row in rows if row.policy == model])


STAGE = Stage("collect", Inputs, Outputs, settings, run)
