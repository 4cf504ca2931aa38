"""Files of rows that tests write, and what is read of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from alignloop.data.reading import Kind, Reading
from alignloop.data.rows import Options

SHARED = Path(__file__).resolve().parents[2] / "../shared/data"
"""Real files, where they are there."""


def write(path: Path, *rows: Any) -> Path:
    """JSON lines; a text is written as it stands."""
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def rows_of(kind: Kind, file: Path | str, *, form: str | None = None, **options: Any) -> list[Any]:
    return list(Reading(file, kind, form=form, options=Options(**options)))
