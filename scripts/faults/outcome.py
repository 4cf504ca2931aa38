"""What of a run must be the same however often it was killed: all that is not time or place."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignloop.artifacts import digest_of, read_manifest

Outcome = Mapping[str, Any]
"""Name of a thing -> its digest or values."""
ROUNDS = "rounds.jsonl"
TRAIN_LOG = "train_log.jsonl"
TIMES = ("seconds", "tokens_per_second")
"""What rows of the two say of how long they took."""
FILES = ("differences.json", "recipe.yaml", "resolved.json")


def published(run_dir: Path) -> Outcome:
    """Of each published stage: its manifest but for the times, and the digests of its outputs as they lie there."""
    found: dict[str, Any] = {}
    for manifest_file in sorted(run_dir.glob("round-*/*/manifest.json")):
        folder = manifest_file.parent
        manifest = read_manifest(folder)
        assert manifest is not None
        stage = f"{folder.parent.name}/{folder.name}"
        values = manifest.model_dump(mode="json", exclude={"started", "ended", "seconds", "digest", "outputs"})
        found[stage] = values | {"outputs": {}}
        for name, record in manifest.outputs.items():
            for one in record if isinstance(record, list) else [record]:
                is_log = Path(one.path).name == TRAIN_LOG  # its bytes are never the same
                found[stage]["outputs"][f"{name}: {one.path}"] = one.rows if is_log else one.digest
                found[f"{stage}/{one.path}"] = _rows(folder / one.path) if is_log else digest_of(folder / one.path)
    return found


def whole(run_dir: Path) -> Outcome:
    """The same, and rounds but for their seconds, and every file of `final/`."""
    found = dict(published(run_dir))
    found[ROUNDS] = _rows(run_dir / ROUNDS)
    files = [run_dir / name for name in FILES]
    files += sorted(path for path in (run_dir / "final").rglob("*") if path.is_file())
    found |= {path.relative_to(run_dir).as_posix(): digest_of(path) for path in files if path.is_file()}
    return found


def differences(expected: Outcome, found: Outcome, *, partly: bool) -> list[str]:
    """Names of what is not as expected.

    Args:
        partly: what is not there yet is no difference.
    """
    names = found if partly else {**expected, **found}
    return [name for name in names if expected.get(name) != found.get(name)]


def _rows(file: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]
