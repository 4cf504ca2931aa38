"""A file of the user's as items: dialogs to fine-tune on, or preferences, in any form the readers know.

FILE --form--> SftRow | PreferenceRow --columns that score it--> Item
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from alignloop.data.forms import FORMS
from alignloop.data.readers import Reading, read_preferences, read_sft
from alignloop.data.rows import Options
from alignloop.errors import DataError
from alignloop.pruning.embeddings import GivenEmbedding, read_vectors
from alignloop.pruning.items import Item, item_of_preference, item_of_sft
from alignloop.records import PreferenceRow, RejectedRow, SftRow

if TYPE_CHECKING:
    from alignloop.pruning.embeddings import Floats

Kind = Literal["sft", "preferences"]
REWARDS = ("total_reward", "reward", "score_chosen", "quality_score")
"""Columns that may hold a row's reward; the first that a row has counts."""


@dataclass(frozen=True)
class GivenRows:
    """What a file holds.

    Attributes:
        num_read: rows of the file, those that cannot be read included.
    """

    kind: Kind
    form: str
    items: list[Item]
    rejected: list[RejectedRow]

    @property
    def num_read(self) -> int:
        return len(self.items) + len(self.rejected)


def kind_of_rows(file: str, *, form: str | None = None, options: Options | None = None) -> tuple[Kind, str]:
    """Whether a file holds preferences or dialogs, and the form of its rows.

    Raises:
        DataError: no such file, or rows of no known form.
    """
    found = Reading[SftRow](file, "sft", form=form, options=options).form.name
    return ("preferences" if found in {known.name for known in FORMS} else "sft"), found


def read_given(
    file: str, *, max_bad_fraction: float, form: str | None = None, options: Options | None = None
) -> GivenRows:
    """Read a file to prune.

    Raises:
        DataError: no such file, rows of no known form, too many that cannot be read, or a reward that is no number.
    """
    kind, name = kind_of_rows(file, form=form, options=options)
    how: dict[str, Any] = {"max_bad_fraction": max_bad_fraction, "form": form, **vars(options or Options())}
    if kind == "preferences":
        preferences = read_preferences([file], **how)
        return GivenRows(kind, name, [_preference_item(row) for row in preferences.rows], preferences.rejected)
    dialogs = read_sft([file], **how)
    return GivenRows(kind, name, [_sft_item(row) for row in dialogs.rows], dialogs.rejected)


def given_embedding(path: Path, given: GivenRows) -> GivenEmbedding:
    """The user's vectors, one for each row of the file, in its order; unreadable rows' are passed over.

    Raises:
        DataError: it holds another number of vectors, or a row of the file became several.
    """
    vectors = read_vectors(path)
    lines = sorted({line for line in _lines(given) if line is not None})
    if len(vectors) == len(given.items) and not given.rejected:
        return GivenEmbedding(vectors, {item.id: number for number, item in enumerate(given.items)})
    if len(vectors) != given.num_read or len(lines) != given.num_read:
        raise _unfitting(path, vectors, given)
    place = {line: number for number, line in enumerate(lines)}
    return GivenEmbedding(vectors, {item.id: place[item.source.line or 0] for item in given.items})


def _lines(given: GivenRows) -> list[int | None]:
    return [item.source.line for item in given.items] + [row.line for row in given.rejected]


def _unfitting(path: Path, vectors: Floats, given: GivenRows) -> DataError:
    bad = f" and {len(given.rejected):,} that cannot be read" if given.rejected else ""
    return DataError(
        f"{path}: holds {len(vectors):,} vectors for {len(given.items):,} rows{bad}: give one for each row of "
        "the file, in its order"
    )


def _preference_item(row: PreferenceRow) -> Item:
    item = item_of_preference(row)
    return item.with_(reward=_number(item, REWARDS), pass_rate=_number(item, ("pass_rate",)), **_topics(item))


def _sft_item(row: SftRow) -> Item:
    item = item_of_sft(row)
    reward = row.quality_score if row.quality_score is not None else _number(item, REWARDS)
    return item.with_(reward=reward, pass_rate=_number(item, ("pass_rate",)))


def _topics(item: Item) -> dict[str, Any]:
    """What an earlier pruning wrote into a preference row."""
    found = item.column("pruning")
    if not isinstance(found, dict):
        return {}
    return {name: found[name] for name in ("topic", "fine_topic") if isinstance(found.get(name), str)}


def _number(item: Item, columns: Sequence[str]) -> float | None:
    """The first of the columns that the row has.

    Raises:
        DataError: it holds no number.
    """
    for name in columns:
        value = item.column(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            where = f"{item.source.file}, line {item.source.line}"
            raise DataError(f"{where}, field {name}: {value!r}: a finite number is wanted, or leave it out")
        return float(value)
    return None
