"""What each round starts from, on the round's page walked without running a stage."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest

from alignloop.config import Recipe, load_recipe
from alignloop.engines.base import Engine
from alignloop.loop.plan import DryRunner
from alignloop.loop.round import run_round
from alignloop.loop.rounds import next_start, prepare
from alignloop.progress import QuietProgress
from alignloop.records import Message, PreferenceRow, Source
from alignloop.stages import base
from alignloop.stages.bootstrap import Inputs as BootstrapInputs
from alignloop.stages.bootstrap import first_batch, settings


@dataclass
class Watched(DryRunner):
    given: dict[str, Any] = field(default_factory=dict)

    def run(self, stage: Any, inputs: Any) -> Any:
        self.given[stage.name] = inputs
        return super().run(stage, inputs)


def starts(recipe: Recipe, run_dir: Path) -> list[dict[str, str]]:
    """Of three rounds: stage -> folder of the checkpoint it starts from, or samples from."""
    stages = Watched(recipe, run_dir, cast(Engine, None), QuietProgress())
    start = prepare(stages, base_inputs=base.inputs(recipe)).start
    bootstrap = stages.given.get("bootstrap")
    assert bootstrap is None or (isinstance(bootstrap, BootstrapInputs) and folder(bootstrap.start) == "00/02_base")
    found = []
    for number in (1, 2, 3):
        end = run_round(stages.round(number), start)
        given = stages.given
        found.append(
            {
                "reward": folder(given["train_reward"].start),
                "sft": folder(given["train_sft"].start),
                "samples": folder(given["sample"].policy),
            }
        )
        # As `loop` does: the last policy samples. Round 2 does not pass the gate.
        start = next_start(recipe, replace(start, policy=end.policy), end, passed=number != 2)
    return found


def folder(artifact: Any) -> str:
    """`<round>/<stage>`."""
    stage = artifact.path.parent
    return f"{stage.parent.name.removeprefix('round-')}/{stage.name}"


@pytest.mark.parametrize("bootstrap", ["always", "never"])
def test_start_from_base_is_the_base_and_a_bootstrap_only_samples(tmp_path: Path, bootstrap: str) -> None:
    recipe = load_recipe(
        "quickstart",
        overrides=[f"bootstrap={bootstrap}", "reward.start_from=base", "sft.start_from=base", "collect.annotator=none"],
    )
    rounds = starts(recipe, tmp_path)
    assert [(each["reward"], each["sft"]) for each in rounds] == [("00/02_base", "00/02_base")] * 3
    first = "00/05_average" if bootstrap == "always" else "00/02_base"
    assert [each["samples"] for each in rounds] == [first, "01/12_average", "02/12_average"]


def test_start_from_previous_is_the_base_in_round_1_too(tmp_path: Path) -> None:
    recipe = load_recipe("quickstart", overrides=["bootstrap=always", "collect.annotator=none"])
    assert (recipe.reward.start_from, recipe.sft.start_from) == ("previous", "previous")
    rounds = starts(recipe, tmp_path)
    assert [each["reward"] for each in rounds] == ["00/02_base", "01/03_average", "02/03_average"]
    assert [each["sft"] for each in rounds] == ["00/02_base", "01/12_average", "01/12_average"]
    assert rounds[0]["samples"] == "00/05_average"


def row(number: int, file: str = "a") -> PreferenceRow:
    messages = [Message(role="user", content=f"Name river {number}.")]
    source = Source(file=file, line=number)
    return PreferenceRow(id=f"r{number}", messages=messages, chosen="The Elbe.", rejected="A hill.", source=source)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"batches": "split", "split_rounds": 3}, ["r0", "r1"]),
        ({"batches": "all"}, ["r0", "r1", "r2", "r3", "r4", "r5"]),
        ({"batches": "files"}, ["r0", "r1", "r2"]),
    ],
)
def test_the_bootstrap_trains_on_the_first_rounds_batch(data: dict[str, Any], expected: list[str]) -> None:
    config = settings(Recipe(preferences=("a",), data=data))
    rows = [row(number, "a" if number < 3 else "b") for number in range(6)]
    batch, later = first_batch(rows, config)
    assert [one.id for one in batch] == expected
    assert {one.id for one in batch} | {drop.id for drop in later} == {one.id for one in rows}
    assert len(batch) + len(later) == len(rows)
