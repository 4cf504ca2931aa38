"""What the tests of `collect` with a judge share: a judge by length, candidates to compare, and a run of the stage."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, cast

from alignloop.artifacts import Artifact
from alignloop.config.recipe import Recipe
from alignloop.data.jsonl import dump_jsonl
from alignloop.engines.base import Engine
from alignloop.progress import QuietProgress
from alignloop.records import CandidateRow, Message, PreferenceRow, Source
from alignloop.run_dir.manifest import Manifest, read_manifest
from alignloop.run_dir.stage import Location, run_stage
from alignloop.stages import collect

HUMAN = PreferenceRow(
    id="h", messages=[Message(role="user", content="Hi")], chosen="Hello", rejected="No", source=Source(file="f")
)


def by_length(body: dict[str, Any], number: int) -> Any:
    """A judge that likes the longer answer, calls equally long ones a tie and has no word for question 3."""
    text = body["messages"][-1]["content"]
    a, b = re.findall(r"\[answer [AB] #\w+\]\n(.*)", text)
    how = "significantly better" if "Question 5" in text else "slightly better"
    verdict = "tie" if len(a) == len(b) else f"A {how}" if len(a) > len(b) else f"B {how}"
    said = "no idea" if "Question 3" in text else json.dumps({"reason": "", "verdict": verdict})
    return 200, {"choices": [{"message": {"content": said}}]}, {}


def candidate(prompt: int, k: int, completion: str) -> CandidateRow:
    return CandidateRow(
        id=f"q{prompt}/1/{k}",
        prompt_id=f"q{prompt}",
        messages=[Message(role="user", content=f"Question {prompt}?")],
        completion=completion,
        completion_ids=[7],
        finish_reason="stop",
        round=1,
        policy="sha256:0",
        reward=1.0 - k,
        total_reward=1.0 - k,
        meta={"topic": "trees"},
    )


CANDIDATES = [
    *(candidate(1, 0, "An oak."), candidate(1, 1, "It is an elm.")),  # the longer one wins
    *(candidate(2, 0, "An oak."), candidate(2, 1, "An elm.")),  # a tie
    *(candidate(3, 0, "An oak."), candidate(3, 1, "It is an elm.")),  # unreadable
    *(candidate(4, 0, "An oak."), candidate(4, 1, " ")),  # nothing to compare with
    *(candidate(5, 0, "It is an oak."), candidate(5, 1, "An elm.")),
]


def config(url: str, *, num: int = 10, **judge: Any) -> Recipe:
    values = {
        "preferences": ("quickstart",),
        "collect": {"annotator": "judge", "num_annotations": num},
        "judge": {"model": "m", "endpoint": url, "max_retries": 1, **judge},
    }
    return Recipe.model_validate(values)


def ran(folder: Path, recipe: Recipe, *, candidates: list[CandidateRow] = CANDIDATES) -> Manifest:
    folder.mkdir(exist_ok=True)
    dump_jsonl(folder / "human.jsonl", [HUMAN])
    dump_jsonl(folder / "scored.jsonl", candidates)
    human, scored = Artifact.of(folder / "human.jsonl"), Artifact.of(folder / "scored.jsonl")
    location = Location(folder / "round-02" / "01_collect", 2, 0)
    inputs = collect.inputs(recipe, human, scored)
    run_stage(
        collect.STAGE,
        collect.settings(recipe),
        inputs,
        location=location,
        engine=cast(Engine, None),
        progress=QuietProgress(),
    )
    manifest = read_manifest(location.dir)
    assert manifest is not None
    return manifest
