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
FILES = ("differences.json", "recipe.yaml", "resolved.json")


def published(run_dir: Path) -> Outcome:
    """Of each published stage: its manifest but for the times, and the digests of its outputs as they lie there."""
    found: dict[str, Any] = {}
    for manifest_file in sorted(run_dir.glob("round-*/*/manifest.json")):
        folder = manifest_file.parent
        manifest = read_manifest(folder)
        assert manifest is not None
        stage = f"{folder.parent.name}/{folder.name}"
        found[stage] = manifest.model_dump(mode="json", exclude={"started", "ended", "seconds"})
        for record in manifest.outputs.values():
            for one in record if isinstance(record, list) else [record]:
                found[f"{stage}/{one.path}"] = digest_of(folder / one.path)
    return found


def whole(run_dir: Path) -> Outcome:
    """The same, and rounds but for their seconds, and every file of `final/`."""
    found = dict(published(run_dir))
    rows = [json.loads(line) for line in (run_dir / ROUNDS).read_text(encoding="utf-8").splitlines()]
    found[ROUNDS] = [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
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
