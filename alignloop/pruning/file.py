"""A file of the user's as items (dialogs to fine-tune on, or preferences, in any form), and pruned rows as a file.

FILE --form--> SftRow | PreferenceRow --columns that score it--> Item
rows --> JSON lines, or Parquet, which keeps free columns as JSON text
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from alignloop.data.forms import FORMS
from alignloop.data.jsonl import dump_jsonl
from alignloop.data.readers import read_preferences, read_sft
from alignloop.data.reading import Reading
from alignloop.data.rows import Options
from alignloop.errors import DataError, UserError
from alignloop.pruning.embedding import Embedding, by_vectors, read_vectors
from alignloop.pruning.items import PRUNING, Item, item_of_preference, item_of_sft
from alignloop.records import RejectedRow, Row, SftRow

Kind = Literal["sft", "preferences"]
REWARDS = ("total_reward", "reward", "score_chosen", "quality_score")
"""Columns that may hold a row's reward; the first that a row has counts."""
SUFFIXES = (".jsonl", ".parquet")
_GROUP_ROWS = 16_384


@dataclass(frozen=True)
class FileRows:
    """What a file holds."""

    kind: Kind
    form: str
    items: list[Item]
    rejected: list[RejectedRow]


def kind_of_rows(file: str, *, form: str | None = None, options: Options | None = None) -> tuple[Kind, str]:
    """Whether a file holds preferences or dialogs, and the form of its rows.

    Raises:
        DataError: no such file, or rows of no known form.
    """
    found = Reading[SftRow](file, "sft", form=form, options=options).form.name
    return ("preferences" if found in {known.name for known in FORMS} else "sft"), found


def read_rows(
    file: str, *, max_bad_fraction: float, form: str | None = None, options: Options | None = None
) -> FileRows:
    """Read a file to prune.

    Raises:
        DataError: no such file, rows of no known form, too many that cannot be read, or a reward that is no number.
    """
    kind, name = kind_of_rows(file, form=form, options=options)
    how: dict[str, Any] = {"max_bad_fraction": max_bad_fraction, "form": form, **vars(options or Options())}
    if kind == "preferences":
        preferences = read_preferences([file], **how)
        items = [_scored(item_of_preference(row)) for row in preferences.rows]
        return FileRows(kind, name, [replace(item, **_earlier_topics(item)) for item in items], preferences.rejected)
    dialogs = read_sft([file], **how)
    return FileRows(
        kind, name, [_scored(item_of_sft(row, reward=row.quality_score)) for row in dialogs.rows], dialogs.rejected
    )


def file_embedding(path: Path, rows: FileRows) -> Embedding:
    """The user's vectors, one for each row of the file, in its order; unreadable rows' are passed over.

    Raises:
        DataError: it holds another number of vectors, or a row of the file became several.
    """
    vectors = read_vectors(path)
    if len(vectors) == len(rows.items) and not rows.rejected:
        return by_vectors(vectors, {item.id: number for number, item in enumerate(rows.items)})
    num_read = len(rows.items) + len(rows.rejected)
    lines = {item.source.line for item in rows.items} | {row.line for row in rows.rejected}
    if not len(vectors) == num_read == len(lines - {None}):
        bad = f" and {len(rows.rejected):,} that cannot be read" if rows.rejected else ""
        raise DataError(
            f"{path}: holds {len(vectors):,} vectors for {len(rows.items):,} rows{bad}: give one for each row of "
            "the file, in its order"
        )
    row_of = {line: number for number, line in enumerate(sorted(line for line in lines if line is not None))}
    return by_vectors(vectors, {item.id: row_of[item.source.line or 0] for item in rows.items})


def _scored(item: Item) -> Item:
    reward = _number(item, REWARDS) if item.reward is None else item.reward
    return replace(item, reward=reward, pass_rate=_number(item, ("pass_rate",)))


def _earlier_topics(item: Item) -> dict[str, Any]:
    """What an earlier pruning found of a preference."""
    found = item.row.meta.get(PRUNING)
    if not isinstance(found, dict):
        return {}
    return {name: found[name] for name in ("topic", "fine_topic") if isinstance(found.get(name), str)}


def _number(item: Item, columns: Sequence[str]) -> float | None:
    """The first of the columns that the row has.

    Raises:
        DataError: it holds no number.
    """
    for name in columns:
        value = item.row.meta.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            where = f"{item.source.file}, line {item.source.line}"
            raise DataError(f"{where}, field {name}: {value!r}: a finite number is wanted, or leave it out")
        return float(value)
    return None


def check_suffix(out: Path) -> None:
    """Raise a UserError where the ending of `out` is of neither kind of file."""
    if out.suffix not in SUFFIXES:
        raise UserError(f"--out {out}: end it with .jsonl or .parquet, which says what is written")


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write rows as the ending of `path` says.

    Raises:
        DataError: a column cannot be written to Parquet.
    """
    if path.suffix == ".jsonl":
        dump_jsonl(path, rows)
        return
    import pyarrow as pa
    from pyarrow import parquet

    columns = _columns(rows)
    try:
        table = pa.table(columns)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataError(f"{path.name}: a column cannot be written to Parquet: {error}; write .jsonl") from error
    parquet.write_table(table, path, row_group_size=_GROUP_ROWS, compression="zstd")


def _columns(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Column -> values; columns in which no row has anything are left out."""
    dumped = [row.model_dump(mode="json") for row in rows]
    columns: dict[str, list[Any]] = {}
    for name in dict.fromkeys(name for row in dumped for name in row):
        values = [row[name] for row in dumped]
        if name == "meta":
            values = [json.dumps(value, ensure_ascii=False) if value else None for value in values]
        if any(value not in (None, {}, []) for value in values):
            columns[name] = values
    return columns
