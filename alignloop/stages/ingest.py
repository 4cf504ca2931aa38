"""The user's files, read once: preferences with their held-out part, prompts, and what could not be read.

preferences    --read--> --without benchmarks--> train | held out
prompts        --read--> --without benchmarks--> --without held-out prompts--> to sample for
demonstrations --read--> --without benchmarks--> --without held-out prompts--> to fine-tune on

`read_rows` reads them in the same way before the run begins, and reports all that is wrong with them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from alignloop.artifacts import Artifact, stage_seed
from alignloop.config.bundled import resolve_file
from alignloop.config.data import DataConfig
from alignloop.config.pruning import KeepOutConfig
from alignloop.config.recipe import Recipe
from alignloop.data.files import data_files, is_pattern, why_not_twice
from alignloop.data.readers import ReadResult, read_preferences, read_prompts, read_sft
from alignloop.data.split import heldout_of_files, heldout_split, round_batch, without_prompts
from alignloop.data.tally import scores_say, scores_text
from alignloop.errors import DataError, UserError
from alignloop.pruning.decontaminate import (
    ALL_LEFT_OUT,
    RowT,
    benchmark_files,
    is_local,
    left_out_line,
    local_texts,
    without_benchmarks,
)
from alignloop.records import DroppedRow, PreferenceRow, PromptRow, RejectedRow, SftRow
from alignloop.run_dir.manifest import optional
from alignloop.run_dir.stage import Outputs as StageOutputs
from alignloop.run_dir.stage import Stage, StageContext
from alignloop.stages.demonstrations import Demonstrated, check_entries, files_of_entries, read_demonstrations
from alignloop.stages.facts import Findings, Rows
from alignloop.stages.incoming import held_out, keep_out_of, none_left, prompts_of
from alignloop.stages.train_reward import of_strengths

T = TypeVar("T", PreferenceRow, PromptRow, SftRow)
NO_PROMPT_LEFT = (
    "prompts: none is left to sample for once those of the held-out preferences are taken out - name a file of "
    "prompts, or lower data.heldout_fraction"
)


@dataclass(frozen=True)
class Inputs:
    preferences: tuple[Artifact, ...]
    """With `batches: files` only the first round's: the others are read by their rounds."""
    prompts: tuple[Artifact, ...]
    """Empty: the prompts of the preferences."""
    benchmarks: tuple[Artifact, ...] = ()
    demonstrations: tuple[Artifact, ...] = optional()
    """The files of all entries of `sft.data`."""
    demonstration_files: tuple[int, ...] = optional()
    """How many of them are each entry's."""


@dataclass(frozen=True, kw_only=True)
class Outputs(StageOutputs):
    preferences: Artifact
    heldout: Artifact
    prompts: Artifact
    rejected_rows: Artifact
    dropped: tuple[Artifact, ...] = ()
    dropped_prompts: tuple[Artifact, ...] = ()
    demonstrations: tuple[Artifact, ...] = optional()
    """A file an entry of `sft.data`."""
    dropped_demonstrations: tuple[Artifact, ...] = optional()


class Settings(DataConfig):
    keep_out: KeepOutConfig | None = None
    """None: `prune.decontaminate` is off."""


def settings(recipe: Recipe) -> Settings:
    return Settings(**dict(recipe.data), keep_out=keep_out_of(recipe))


def inputs(recipe: Recipe, *, preferences: tuple[Artifact, ...], prompts: tuple[Artifact, ...]) -> Inputs:
    keep_out = keep_out_of(recipe)
    benchmarks = () if keep_out is None else benchmark_files(keep_out.tasks, keep_out.include_path)
    entries = files_of_entries(recipe.sft.data)
    files = tuple(Artifact.of(file) for entry in entries for file in entry)
    return Inputs(preferences, prompts, benchmarks, files, tuple(map(len, entries)))


def run(config: Settings, inputs: Inputs, ctx: StageContext) -> Outputs:
    """Read everything; the same prompt never lies on both sides of the held-out split.

    Raises:
        DataError: as the readers and the benchmarks do, or no preference or no prompt is left without a
            benchmark's question.
    """
    with ctx.activity("reading"):
        read = read_preferences([a.path for a in inputs.preferences], **config.reading)
    rows, dropped = _keep_out(read.rows, config, ctx, what="preferences", use="train on")
    train, heldout = heldout_split(
        rows, fraction=config.heldout_fraction, max_heldout=config.max_heldout, seed=ctx.seed
    )
    prompts, dropped_prompts, unread = prompts_of(train), list[DroppedRow](), tuple[RejectedRow, ...]()
    if inputs.prompts:
        with ctx.activity("reading"):
            of_file = read_prompts([a.path for a in inputs.prompts], **config.reading_prompts)
        prompts, dropped_prompts = _keep_out(of_file.rows, config, ctx, what="prompts", use="sample for")
        unread = tuple(of_file.rejected)
    prompts, of_heldout = without_prompts(prompts, heldout)
    if of_heldout and not prompts:
        raise DataError(NO_PROMPT_LEFT)
    dropped_prompts += [held_out(row, stage="ingest") for row in of_heldout]
    shown = _demonstrations(config, inputs, heldout, ctx)

    kept, num_dropped = len(train) + len(heldout), len(read.rejected) + len(dropped)
    prompts_dropped = len(dropped_prompts) + len(unread)
    return Outputs(
        preferences=ctx.write_rows("preferences.jsonl", train),
        heldout=ctx.write_rows("heldout.jsonl", heldout),
        prompts=ctx.write_rows("prompts.jsonl", prompts),
        rejected_rows=ctx.write_rows("rejected_rows.jsonl", [*read.rejected, *unread, *shown.rejected]),
        dropped=ctx.write_any_rows("dropped.jsonl", dropped),
        dropped_prompts=ctx.write_any_rows("dropped_prompts.jsonl", dropped_prompts),
        demonstrations=tuple(
            ctx.write_rows(f"demonstrations-{number}.jsonl", rows) for number, rows in enumerate(shown.entries, start=1)
        ),
        dropped_demonstrations=ctx.write_any_rows("dropped_demonstrations.jsonl", shown.dropped),
        counts={
            "in": kept + num_dropped,
            "kept": kept,
            "dropped": num_dropped,
            "dropped_by_read": len(read.rejected),
            "dropped_by_decontaminate": len(dropped),
            "heldout": len(heldout),
            "prompts_in": len(prompts) + prompts_dropped,
            "prompts": len(prompts),
            "prompts_dropped": prompts_dropped,
            **shown.counts,
        },
    )


def _demonstrations(
    config: Settings, inputs: Inputs, heldout: Sequence[PreferenceRow], ctx: StageContext
) -> Demonstrated:
    if not inputs.demonstrations:
        return Demonstrated()
    files = iter(artifact.path for artifact in inputs.demonstrations)
    numbers = inputs.demonstration_files or (1,) * len(inputs.demonstrations)
    entries = [list(islice(files, number)) for number in numbers]
    with ctx.activity("reading"):
        read = read_demonstrations(entries, config.reading_prompts)
    kept, dropped = _keep_out(read.rows, config, ctx, what="demonstrations", use="fine-tune on")
    return read.only(kept, dropped, heldout=heldout)


def _keep_out(
    rows: Sequence[RowT], config: Settings, ctx: StageContext, *, what: str, use: str
) -> tuple[list[RowT], list[DroppedRow]]:
    """Split off the rows that hold a benchmark's question, and print a line of them."""
    with ctx.activity("decontaminating"):
        kept, dropped = without_benchmarks(rows, config.keep_out, stage=STAGE.name)
    if dropped:
        line = left_out_line(dropped, num_in=len(rows), what=what)
        ctx.progress.say(f"  {line}")
        if not kept:
            raise DataError(f"{line}\nNothing is left to {use}: {ALL_LEFT_OUT}")
    return kept, dropped


STAGE = Stage("ingest", Inputs, Outputs, settings, run)


def with_files(recipe: Recipe, *, findings: Findings) -> Recipe:
    """The recipe with files instead of patterns; a pattern that matches none goes to `findings`."""
    named = {}
    for kind, names in (("preferences", recipe.preferences), ("prompts", recipe.prompts)):
        files: list[str] = []
        for name in names:
            with findings.collecting():
                files += [str(file) for file in data_files([name], kind=kind)] if is_pattern(name) else [name]
        named[kind] = tuple(files)
    return recipe.model_copy(update=named)


def read_rows(recipe: Recipe, *, findings: Findings) -> Rows:
    """Read every file of the recipe; what is wrong goes to `findings`, with what was rejected still returned."""
    rejected: list[RejectedRow] = []
    forms: dict[str, str] = {}
    files = [resolve_file(file, kind="preferences") for file in recipe.preferences]
    read = _read(read_preferences, files, recipe.data.reading, findings, rejected, forms)
    everyone, dropped = _without_local_benchmarks(read, recipe, what="preferences", findings=findings)
    train, heldout = _split(heldout_split, everyone, recipe, findings)
    prompts = prompts_of(train)
    if recipe.prompts:
        files = [resolve_file(file, kind="prompts") for file in recipe.prompts]
        prompts = _read(read_prompts, files, recipe.data.reading_prompts, findings, rejected, forms)
        prompts, _ = _without_local_benchmarks(prompts, recipe, what="prompts", findings=findings)
    num_read = len(prompts)
    shown = _read_demonstrations(recipe, findings, rejected)
    _note_twice(recipe, findings)
    _check_leaves_rows(recipe, findings)
    prompts, _ = without_prompts(prompts, heldout)
    shown = check_entries(shown, recipe=recipe, heldout=heldout, findings=findings)
    verdicts = [scores_say(row.meta) for row in everyone]
    if scores := scores_text(verdicts.count("against"), verdicts.count("tie"), of=len(everyone)):
        findings.notes.append(f"preferences: {scores}")
    if everyone:
        _check_training_rows(train, heldout, recipe, findings)
    if num_read:
        _check_prompts(prompts, recipe, findings)
    if rejected and not findings.problems:
        how_many, be = ("1 row", "is") if len(rejected) == 1 else (f"{len(rejected):,} rows", "are")
        findings.notes.append(f"{how_many} cannot be read and {be} left out; the first: {_where(rejected[0])}")
    rows = Rows(train, heldout, prompts, rejected, forms, dropped, shown)
    return _by_file(rows, recipe, findings) if recipe.data.batches == "files" and everyone else rows


def _read_demonstrations(recipe: Recipe, findings: Findings, rejected: list[RejectedRow]) -> dict[str, list[SftRow]]:
    """Entry of `sft.data` -> its rows, without those that hold a question of the local benchmarks."""
    found: dict[str, list[SftRow]] = {}
    for entry in recipe.sft.data:
        with findings.collecting():
            (files,) = files_of_entries([entry])
            rows = _read(read_sft, files, recipe.data.reading_prompts, findings, rejected, {})
            what = f"demonstrations of {entry.file}"
            found[entry.file], _ = _without_local_benchmarks(rows, recipe, what=what, findings=findings)
    return found


def _read(
    read: Callable[..., ReadResult[T]],
    files: Sequence[Path],
    options: Mapping[str, Any],
    findings: Findings,
    rejected: list[RejectedRow],
    forms: dict[str, str],
) -> list[T]:
    """Each file by itself, so that one bad file does not hide what is wrong with the next."""
    rows: list[T] = []
    bad: list[RejectedRow] = []
    readable: list[Path] = []
    for file in files:
        with findings.collecting():
            if (reason := why_not_twice(str(file))) is not None:
                raise DataError(f"{file}: {reason}")
            try:
                result = read([file], **{**options, "max_bad_fraction": 1.0})
            except DataError as error:
                rejected += error.rejected
                raise
            rows += result.rows
            bad += result.rejected
            forms.update(result.forms)
            readable.append(file)
    if len(bad) > options["max_bad_fraction"] * (len(rows) + len(bad)):
        with findings.collecting():
            read(readable, **options)
    rejected += bad
    return rows


def _without_local_benchmarks(
    rows: list[T], recipe: Recipe, *, what: str, findings: Findings
) -> tuple[list[T], list[DroppedRow]]:
    """What `run` will take, and what it will leave out, as far as the benchmarks lie on this machine. Questions that
    lm-eval fetches are compared when the run begins; that no row is left is a problem."""
    keep_out = keep_out_of(recipe)
    if keep_out is None or not rows:
        return rows, []
    try:
        benchmarks = local_texts(keep_out.tasks, keep_out.include_path)
    except UserError:  # the check of `evaluate` says what is wrong with the benchmarks
        return rows, []
    kept, dropped = without_benchmarks(rows, keep_out, stage="ingest", benchmarks=benchmarks)
    if dropped and kept:
        findings.left_out.append(left_out_line(dropped, num_in=len(rows), what=what))
    elif dropped:
        findings.problems.append(f"{left_out_line(dropped, num_in=len(rows), what=what)}: {ALL_LEFT_OUT}")
    others = [task for task in keep_out.tasks if not is_local(task, keep_out.include_path)]
    note = (
        f"decontaminate: {', '.join(others)}: lm-eval fetches the questions, and rows are compared with them when the "
        "run begins"
    )
    if others and note not in findings.notes:
        findings.notes.append(note)
    return kept, dropped


def _split(
    split: Callable[..., tuple[list[PreferenceRow], list[PreferenceRow]]],
    rows: list[PreferenceRow],
    recipe: Recipe,
    findings: Findings,
) -> tuple[list[PreferenceRow], list[PreferenceRow]]:
    """(train, held out), as `run` draws them."""
    fraction, most = recipe.data.heldout_fraction, recipe.data.max_heldout
    with findings.collecting():
        return split(rows, fraction=fraction, max_heldout=most, seed=stage_seed(recipe.seed, round=0, stage="ingest"))
    return rows, []


def _by_file(rows: Rows, recipe: Recipe, findings: Findings) -> Rows:
    """The rows where each file is one round's: rows of the first file alone are held out, and none may be left
    empty."""
    order = {file: number for number, file in enumerate(rows.forms)}
    everyone = sorted(
        [*rows.train, *rows.heldout],
        key=lambda row: (order.get(row.source.file, len(order)), row.source.line or 0),
    )
    train, heldout = _split(heldout_of_files, everyone, recipe, findings)
    held = Counter(row.source.file for row in rows.dropped if row.source is not None)
    read, kept = (Counter(row.source.file for row in some) for some in (everyone, [*train, *heldout]))
    for number, file in enumerate(list(rows.forms)[: recipe.rounds], start=1):
        if not kept[file] and held[file] + read[file]:
            findings.problems.append(none_left(file, round=number, num_held=held[file], num_heldout=read[file]))
    prompts, _ = without_prompts(rows.prompts if recipe.prompts else prompts_of(train), heldout)
    return replace(rows, train=train, heldout=heldout, prompts=prompts)


def _where(row: RejectedRow) -> str:
    line = "" if row.line is None else f", line {row.line}"
    field_name = "" if row.field is None else f", field {row.field}"
    return f"{row.file}{line}{field_name}: {row.reason}"


def _check_training_rows(
    train: Sequence[PreferenceRow], heldout: Sequence[PreferenceRow], recipe: Recipe, findings: Findings
) -> None:
    first = round_batch(train, round=1, batches=recipe.data.batches, split_rounds=recipe.data.split_rounds)
    where = "round 1's batch of the preferences" if recipe.data.batches == "split" else "the preferences"
    of_reward, of_pairs = (" or ".join(section.strengths) for section in (recipe.reward, recipe.pairs))
    if not of_strengths(first, recipe.reward.strengths):
        findings.problems.append(
            f"reward.strengths: none of the {len(first)} rows of {where} is {of_reward}: name more strengths, or set "
            "data.batches: all"
        )
    sources = recipe.pairs.sources
    if "file" in sources and "on_policy" not in sources and not of_strengths(first, recipe.pairs.strengths):
        findings.problems.append(
            f"pairs.strengths: none of the {len(first)} rows of {where} is {of_pairs}, and pairs.sources does not name "
            "on_policy: DPO would have no pair"
        )
    if not heldout:
        findings.notes.append(
            "no preference row is held out, so the reward model's accuracy is not measured (data.heldout_fraction)"
        )
    elif not of_strengths(heldout, recipe.reward.strengths):
        findings.notes.append(
            f"none of the {len(heldout):,} held-out rows is {of_reward}, so the reward model's accuracy is not "
            "measured (reward.strengths, data.heldout_fraction)"
        )


def _note_twice(recipe: Recipe, findings: Findings) -> None:
    for name, files in (("preferences", recipe.preferences), ("prompts", recipe.prompts)):
        for file, times in sorted(Counter(files).items()):
            if times > 1:
                findings.notes.append(f"{name}: {file} is named {times} times: each of its rows counts so often")


def _check_leaves_rows(recipe: Recipe, findings: Findings) -> None:
    """Settings under which a stage is bound to end with nothing, whatever the data."""
    prune, pairs = recipe.prune, recipe.pairs
    sampled = not prune.quality.enabled or prune.quality.top_fraction > 0
    others = prune.human_rows != 0 and set(prune.sources) != {"on_policy"}
    if "on_policy" in prune.sources and not sampled and not others and not recipe.sft.data:
        none = "prune.human_rows: 0 adds none" if prune.human_rows == 0 else "prune.sources names no other"
        findings.problems.append(
            f"prune.quality.top_fraction: 0 keeps no sampled row and {none}: SFT would have nothing to train on - "
            "raise it, or add others"
        )
    own = "on_policy" in pairs.sources and pairs.max_on_policy != 0 and recipe.sample.num_candidates > 1
    own = own and pairs.min_rejected_length <= recipe.sample.max_tokens
    others = pairs.max_preference_pairs != 0 and bool({"file", "annotated"} & set(pairs.sources))
    if pairs.sources and not own and not others:
        findings.problems.append(
            f"pairs.sources: [{', '.join(pairs.sources)}] gives DPO no pair: pairs of preferences need a "
            "pairs.max_preference_pairs that is not 0, those of candidates a pairs.max_on_policy that is not 0, a "
            "sample.num_candidates of 2 or more and a pairs.min_rejected_length within sample.max_tokens - or leave "
            "the list empty to go without DPO"
        )
    for name, sources, stage in (("prune", prune.sources, "SFT"), ("pairs", pairs.sources, "DPO")):
        if name == "prune" and recipe.sft.data:
            continue
        if set(sources) <= ({"annotated"} if recipe.collect.annotator == "none" else set()):
            findings.notes.append(
                f"{name}.sources: [{', '.join(sources)}] gives {stage} no row in any round: it publishes what it began "
                "from"
            )


def _check_prompts(prompts: Sequence[PromptRow], recipe: Recipe, findings: Findings) -> None:
    if not prompts:
        findings.problems.append(NO_PROMPT_LEFT)
    if recipe.collect.annotator != "simulated" or not recipe.collect.num_annotations:
        return
    lacking = [row for row in prompts if not row.meta.get("instruction_id_list") and not row.meta.get("answer")]
    if lacking:
        first = lacking[0].source
        findings.problems.append(
            f"collect.annotator: the simulated annotator judges only prompts that say how, and {len(lacking)} of "
            f"{len(prompts)} do not ({first}: neither instruction_id_list nor answer) - set "
            "collect.annotator: none"
        )
