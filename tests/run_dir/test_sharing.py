"""Stages taken over from another run directory: the same bytes, or made here and said why."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest

from alignloop.artifacts import Artifact, digest_of
from alignloop.config.base import Section
from alignloop.config.recipe import Recipe
from alignloop.engines.base import Engine
from alignloop.errors import DriftError
from alignloop.progress import QuietProgress
from alignloop.run_dir.manifest import read_manifest
from alignloop.run_dir.reader import published_stages
from alignloop.run_dir.stage import Outputs as StageOutputs
from alignloop.run_dir.stage import Stage, StageContext
from alignloop.run_dir.verification import verify_run
from alignloop.stages.runner import StageRunner


class CountConfig(Section):
    add: int = 1


@dataclass(frozen=True)
class CountInputs:
    rows: Artifact


@dataclass(frozen=True, kw_only=True)
class CountOutputs(StageOutputs):
    total: Artifact
    checkpoints: tuple[Artifact, ...]


@dataclass(frozen=True, kw_only=True)
class OtherOutputs(StageOutputs):
    sum: Artifact


@dataclass
class Said(QuietProgress):
    lines: list[str] = field(default_factory=list)

    def say(self, line: str) -> None:
        self.lines.append(line)


def count_rows(config: CountConfig, inputs: CountInputs, ctx: StageContext) -> CountOutputs:
    """Goes on with what a crash has left, as training does with its log: in place."""
    with (ctx.dir / "total.txt").open("a") as log:
        log.write(f"{(inputs.rows.rows or 0) + config.add}")
    (ctx.dir / "checkpoint" / "inner").mkdir(parents=True, exist_ok=True)
    (ctx.dir / "checkpoint" / "inner" / "weights").write_bytes(b"w" * 10)
    return CountOutputs(
        total=ctx.artifact("total.txt"),
        checkpoints=(ctx.artifact("checkpoint"),),
        counts={"in": 3, "kept": 2, "dropped": 1},
        facts={"how": "counted"},
    )


def count(add: int = 1) -> Stage[CountConfig, CountInputs, CountOutputs]:
    return Stage("count", CountInputs, CountOutputs, lambda recipe: CountConfig(add=add), count_rows)


def runner_of(run_dir: Path, *, share_with: tuple[Path, ...] = (), rebuild: bool = False) -> tuple[StageRunner, Said]:
    said, engine = Said(), cast(Engine, None)  # these stages use none
    recipe = Recipe(preferences=("p",), seed=5)
    return StageRunner(recipe, run_dir, engine, said, rebuild=rebuild, share_with=share_with).round(1), said


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A run that has counted rows of its own, in a second folder of the round."""
    run_dir = tmp_path / "source"
    run_dir.mkdir()
    (run_dir / "rows.jsonl").write_text("{}\n{}\n{}\n")
    runner, _ = runner_of(run_dir)
    runner.run(Stage("first", CountInputs, CountOutputs, lambda recipe: CountConfig(), count_rows), inputs(run_dir))
    runner.run(count(), inputs(run_dir))
    return run_dir


def inputs(run_dir: Path) -> CountInputs:
    return CountInputs(Artifact.of(run_dir / "rows.jsonl"))


@pytest.fixture
def mine(tmp_path: Path, source: Path) -> Path:
    """An empty run directory with the same rows in it."""
    run_dir = tmp_path / "mine"
    run_dir.mkdir()
    shutil.copy(source / "rows.jsonl", run_dir)
    return run_dir


def test_the_same_stage_of_another_run_is_taken_over_by_hard_link(source: Path, mine: Path) -> None:
    runner, said = runner_of(mine, share_with=(source,))
    made = runner.run(count(), inputs(mine))
    assert said.lines == ["  01_count ...", "  01_count            shared  from source, 2 of 3 rows kept"]
    theirs = source / "round-01" / "02_count"
    assert made.total.path == mine / "round-01" / "01_count" / "total.txt"
    assert made.total.path.samefile(theirs / "total.txt")
    assert (made.checkpoints[0].path / "inner" / "weights").samefile(theirs / "checkpoint" / "inner" / "weights")
    known, taken = read_manifest(theirs), read_manifest(mine / "round-01" / "01_count")
    assert known is not None
    assert taken is not None
    assert taken.facts == {"how": "counted", "taken_from": "../source/round-01/02_count"}
    assert taken.inputs["rows"]["path"] == "rows.jsonl"  # of this run
    same = {"fingerprint", "config", "outputs", "counts", "metrics", "seed", "versions", "seconds", "started", "ended"}
    assert taken.model_dump(include=same) == known.model_dump(include=same)
    assert verify_run(mine, progress=QuietProgress()) == (2, [])
    again, said = runner_of(mine)
    again.run(count(), inputs(mine))
    assert said.lines == ["  01_count            cached  2 of 3 rows kept"]


def test_other_settings_rounds_and_names_share_nothing(source: Path, mine: Path) -> None:
    runner, said = runner_of(mine, share_with=(source,))
    runner.run(count(add=2), inputs(mine))
    runner.round(2).run(count(), inputs(mine))
    assert [line for line in said.lines if "shared" in line] == []


@pytest.mark.parametrize(
    ("damaged", "words"),
    [
        ("total.txt", r"02_count/total.txt: is damaged"),
        ("checkpoint/inner/weights", "02_count/checkpoint: is damaged"),
        ("manifest.json", "its digest is another"),
    ],
)
def test_a_damaged_source_is_not_shared_and_said(source: Path, mine: Path, damaged: str, words: str) -> None:
    file = source / "round-01" / "02_count" / damaged
    file.write_bytes(file.read_bytes().replace(b"w", b"v").replace(b"4", b"5"))  # the size is the same
    runner, said = runner_of(mine, share_with=(source,))
    made = runner.run(count(), inputs(mine))
    assert said.lines[1].startswith("  not shared: ")
    assert words in said.lines[1]
    assert made.total.path.read_text() == "4"
    manifest = read_manifest(mine / "round-01" / "01_count")
    assert manifest is not None
    assert "taken_from" not in manifest.facts


def test_a_whole_one_of_a_second_run_is_taken_where_the_firsts_is_damaged(source: Path, mine: Path) -> None:
    whole = shutil.copytree(source, source.with_name("whole"))
    (source / "round-01" / "02_count" / "total.txt").unlink()
    runner, said = runner_of(mine, share_with=(source, whole))
    runner.run(count(), inputs(mine))
    assert "not shared" in said.lines[1]
    assert said.lines[2].endswith("shared  from whole, 2 of 3 rows kept")


def test_outputs_of_another_version_are_not_shared(source: Path, mine: Path) -> None:
    runner, said = runner_of(mine, share_with=(source,))

    def run(config: CountConfig, inputs: CountInputs, ctx: StageContext) -> OtherOutputs:
        (ctx.dir / "sum.txt").write_text("4")
        return OtherOutputs(sum=ctx.artifact("sum.txt"))

    runner.run(Stage("count", CountInputs, OtherOutputs, lambda recipe: CountConfig(), run), inputs(mine))
    assert "another version of alignloop published it, with other outputs" in said.lines[1]


def test_copies_where_the_disk_has_no_links(source: Path, mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_link(*paths: object) -> None:
        raise OSError("other device")

    monkeypatch.setattr(os, "link", no_link)
    runner, said = runner_of(mine, share_with=(source,))
    made = runner.run(count(), inputs(mine))
    assert "shared" in said.lines[-1]
    assert not made.total.path.samefile(source / "round-01" / "02_count" / "total.txt")
    assert digest_of(made.checkpoints[0].path) == digest_of(source / "round-01" / "02_count" / "checkpoint")


def test_links_that_a_kill_left_are_nobodys_work(source: Path, mine: Path) -> None:
    """A stage that went on with them would write into the other run's files."""
    partial = mine / "round-01" / "01_count.partial"
    partial.mkdir(parents=True)
    os.link(source / "round-01" / "02_count" / "total.txt", partial / "total.txt")
    runner, _ = runner_of(mine)
    made = runner.run(count(), inputs(mine))
    assert made.total.path.read_text() == (source / "round-01" / "02_count" / "total.txt").read_text() == "4"
    assert verify_run(source, progress=QuietProgress())[1] == []


def test_work_under_way_gives_way_to_what_is_shared(source: Path, mine: Path) -> None:
    partial = mine / "round-01" / "01_count.partial"
    partial.mkdir(parents=True)
    (partial / "half.txt").write_text("half done")
    runner, _ = runner_of(mine, share_with=(source,))
    runner.run(count(), inputs(mine))
    assert not partial.exists()
    assert not (mine / "round-01" / "01_count" / "half.txt").exists()


def test_drift_is_refused_whatever_another_run_has(source: Path, mine: Path) -> None:
    runner_of(mine)[0].run(count(add=7), inputs(mine))
    with pytest.raises(DriftError, match=r"config\.add: 7 -> 1"):
        runner_of(mine, share_with=(source,))[0].run(count(), inputs(mine))
    rebuilt, said = runner_of(mine, share_with=(source,), rebuild=True)
    rebuilt.run(count(), inputs(mine))
    assert "shared" in said.lines[-1]
    assert [stage.dir.name for stage in published_stages(mine, 1)] == ["01_count"]
