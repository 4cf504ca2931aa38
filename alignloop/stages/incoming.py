"""Incoming preference rows, from the run's own files or a round's: what is kept out, and what is left."""

from __future__ import annotations

import itertools
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from alignloop.config.data import DataConfig
from alignloop.config.pruning import KeepOutConfig
from alignloop.config.recipe import Recipe
from alignloop.data.readers import read_preferences
from alignloop.data.split import prompt_key, without_prompts
from alignloop.pruning.decontaminate import ALL_LEFT_OUT, without_benchmarks
from alignloop.records import DroppedRow, PreferenceRow, PromptRow, RejectedRow, SftRow


def keep_out_of(recipe: Recipe) -> KeepOutConfig | None:
    """What no incoming row may hold; None: `prune.decontaminate` is off."""
    config = recipe.prune.decontaminate
    if not config.enabled:
        return None
    return KeepOutConfig(
        tasks=recipe.evaluate.all_tasks,
        include_path=recipe.evaluate.include_path,
        ngram=config.ngram,
        min_share=config.min_share,
    )


def prompts_of(rows: Sequence[PreferenceRow]) -> list[PromptRow]:
    prompts: dict[int, PromptRow] = {}
    for row in rows:
        key = prompt_key(row.messages, seed=0)
        prompts.setdefault(key, PromptRow(id=f"{key:016x}", messages=row.messages, source=row.source, meta=row.meta))
    return list(prompts.values())


def held_out(row: PreferenceRow | PromptRow | SftRow, *, stage: str) -> DroppedRow:
    what = "it" if isinstance(row, PromptRow) else "its prompt"
    reason = f"{what} is that of a held-out preference, which nothing trains on"
    return DroppedRow(id=row.id, stage=stage, rule="heldout_prompt", reason=reason, source=row.source)


@dataclass(frozen=True)
class Batch:
    """A round's rows: `prompts` to sample for from now on, none where the batch adds none; `dropped` and `rejected` of
    the file; `counts` of the file (`in` == `kept` + `dropped`), empty where the batch is a share of the ingested
    rows."""

    rows: list[PreferenceRow]
    prompts: list[PromptRow] = field(default_factory=list)
    dropped: list[DroppedRow] = field(default_factory=list)
    rejected: list[RejectedRow] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)


def read_batch(
    file: Path,
    *,
    config: DataConfig,
    earlier: Sequence[PreferenceRow],
    heldout: Sequence[PreferenceRow],
    prompts: Sequence[PromptRow] | None,
    keep_out: KeepOutConfig | None = None,
) -> Batch:
    """Read a round's own file, every row accounted for; raises as `read_preferences` and `without_benchmarks`.

    Args:
        earlier: rows of the rounds before: a new row gets another id than theirs; the same row keeps its own and so
            trains once.
        heldout: rows of these prompts are dropped.
        prompts: those to sample for so far; None: the file's prompts are not sampled for.
        keep_out: rows that hold a question of these benchmarks are dropped.
    """
    read = read_preferences([file], **config.reading)
    clean, dropped = without_benchmarks(_with_own_ids(read.rows, earlier), keep_out, stage="collect")
    rows, of_heldout = without_prompts(clean, heldout)
    dropped += [held_out(row, stage="collect") for row in of_heldout]
    num_dropped = len(dropped) + len(read.rejected)
    grown: list[PromptRow] = []
    if prompts is not None:
        known = {prompt_key(row.messages, seed=0) for row in prompts}
        grown = [*prompts, *(row for row in prompts_of(rows) if prompt_key(row.messages, seed=0) not in known)]
    counts = {"in": len(rows) + num_dropped, "kept": len(rows), "dropped": num_dropped}
    return Batch(rows, grown, dropped, list(read.rejected), counts)


def none_left(file: str | Path, *, round: int, num_held: int, num_heldout: int) -> str:
    """Why a round cannot begin on its file, and what to do; `num_held` rows hold a benchmark's question, `num_heldout`
    are of held-out prompts."""
    return (
        f"{file}: is the file of round {round}, and none of its rows is left to train on: {num_held:,} hold a question "
        f"of the run's benchmarks, {num_heldout:,} have the prompt of a held-out preference: "
        f"{ALL_LEFT_OUT if num_held else 'take other data'}"
    )


def _with_own_ids(rows: Sequence[PreferenceRow], earlier: Sequence[PreferenceRow]) -> list[PreferenceRow]:
    """Files are often numbered from 0 each: an id that stands for another row already gets `~2`, `~3`, ..."""
    known = {row.id: row for row in earlier}
    taken = known.keys() | {row.id for row in rows}
    unique = []
    for row in rows:
        name = _own_id(row, known, taken)
        taken.add(name)
        unique.append(row if name == row.id else row.model_copy(update={"id": name}))
    return unique


def _own_id(row: PreferenceRow, known: Mapping[str, PreferenceRow], taken: Container[str]) -> str:
    if row.id not in known or _is_same(known[row.id], row):
        return row.id
    names = (f"{row.id}~{number}" for number in itertools.count(2))
    return next(name for name in names if name not in taken or (name in known and _is_same(known[name], row)))


def _is_same(one: PreferenceRow, other: PreferenceRow) -> bool:
    """Whether two rows have the same content, under any id."""
    columns = {"messages", "chosen", "rejected", "edited", "strength"}
    return one.model_dump(include=columns) == other.model_dump(include=columns)
