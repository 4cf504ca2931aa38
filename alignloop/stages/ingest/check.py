"""The user's rows, read as `ingest` will read them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from alignloop.artifacts import stage_seed
from alignloop.config import Recipe
from alignloop.config.bundled import resolve_file
from alignloop.data.files import data_files, is_pattern, why_not_twice
from alignloop.data.readers import ReadResult, read_preferences, read_prompts
from alignloop.data.split import heldout_of_files, heldout_split, round_batch, without_prompts
from alignloop.data.tally import scores_say, scores_text
from alignloop.errors import DataError, UserError
from alignloop.pruning.benchmarks import is_local, local_texts
from alignloop.pruning.decontaminate import ALL_LEFT_OUT, left_out_line, without_benchmarks
from alignloop.records import DroppedRow, PreferenceRow, PromptRow, RejectedRow, Strength
from alignloop.stages import ingest
from alignloop.stages.batch_file import none_left
from alignloop.stages.facts import Findings, Rows
from alignloop.stages.ingest import NO_PROMPT_LEFT, prompts_of
from alignloop.stages.train_reward import of_strengths

T = TypeVar("T", PreferenceRow, PromptRow)


def with_files(recipe: Recipe, *, findings: Findings) -> Recipe:
    """The recipe with the files in the place of its patterns; a pattern that matches none goes to `findings`."""
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
    everyone, dropped = without_local_benchmarks(read, recipe, what="preferences", findings=findings)
    train, heldout = everyone, list[PreferenceRow]()
    with findings.collecting():
        train, heldout = heldout_split(
            everyone,
            fraction=recipe.data.heldout_fraction,
            max_heldout=recipe.data.max_heldout,
            seed=stage_seed(recipe.seed, round=0, stage=ingest.STAGE.name),
        )
    prompts = prompts_of(train)
    if recipe.prompts:
        files = [resolve_file(file, kind="prompts") for file in recipe.prompts]
        prompts = _read(read_prompts, files, recipe.data.reading_prompts, findings, rejected, forms)
        prompts, _ = without_local_benchmarks(prompts, recipe, what="prompts", findings=findings)
    num_read = len(prompts)
    _check_twice(recipe, findings)
    _check_leaves_rows(recipe, findings)
    prompts, _ = without_prompts(prompts, heldout)
    verdicts = [scores_say(row.meta) for row in everyone]
    scores = scores_text(verdicts.count("against"), verdicts.count("tie"), of=len(everyone))
    findings.notes += [] if scores is None else [f"preferences: {scores}"]
    if everyone:
        _check_training_rows(train, heldout, recipe, findings)
    if num_read:
        _check_prompts(prompts, recipe, findings)
    if rejected and not findings.problems:
        how_many, be = ("1 row", "is") if len(rejected) == 1 else (f"{len(rejected):,} rows", "are")
        findings.notes.append(f"{how_many} cannot be read and {be} left out; the first: {place(rejected[0])}")
    return _of_rounds(Rows(train, heldout, prompts, rejected, forms, dropped), recipe, findings)


def without_local_benchmarks(
    rows: list[T], recipe: Recipe, *, what: str, findings: Findings
) -> tuple[list[T], list[DroppedRow]]:
    """What `ingest` will take, and what it will leave out, as far as the benchmarks lie on this machine.

    Questions that lm-eval fetches are compared when the run begins; that no row is left is a problem.
    """
    keep_out = ingest.keep_out_of(recipe)
    if keep_out is None or not rows:
        return rows, []
    try:
        benchmarks = local_texts(keep_out.tasks, keep_out.include_path)
    except UserError:  # `check_tasks` says what is wrong with the benchmarks
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


def _of_rounds(rows: Rows, recipe: Recipe, findings: Findings) -> Rows:
    """The rows as the rounds will see them: where each file is one round's, the first file's alone are held out."""
    everyone = sorted([*rows.train, *rows.heldout], key=_in_file_order(rows))
    if recipe.data.batches != "files" or not everyone:
        return rows
    train, heldout = everyone, list[PreferenceRow]()
    with findings.collecting():
        train, heldout = heldout_of_files(
            everyone,
            fraction=recipe.data.heldout_fraction,
            max_heldout=recipe.data.max_heldout,
            seed=stage_seed(recipe.seed, round=0, stage=ingest.STAGE.name),
        )
    _check_none_empty(everyone, [*train, *heldout], rows, recipe, findings)
    prompts, _ = without_prompts(rows.prompts if recipe.prompts else prompts_of(train), heldout)
    return replace(rows, train=train, heldout=heldout, prompts=prompts)


def _check_none_empty(
    everyone: Sequence[PreferenceRow], left: Sequence[PreferenceRow], rows: Rows, recipe: Recipe, findings: Findings
) -> None:
    """Each round needs a row of its own file."""
    held = Counter(row.source.file for row in rows.dropped if row.source is not None)
    read, kept = (Counter(row.source.file for row in some) for some in (everyone, left))
    for number, file in enumerate(list(rows.forms)[: recipe.rounds], start=1):
        if not kept[file] and held[file] + read[file]:
            text = none_left(file, round=number, num_held=held[file], num_heldout=read[file])
            findings.problems.append(text)


def _in_file_order(rows: Rows) -> Callable[[PreferenceRow], tuple[int, int]]:
    """Sort key: file by file as they were read, line by line."""
    order = {file: number for number, file in enumerate(rows.forms)}
    return lambda row: (order.get(row.source.file, len(order)), row.source.line or 0)


def place(row: RejectedRow) -> str:
    """`file, line N, field F: reason`."""
    line = "" if row.line is None else f", line {row.line}"
    field_name = "" if row.field is None else f", field {row.field}"
    return f"{row.file}{line}{field_name}: {row.reason}"


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


def _check_training_rows(
    train: Sequence[PreferenceRow], heldout: Sequence[PreferenceRow], recipe: Recipe, findings: Findings
) -> None:
    first = round_batch(train, round=1, batches=recipe.data.batches, split_rounds=recipe.data.split_rounds)
    where = "round 1's batch of the preferences" if recipe.data.batches == "split" else "the preferences"
    if not of_strengths(first, recipe.reward.strengths):
        findings.problems.append(
            f"reward.strengths: none of the {len(first)} rows of {where} is {_either(recipe.reward.strengths)}: name "
            "more strengths, or set data.batches: all"
        )
    if not recipe.pairs.on_policy and not of_strengths(first, recipe.pairs.strengths):
        findings.problems.append(
            f"pairs.strengths: none of the {len(first)} rows of {where} is {_either(recipe.pairs.strengths)}, and "
            "pairs.on_policy is false: DPO would have no pair"
        )
    if not heldout:
        findings.notes.append(
            "no preference row is held out, so the reward model's accuracy is not measured (data.heldout_fraction)"
        )
    elif not of_strengths(heldout, recipe.reward.strengths):
        findings.notes.append(
            f"none of the {len(heldout):,} held-out rows is {_either(recipe.reward.strengths)}, so the reward model's "
            "accuracy is not measured (reward.strengths, data.heldout_fraction)"
        )


def _check_twice(recipe: Recipe, findings: Findings) -> None:
    for name, files in (("preferences", recipe.preferences), ("prompts", recipe.prompts)):
        for file in sorted({file for file in files if files.count(file) > 1}):
            times = files.count(file)
            findings.notes.append(f"{name}: {file} is named {times} times: each of its rows counts so often")


def _check_leaves_rows(recipe: Recipe, findings: Findings) -> None:
    """Settings under which a stage is bound to end with nothing, whatever the data."""
    quality, pairs = recipe.prune.quality, recipe.pairs
    if quality.enabled and quality.top_fraction == 0 and recipe.prune.human_rows == 0:
        findings.problems.append(
            "prune.quality.top_fraction: 0 keeps no sampled row and prune.human_rows: 0 adds none: SFT would have "
            "nothing to train on - raise one of the two"
        )
    own = pairs.on_policy and pairs.max_on_policy != 0 and recipe.sample.num_candidates > 1
    if pairs.max_preference_pairs == 0 and not own:
        findings.problems.append(
            "pairs.max_preference_pairs: 0 leaves only on-policy pairs, and there are none (they need pairs.on_policy, "
            "a pairs.max_on_policy above 0 and a sample.num_candidates of 2 or more): DPO would have no pair"
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
            f"{len(prompts)} do not ({first.file}, line {first.line}: neither instruction_id_list nor answer) - set "
            "collect.annotator: none"
        )


def _either(strengths: Sequence[Strength]) -> str:
    return " or ".join(strengths)
