"""What the tests of stages share: surroundings, an engine without a model, rows small enough to follow by hand."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from pydantic import BaseModel

from alignloop.artifacts import Artifact
from alignloop.data.jsonl import dump_jsonl
from alignloop.engines.base import Completion, Engine, GenerateRequest, Loglikelihood, LoglikelihoodRequest
from alignloop.errors import EngineError
from alignloop.progress import Progress, QuietProgress
from alignloop.records import CandidateRow, Message, PreferenceRow, Source
from alignloop.run_dir.stage import Location, OutputsT, Stage, StageContext, run_stage

ASK = [Message(role="user", content="Name a colour.")]


class Listening(QuietProgress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


class ScriptedEngine:
    """An engine whose completions are a function of the request's ids, seed and temperature, as a real one's are.

    Args:
        dies_at: the call of `generate` that fails as a dead engine does; None: none.
    """

    def __init__(self, *, dies_at: int | None = None, stop: int = 4) -> None:
        self.requests: list[list[GenerateRequest]] = []
        self._dies_at = dies_at
        self._stop = stop

    def generate(self, requests: Sequence[GenerateRequest]) -> list[list[Completion]]:
        if len(self.requests) == self._dies_at:
            raise EngineError("the engine died 4 times in this run")
        self.requests.append(list(requests))
        return [self._completions(request) for request in requests]

    def _completions(self, request: GenerateRequest) -> list[Completion]:
        draw = random.Random(f"{request.seed} {request.temperature} {request.prompt_ids}")
        made = []
        for _ in range(request.num_candidates):
            length = draw.randint(0, request.max_tokens)
            ids = tuple(draw.randint(70, 90) for _ in range(length))
            cut = length == request.max_tokens
            made.append(Completion(ids if cut else (*ids, self._stop), "length" if cut else "stop"))
        return made

    def load_weights(self, checkpoint: Path) -> None: ...
    def loglikelihood(self, requests: Sequence[LoglikelihoodRequest]) -> list[Loglikelihood]:
        raise NotImplementedError

    def sleep(self) -> None: ...
    def wake(self) -> None: ...
    def close(self) -> None: ...

    @property
    def num_starts(self) -> int:
        return 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None: ...


def context(
    folder: Path, *, number: int = 1, seed: int = 7, engine: Any = None, progress: Progress | None = None
) -> StageContext:
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


def at_door(
    stage: Stage[Any, Any, OutputsT],
    config: Any,
    inputs: Any,
    folder: Path,
    *,
    number: int = 1,
    run_seed: int = 0,
    engine: Engine | None = None,
    progress: Progress | None = None,
    rebuild: bool = False,
) -> OutputsT:
    """Run the stage as a run does: taken over where it is published in `folder` already."""
    return run_stage(
        stage,
        config,
        inputs,
        location=Location(folder, number, run_seed),
        engine=engine or ScriptedEngine(),
        progress=progress or QuietProgress(),
        rebuild=rebuild,
    )
