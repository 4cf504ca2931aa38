"""Which files a recipe's patterns stand for, and whose rows are held out where each file is one round's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from alignloop.artifacts import stage_seed
from alignloop.config import Recipe
from alignloop.data.files import data_files, is_pattern
from alignloop.data.split import heldout_of_files, prompt_key
from alignloop.preflight.findings import Findings
from alignloop.preflight.rows import Rows
from alignloop.records import PreferenceRow
from alignloop.stages import ingest
from alignloop.stages.batch_file import none_left
from alignloop.stages.ingest import prompts_of


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


def of_rounds(rows: Rows, recipe: Recipe, *, findings: Findings) -> Rows:
    """The rows as the rounds will see them: where each file is one round's, the first file's alone are held out."""
    everyone = sorted([*rows.train, *rows.heldout], key=_place(rows))
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
    held = {prompt_key(row.messages, seed=0) for row in heldout}
    prompts = rows.prompts if recipe.prompts else prompts_of(train)
    prompts = [row for row in prompts if prompt_key(row.messages, seed=0) not in held]
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


def _place(rows: Rows) -> Callable[[PreferenceRow], tuple[int, int]]:
    """Sort key: file by file as they were read, line by line."""
    order = {file: number for number, file in enumerate(rows.forms)}
    return lambda row: (order.get(row.source.file, len(order)), row.source.line or 0)
