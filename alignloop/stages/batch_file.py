"""A round's own file of preferences -> its batch, every row accounted for."""

from __future__ import annotations

import itertools
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from alignloop.config.data import DataConfig
from alignloop.config.pruning import KeepOutConfig
from alignloop.data.readers import read_preferences
from alignloop.data.split import prompt_key, without_prompts
from alignloop.pruning.decontaminate import ALL_LEFT_OUT, without_benchmarks
from alignloop.records import DroppedRow, PreferenceRow, PromptRow, RejectedRow
from alignloop.stages.ingest import prompts_of


@dataclass(frozen=True)
class Batch:
    """A round's rows.

    Attributes:
        prompts: to sample for from now on; empty where the batch adds none.
        dropped, rejected: rows of the file that are left out, or cannot be read.
        counts: `in` == `kept` + `dropped`, of the file; empty where the batch is a share of what was ingested.
    """

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
    """Read a round's file.

    Args:
        keep_out: rows that hold a question of these benchmarks are dropped.
        earlier: rows of the rounds before: another row's id is not used again, the same row keeps its own and so
            trains once.
        heldout: rows of these prompts are dropped.
        prompts: those to sample for so far; None: the file's prompts are not sampled for.

    Raises:
        DataError: as `read_preferences`, and as `without_benchmarks`.
    """
    read = read_preferences([file], **config.reading)
    clean, dropped = without_benchmarks(_with_own_ids(read.rows, earlier), keep_out, stage="collect")
    rows, of_heldout = without_prompts(clean, heldout)
    dropped += [
        DroppedRow(id=row.id, stage="collect", rule="heldout_prompt", reason=HELDOUT_REASON, source=row.source)
        for row in of_heldout
    ]
    num_dropped = len(dropped) + len(read.rejected)
    return Batch(
        rows,
        prompts=[] if prompts is None else _more_prompts(prompts, rows),
        dropped=dropped,
        rejected=list(read.rejected),
        counts={"in": len(rows) + num_dropped, "kept": len(rows), "dropped": num_dropped},
    )


def none_left(file: str | Path, *, round: int, num_held: int, num_heldout: int) -> str:
    """Why a round cannot begin on its file, and what to do.

    Args:
        num_held: rows that hold a benchmark's question.
        num_heldout: rows of held-out prompts.
    """
    return (
        f"{file}: is the file of round {round}, and none of its rows is left to train on: {num_held:,} hold a question "
        f"of the run's benchmarks, {num_heldout:,} have the prompt of a held-out preference: "
        f"{ALL_LEFT_OUT if num_held else 'take other data'}"
    )


HELDOUT_REASON = "its prompt is that of a held-out preference, which nothing trains on"


def _with_own_ids(rows: Sequence[PreferenceRow], earlier: Sequence[PreferenceRow]) -> list[PreferenceRow]:
    """Files numbered from 0, one by one: an id that stands for another row already gets `~2`, `~3`, ..."""
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
    for number in itertools.count(2):
        name = f"{row.id}~{number}"
        if name not in taken or (name in known and _is_same(known[name], row)):
            return name
    raise AssertionError("numbers do not end")


def _is_same(one: PreferenceRow, other: PreferenceRow) -> bool:
    """Whether two rows say the same, wherever they stand."""
    columns = {"messages", "chosen", "rejected", "edited", "strength"}
    return one.model_dump(include=columns) == other.model_dump(include=columns)


def _more_prompts(prompts: Sequence[PromptRow], rows: Sequence[PreferenceRow]) -> list[PromptRow]:
    known = {prompt_key(row.messages, seed=0) for row in prompts}
    return [*prompts, *(row for row in prompts_of(list(rows)) if prompt_key(row.messages, seed=0) not in known)]
