"""One flipped bit in a published file does not get far, and what is known to be whole is not read again."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest

from alignloop.artifacts import Artifact, digest_of, write_text
from alignloop.config import load_recipe
from alignloop.config.base import Section
from alignloop.config.recipe import Recipe
from alignloop.engines.base import Engine
from alignloop.errors import RunDirError
from alignloop.loop.final import publish_final
from alignloop.progress import QuietProgress
from alignloop.records import RoundRow
from alignloop.run_dir import verification
from alignloop.run_dir.layout import enter, locked
from alignloop.run_dir.manifest import read_manifest
from alignloop.run_dir.reader import read_rounds, write_rounds
from alignloop.run_dir.stage import Outputs as StageOutputs
from alignloop.run_dir.stage import Stage, StageContext
from alignloop.stages.runner import SMALL, StageRunner


class SizeConfig(Section):
    size: int = 10


@dataclass(frozen=True)
class NoInputs:
    pass


@dataclass(frozen=True)
class ModelInputs:
    models: tuple[Artifact, ...]


@dataclass(frozen=True, kw_only=True)
class ModelOutputs(StageOutputs):
    checkpoint: Artifact


def write_model(config: SizeConfig, inputs: NoInputs | ModelInputs, ctx: StageContext) -> ModelOutputs:
    folder = ctx.dir / "checkpoint"
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes(b"w" * config.size)
    (folder / "config.json").write_text("{}")
    (folder / "generation_config.json").write_text('{"eos_token_id": [7]}')
    return ModelOutputs(checkpoint=Artifact.of(folder))


class Listening(QuietProgress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def flip(path: Path, *, keep_time: bool = False) -> None:
    times = path.stat()
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    with path.open("r+b") as file:
        file.write(data)
    if keep_time:
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def round_row(number: int) -> RoundRow:
    policy, metrics = "round-01/01_train/checkpoint", {"ifeval/mean": 0.5}
    return RoundRow(round=number, policy=policy, metrics=metrics, stderr={}, reward_model={}, rows={}, seconds={})


def two_stages(run_dir: Path, *, size: int) -> tuple[Path, list[str]]:
    """A stage that trains and one that takes its model; returns the model, and the printed lines."""
    progress = Listening()
    stages = StageRunner(Recipe(preferences=("p",)), run_dir, cast(Engine, None), progress).round(1)
    sized = (ModelOutputs, lambda recipe: SizeConfig(size=size), write_model)
    trained = stages.run(Stage("train", NoInputs, *sized), NoInputs())
    stages.run(Stage("average", ModelInputs, *sized), ModelInputs((trained.checkpoint,)))
    return trained.checkpoint.path / "model.safetensors", progress.lines


@pytest.mark.parametrize("keep_time", [False, True])
def test_a_stage_does_not_take_a_large_file_that_is_damaged(tmp_path: Path, keep_time: bool) -> None:
    model, _ = two_stages(tmp_path, size=SMALL + 1)
    flip(model, keep_time=keep_time)
    two_stages(tmp_path, size=SMALL + 1)  # nothing takes it
    shutil.rmtree(tmp_path / "round-01" / "02_average")
    write_rounds(tmp_path, [round_row(1)])
    with pytest.raises(
        RunDirError, match=r"01_train/checkpoint: is damaged: .*Remove .*round-01/01_train and run again"
    ):
        two_stages(tmp_path, size=SMALL + 1)
    assert not (tmp_path / "round-01" / "02_average").exists()
    assert len(read_rounds(tmp_path)) == 1
    shutil.rmtree(tmp_path / "round-01" / "01_train")
    assert two_stages(tmp_path, size=SMALL + 1)[0].read_bytes()[5:6] == b"w"


def test_a_small_file_that_is_damaged_is_found_when_it_is_taken_over(tmp_path: Path) -> None:
    model, _ = two_stages(tmp_path, size=10)
    flip(model)
    with pytest.raises(RunDirError, match=r"01_train/checkpoint: is damaged"):
        two_stages(tmp_path, size=10)


def test_what_is_known_to_be_whole_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "WORTH_SAYING", 1)

    def num_reads() -> int:
        return sum("reading" in line for line in two_stages(tmp_path / "run", size=10)[1])

    assert [num_reads(), num_reads()] == [0, 0]  # made, then taken over as it was made
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "copy").rename(tmp_path / "run")
    assert [num_reads(), num_reads()] == [2, 0]  # other files: both stages' are read, once
    (tmp_path / "run" / "verified.json").write_text("[" * 100_000)
    assert [num_reads(), num_reads()] == [2, 0]


def make_final(run_dir: Path) -> tuple[Path, Path]:
    """A run of one round with its final model; that round's weights, and `final`."""
    with locked(run_dir):
        enter(run_dir, load_recipe({"preferences": "p.jsonl", "name": "mine"}), rebuild=False)
    model, _ = two_stages(run_dir, size=SMALL + 1)
    rows = [round_row(number) for number in (0, 1)]
    write_rounds(run_dir, rows)
    recipe = load_recipe({"preferences": "p.jsonl", "name": "mine"})
    return model, publish_final(run_dir, rows=rows, best=rows[1], recipe=recipe)


def test_a_damaged_policy_is_not_published(tmp_path: Path) -> None:
    model, final = make_final(tmp_path)
    before = (final / "README.md").stat().st_mtime_ns
    assert make_final(tmp_path)[1] == final
    kept = final / "README.md"
    flip(model, keep_time=True)
    assert kept.stat().st_mtime_ns > before
    before = kept.stat().st_mtime_ns
    with pytest.raises(RunDirError, match=r"01_train/checkpoint: is damaged"):
        make_final(tmp_path)
    assert kept.stat().st_mtime_ns == before


@pytest.mark.parametrize("moved", ["round-01", "round-01/01_train"])
def test_what_was_moved_to_another_disk_is_of_the_run(tmp_path: Path, moved: str) -> None:
    run_dir = tmp_path / "run"
    model, final = make_final(run_dir)
    (run_dir / moved).rename(tmp_path / "disk")
    (run_dir / moved).symlink_to(tmp_path / "disk")
    assert make_final(run_dir)[1] == final
    (final / "model.safetensors").unlink()
    flip(model)
    with pytest.raises(RunDirError, match=r"Remove .*/run/round-01/01_train and run again"):
        make_final(run_dir)


def test_status_verify_reads_everything(alignloop, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    model, final = make_final(run_dir)
    whole = alignloop("status", run_dir, "--verify")
    assert whole.code == 0, whole.err
    assert "all 2 outputs of its stages hold the bytes that were published" in whole.out
    listed = sorted(path for path in run_dir.rglob("*"))
    shutil.copyfile(model, run_dir / "aside")  # final is a link: now it is a copy that is as good
    (final / "model.safetensors").unlink()
    (run_dir / "aside").rename(final / "model.safetensors")
    assert alignloop("status", run_dir, "--verify").code == 0
    flip(final / "model.safetensors")
    (run_dir / "round-01/02_average/checkpoint/config.json").unlink()
    damaged = alignloop("status", run_dir, "--verify")
    assert damaged.code == 2
    first, second, advice = damaged.err.strip().split("\n")
    assert "02_average/checkpoint: is damaged: its bytes are not those that were published" in first
    assert "final: is damaged: its files are those of no round's policy" in second
    assert "Remove the folder of each stage named" in advice
    removed = run_dir / "round-01/02_average/checkpoint/config.json"
    assert sorted(path for path in run_dir.rglob("*")) == [path for path in listed if path != removed]
    (run_dir / "round-01/02_average/manifest.json").unlink()
    (run_dir / "round-01/03_notes").symlink_to("03_notes")
    lines = alignloop("status", run_dir, "--verify").err
    assert "round-01/02_average: lies there without a manifest.json" in lines
    assert "round-01/03_notes: lies there without a manifest.json" in lines
    shutil.rmtree(run_dir / "round-01")
    assert (
        "01_train/checkpoint: is gone, the policy of round 1 in rounds.jsonl"
        in alignloop("status", run_dir, "--verify").err
    )
    assert alignloop("status", tmp_path / "none", "--verify").code == 2


@pytest.mark.parametrize("kind", ["pipe", "link"])
def test_what_lies_beside_a_file_is_neither_waited_for_nor_written_through(tmp_path: Path, kind: str) -> None:
    aside, mine = tmp_path / "a.json.tmp", tmp_path / "mine"
    mine.write_text("mine")
    os.mkfifo(aside) if kind == "pipe" else aside.symlink_to(mine)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.alarm(20)
    try:
        write_text(tmp_path / "a.json", "{}")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert (tmp_path / "a.json").read_text() == "{}"
    assert mine.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "mine"]


def test_an_interrupted_look_at_a_large_checkpoint_ends_at_once(tmp_path: Path) -> None:
    for shard in range(1024):
        with (tmp_path / f"{shard}.safetensors").open("wb") as file:
            file.truncate(256 * 2**20)  # holds nothing: 256 GiB to read, minutes of it, and none on the disk
    before = time.process_time()
    threading.Timer(0.3, signal.raise_signal, (signal.SIGINT,)).start()
    with pytest.raises(KeyboardInterrupt):
        digest_of(tmp_path)
    assert time.process_time() - before < 15.0


@pytest.mark.parametrize("name", ["final", "final.partial", "final.before"])
@pytest.mark.parametrize("kind", ["file", "link to itself", "pipe"])
def test_final_replaces_whatever_lies_there(alignloop, tmp_path: Path, name: str, kind: str) -> None:
    run_dir = tmp_path / "run"
    _, final = make_final(run_dir)
    odd = run_dir / name
    if odd.exists():
        shutil.rmtree(odd)
    {"file": odd.touch, "pipe": lambda: os.mkfifo(odd), "link to itself": lambda: odd.symlink_to(odd.name)}[kind]()
    if name == "final":
        damaged = alignloop("status", run_dir, "--verify")
        assert damaged.code == 2
        assert "final: is damaged" in damaged.err
    make_final(run_dir)
    assert (final / "model.safetensors").is_file()
    assert not any(os.path.lexists(run_dir / f"final.{aside}") for aside in ("partial", "before"))
    assert alignloop("status", run_dir, "--verify").code == 0


def test_other_packages_than_a_stage_was_made_with_are_said_once(tmp_path: Path) -> None:
    two_stages(tmp_path, size=10)
    for name in ("01_train", "02_average"):
        path = tmp_path / "round-01" / name / "manifest.json"
        manifest = read_manifest(path.parent)
        assert manifest is not None
        versions = {**manifest.versions, "torch": "1.0"}
        path.write_text(manifest.model_copy(update={"versions": versions}).text())
    _, lines = two_stages(tmp_path, size=10)
    (note,) = [line for line in lines if "other packages" in line]
    now = manifest.versions["torch"]
    assert note == f"  note: other packages than when round-01/01_train was published: torch 1.0 -> {now}"
