"""A run directory damaged in any way: a verb says it in a line and exits with 2, or does without what is damaged."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from alignloop.artifacts import Artifact
from alignloop.config import load_recipe
from alignloop.data.jsonl import dump_jsonl
from alignloop.engines.base import Engine
from alignloop.loop.rounds import ingest_inputs
from alignloop.progress import QuietProgress
from alignloop.records import Message, PreferenceRow, RoundRow, Source
from alignloop.run_dir.layout import enter, locked
from alignloop.run_dir.manifest import ArtifactRecord, Manifest
from alignloop.run_dir.reader import forget_rounds, write_rounds
from alignloop.stages import ingest
from alignloop.stages.runner import StageRunner

SMALL = {
    "engine": {"name": "transformers", "max_model_len": 384},
    "evaluate": {"include_path": "quickstart"},
    "sample": {"max_tokens": 64},
    **{stage: {"max_length": 384} for stage in ("reward", "sft", "dpo")},
}
DEEP = b"[" * 100_000
LONG = "n" * 300
MANIFEST = "round-00/01_ingest/manifest.json"
ROWS = "round-01/01_collect/preferences.jsonl"
Damage = Callable[[Path], None]


def publish(run_dir: Path, number: int, name: str, rows: list[PreferenceRow]) -> None:
    """A stage made from something else than what the recipe asks for: no verb goes on to a model from there."""
    folder = run_dir / f"round-{number:02d}" / name
    folder.mkdir(parents=True)
    dump_jsonl(folder / "preferences.jsonl", rows)
    made = Artifact.of(folder / "preferences.jsonl")
    record = ArtifactRecord(path="preferences.jsonl", digest=made.digest, rows=made.rows)
    manifest = Manifest(
        stage=name[3:], round=number, fingerprint="x", config={}, inputs={}, outputs={"preferences": record},
        counts={"in": 1, "kept": 1, "dropped": 0}, metrics={}, seed=0, versions={}, started="", ended="", seconds={},
    )  # fmt: skip
    (folder / "manifest.json").write_text(manifest.model_dump_json())


def round_row(number: int) -> RoundRow:
    metrics = {"ifeval/mean": 0.5}
    return RoundRow(round=number, policy="p", metrics=metrics, stderr={}, reward_model={}, rows={}, seconds={})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ingested rows, a base of another run, and two rounds' batches."""
    folder = tmp_path_factory.mktemp("damage")
    row = {"prompt": "Name river {}.", "chosen": "River {}.", "rejected": "No."}
    lines = [json.dumps({key: text.format(n) for key, text in row.items()}) for n in range(12)]
    (folder / "rows.jsonl").write_text("\n".join(lines))
    (folder / "mine.yaml").write_text(json.dumps({"preferences": str(folder / "rows.jsonl"), "name": "mine", **SMALL}))
    recipe = load_recipe(folder / "mine.yaml")
    run_dir = folder / "run"
    with locked(run_dir):
        enter(run_dir, recipe, rebuild=False)
        stages = StageRunner(recipe, run_dir, cast(Engine, None), QuietProgress())
        stages.run(ingest.STAGE, ingest_inputs(recipe))
    for number, name in ((0, "02_base"), (1, "01_collect"), (2, "01_collect")):
        kept = PreferenceRow(
            id=f"row-{number}", messages=[Message(role="user", content="Hi")], chosen="Yes.", rejected="No.",
            strength="better", source=Source(file="/x/rows.jsonl", line=number + 1),
        )  # fmt: skip
        publish(run_dir, number, name, [kept])
    write_rounds(run_dir, [round_row(0), round_row(1)])
    (run_dir / "differences.json").write_text('{"rounds": []}')
    (run_dir / "final").mkdir()
    (run_dir / "final" / "config.json").write_text('{"model_type": "llama"}')
    return folder


def replaced(name: str, how: str | bytes) -> Damage:
    def damage(run_dir: Path) -> None:
        path = run_dir / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        if isinstance(how, bytes):
            path.write_bytes(how)
        elif how == "folder":
            path.mkdir()
        elif how == "pipe":
            os.mkfifo(path)
        elif how == "loop":
            path.symlink_to(path.name)
        else:
            assert how == "gone"

    return damage


def edited(name: str, *keys: str, value: object) -> Damage:
    def damage(run_dir: Path) -> None:
        values = json.loads((run_dir / name).read_text())
        inner = values
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value
        (run_dir / name).write_text(json.dumps(values))

    return damage


def cut(name: str) -> Damage:
    def damage(run_dir: Path) -> None:
        data = (run_dir / name).read_bytes()
        (run_dir / name).write_bytes(data[: len(data) // 2])

    return damage


def added(name: str) -> Damage:
    return lambda run_dir: (run_dir / name).mkdir(parents=True)


ODD = {"not UTF-8": b"\xff\xfe{}\x80", "deep": DEEP, "null": b"null", "list": b"[]"}
KINDS = {"folder": "folder", "pipe": "pipe", "loop": "loop", "gone": "gone"}
DAMAGES: dict[str, Damage] = {
    **{f"{name}: {kind}": replaced(name, how)
       for name in ("resolved.json", MANIFEST) for kind, how in {**ODD, **KINDS}.items()},
    **{f"{name}: {kind}": replaced(name, how)
       for name in ("rounds.jsonl", ROWS, "differences.json", "verified.json")
       for kind, how in {"deep": DEEP, **KINDS}.items()},
    **{f"{name}: cut": cut(name) for name in ("resolved.json", "rounds.jsonl", MANIFEST, ROWS)},
    **{f"run.lock: {how[:9]!r}": replaced("run.lock", how) for how in (*KINDS, b"\xff\x00 99999999") if how != "gone"},
    **{f"{name}: {how}": replaced(name, how)
       for name in ("round-01", "round-01/01_collect", "final", "report.html", "recipe.yaml")
       for how in ("loop", "pipe")},
    **{f"recipe {name}: {value!r}": edited("resolved.json", "recipe", name, value=value)
       for name, value in (("rounds", "six"), ("rounds", None), ("name", 7), ("collect", []), ("collect", "human"),
                           ("judge", 3), ("preferences", 1), ("best_metric", {"a": 1}), ("base", ["x"]))},
    "recipe: list": edited("resolved.json", "recipe", value=["a"]),
    "version: many digits": lambda run_dir: (run_dir / "resolved.json").write_text(
        '{"run_version": 1e400, "recipe": {}}') and None,
    **{f"output path {path[:12]!r}": edited(MANIFEST, "outputs", "preferences", "path", value=path)
       for path in (LONG, "a\0b", "../../../etc/passwd", "/etc/passwd", "")},
    **{f"manifest {name}: {value!r}": edited(MANIFEST, name, value=value)
       for name, value in (("outputs", []), ("counts", {"in": "x"}), ("seconds", None), ("manifest_version", "x"),
                           ("versions", {"torch": None}), ("inputs", []))},
    **{f"added {name!r}": added(name) for name in ("round-01.before", "round-1x", "round-²", "round-03/notes",
                                                  "round-02/02_" + "n" * 200)},
}  # fmt: skip


DONE_WITHOUT = (ROWS, *"rounds.jsonl differences.json verified.json round-01 final report recipe.yaml added".split())
"""What a run that goes on hardly looks at: one case of each is tried with it, for the time it takes."""


@pytest.fixture
def in_time() -> Iterator[None]:
    """A verb that waits for ever, at a pipe for example, is ended."""

    def stop(signum: int, frame: object) -> None:
        raise KeyboardInterrupt("the verb hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(40)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def looking(run_dir: Path) -> list[tuple[str | Path, ...]]:
    engine = ("--set", "engine.name=transformers", "--input")
    return [
        ("status", run_dir),
        ("status", run_dir, "--verify"),
        ("why", "row-1", run_dir),
        ("why", "rows.jsonl:2", run_dir),
        ("diff", run_dir, "1", "2"),
        ("inspect", f"{run_dir}:row-1"),
        ("inspect", run_dir / ROWS),
        ("report", run_dir),
        ("eval", run_dir / "none", "--config", run_dir, "--engine", "transformers"),
        ("stage", "select", "--out", run_dir.parent / "out", *engine, f"candidates={run_dir / ROWS}"),
        ("stage", "ingest", "--out", run_dir / "x", *engine, f"preferences={run_dir / ROWS}"),
    ]


def running(run_dir: Path, recipe: Path) -> list[tuple[str | Path, ...]]:
    return [(verb, recipe, "--run-dir", run_dir) for verb in ("plan", "run")]


QUICK = (": deep", ": pipe", "run.lock: 'folder'", f"output path {LONG[:12]!r}", "added 'round-1x'", "rounds: 'six'")


def cases() -> list[Any]:
    """One of each kind always; the others with the slow tests."""
    return [pytest.param(name, marks=() if name.endswith(QUICK) else pytest.mark.slow) for name in DAMAGES]


@pytest.mark.parametrize("name", cases())
def test_every_verb_on_a_damaged_run(alignloop, whole: Path, tmp_path: Path, name: str, in_time: None) -> None:
    shutil.copytree(whole, tmp_path / "d", dirs_exist_ok=True)
    run_dir = tmp_path / "d" / "run"
    DAMAGES[name](run_dir)
    verbs = looking(run_dir)
    if not name.startswith(DONE_WITHOUT) or name.endswith(("pipe", "loop")):
        verbs += running(run_dir, whole / "mine.yaml")
    for arguments in verbs:
        outcome = alignloop(*arguments)
        assert outcome.code in (0, 2), (arguments, outcome)
        assert "Traceback" not in outcome.err
        assert "disk is full" not in outcome.err
        if outcome.code == 2:
            assert outcome.err.strip(), arguments
            assert len(outcome.err.splitlines()[0]) < 700, outcome.err


def test_what_is_in_the_way_of_a_new_file_is_named(alignloop, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "d", dirs_exist_ok=True)
    run_dir = tmp_path / "d" / "run"
    DAMAGES["verified.json: folder"](run_dir)
    outcome = alignloop("run", whole / "mine.yaml", "--run-dir", run_dir)
    assert outcome.code == 2
    assert f"error: {run_dir}/verified.json: Is a directory" in outcome.err


def test_a_name_that_no_file_can_have(alignloop, whole: Path, tmp_path: Path) -> None:
    for arguments in [*looking(tmp_path / LONG / "run"), *running(tmp_path / LONG, whole / "mine.yaml")]:
        outcome = alignloop(*arguments)
        assert outcome.code == 2, (arguments, outcome)
        assert "no run lies here" in outcome.err or "File name too long" in outcome.err or "no such" in outcome.err, (
            outcome
        )
        assert len(outcome.err.splitlines()) <= 3, outcome.err


@pytest.mark.parametrize("lines", [b"\xff\xfe\x80\n", DEEP, b'{"round": 0, "poli', b"null\n"])
def test_the_rounds_file_is_written_anew_by_the_run(tmp_path: Path, lines: bytes) -> None:
    row = round_row(0)
    good = row.model_dump_json().encode() + b"\n"
    for there in (lines, good + lines):
        (tmp_path / "rounds.jsonl").write_bytes(there)
        write_rounds(tmp_path, [row])
        assert (tmp_path / "rounds.jsonl").read_bytes() == good
        (tmp_path / "rounds.jsonl").write_bytes(there)
        forget_rounds(tmp_path, 1)
        assert (tmp_path / "rounds.jsonl").read_bytes() == (good if there.startswith(good) else b"")
