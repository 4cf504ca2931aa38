"""Demonstrations (`sft.data`): read entry by entry, each row people's and its own, and looked at before a run begins.

files of an entry --read--> --without benchmarks, held-out prompts--> rows to fine-tune on
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from alignloop.config.recipe import Recipe
from alignloop.config.training import Demonstrations
from alignloop.data.files import data_files
from alignloop.data.readers import read_sft, with_unique_ids
from alignloop.data.split import windowed, without_prompts
from alignloop.errors import DataError
from alignloop.records import DroppedRow, PreferenceRow, RejectedRow, SftRow, demonstration_id
from alignloop.stages.facts import Findings
from alignloop.stages.incoming import held_out

NONE_LEFT = (
    "sft.data: {file}: none of its rows is left to fine-tune on once those of benchmarks' questions and of held-out "
    "prompts are taken out - take other data, or leave the entry out"
)
_OF_ANOTHER_RUN: Mapping[str, Any] = {
    "quality_score": None,
    "difficulty_score": None,
    "completion_ids": None,
    "prompt_id": None,
    "round": None,
    "policy": None,
    "rewards": [],
    "judge": {},
    "cluster": None,
}
"""What a row that an earlier run wrote may say by its own models: nothing here is on their scale."""


@dataclass(frozen=True)
class Demonstrated:
    """What came in: a list of rows an entry; what was dropped, and what could not be read."""

    entries: list[list[SftRow]] = field(default_factory=list)
    rejected: list[RejectedRow] = field(default_factory=list)
    dropped: list[DroppedRow] = field(default_factory=list)

    @property
    def rows(self) -> list[SftRow]:
        return [row for rows in self.entries for row in rows]

    @property
    def counts(self) -> dict[str, int]:
        """`demonstrations_in == demonstrations + demonstrations_dropped`; empty where there are none."""
        kept, dropped = len(self.rows), len(self.dropped) + len(self.rejected)
        if not self.entries:
            return {}
        return {"demonstrations_in": kept + dropped, "demonstrations": kept, "demonstrations_dropped": dropped}

    def only(
        self, kept: Sequence[SftRow], dropped: Sequence[DroppedRow], *, heldout: Sequence[PreferenceRow]
    ) -> Demonstrated:
        """With those of `kept` alone whose prompt nobody holds out; `dropped` are those that `kept` lacks."""
        clean, of_heldout = without_prompts(kept, heldout)
        left = {row.id for row in clean}
        entries = [[row for row in rows if row.id in left] for rows in self.entries]
        for before, rows in zip(self.entries, entries, strict=True):
            if not rows:
                raise DataError(NONE_LEFT.format(file=before[0].source.file))
        held = [held_out(row, stage="ingest") for row in of_heldout]
        return Demonstrated(entries, self.rejected, [*dropped, *held])


def files_of_entries(entries: Sequence[Demonstrations]) -> list[list[Path]]:
    """The files of each entry; raises DataError where a pattern matches none, or a file cannot be read twice."""
    return [data_files([entry.file], kind="sft.data") for entry in entries]


def read_demonstrations(entries: Sequence[Sequence[Path]], options: Mapping[str, Any]) -> Demonstrated:
    """Read the files of each entry, ids unique over all of them; raises DataError as `read_sft` does."""
    read = [read_sft(files, **options) for files in entries]
    own = [demonstration(row) for each in read for row in each.rows]
    rows = iter(with_unique_ids(own))
    return Demonstrated(
        [list(islice(rows, len(each.rows))) for each in read], [bad for each in read for bad in each.rejected]
    )


def demonstration(row: SftRow) -> SftRow:
    """A row of the user's as the run takes it."""
    return row.model_copy(update={**_OF_ANOTHER_RUN, "id": demonstration_id(row.id), "origin": "demonstration"})


def check_entries(
    entries: Mapping[str, Sequence[SftRow]], *, recipe: Recipe, heldout: Sequence[PreferenceRow], findings: Findings
) -> dict[str, list[SftRow]]:
    """The entries without rows of held-out prompts. Each must have some left, and each row should come in in a round
    that trains on it."""
    kept: dict[str, list[SftRow]] = {}
    for file, rows in entries.items():
        clean, _ = without_prompts(rows, heldout)
        kept[file] = clean
        if rows and not clean:
            findings.problems.append(NONE_LEFT.format(file=file))
        num_missed = len(clean) - len(_trained(clean, recipe))
        if num_missed:
            findings.notes.append(
                f"sft.data: {num_missed:,} of {len(clean):,} demonstrations of {file} come in in no round of "
                f"{recipe.rounds:,} that trains on them: raise sft.data_window ({recipe.sft.data_window}), lower "
                f"data.split_rounds ({recipe.data.split_rounds}), or have SFT in more rounds"
            )
    return kept


def _trained(rows: Sequence[SftRow], recipe: Recipe) -> set[str]:
    due = (number for number in range(1, recipe.rounds + 1) if recipe.sft.is_due(number))
    return {row.id for number in due for row in of_round(rows, recipe, number)}


def of_round(rows: Sequence[SftRow], recipe: Recipe, number: int) -> list[SftRow]:
    """An entry's rows that are put to a round's pruning."""
    window = recipe.sft.data_window
    return windowed(rows, round=number, window=window, split_rounds=recipe.data.split_rounds)
