"""What the tests of stages share: a stage's surroundings, and rows small enough to follow by hand."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel

from alignloop.artifacts import Artifact
from alignloop.data.jsonl import dump_jsonl
from alignloop.engines.base import Engine
from alignloop.progress import Progress, QuietProgress
from alignloop.records import CandidateRow, Message, PreferenceRow, Source
from alignloop.run_dir.stage import StageContext

ASK = [Message(role="user", content="Name a colour.")]


def context(
    folder: Path, *, number: int = 1, seed: int = 7, engine: Any = None, progress: Progress | None = None
) -> StageContext:
    """Of a stage that works in `folder`, which may be there; without an engine for stages that ask none."""
    folder.mkdir(exist_ok=True)
    return StageContext(
        dir=folder, seed=seed, round=number, engine=cast(Engine, engine), progress=progress or QuietProgress()
    )


def candidate(prompt: str, k: int, text: str, reward: float | None, **values: Any) -> CandidateRow:
    made = {"id": f"{prompt}/1/{k}", "prompt_id": prompt, "messages": ASK, "completion": text, "completion_ids": [1]}
    return CandidateRow(
        **{**made, "finish_reason": "stop", "round": 1, "policy": "sha256:x", "reward": reward, **values}
    )


def preference(row_id: str, **values: Any) -> PreferenceRow:
    made = {"id": row_id, "messages": ASK, "chosen": "Blue.", "rejected": "Seven.", "source": Source(file="f")}
    return PreferenceRow(**{**made, **values})


def written(path: Path, rows: Iterable[BaseModel]) -> Artifact:
    """Rows as a stage publishes them."""
    dump_jsonl(path, rows)
    return Artifact.of(path)


def write(path: Path, *rows: dict[str, Any]) -> Path:
    """Rows as a user has them."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
