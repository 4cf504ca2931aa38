"""Stages and outputs are found by the names in their manifests; rows by their id, as JSON writes it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from alignloop.config import load_recipe
from alignloop.data.jsonl import dump_jsonl
from alignloop.errors import DataError, RunDirError
from alignloop.records import DroppedRow, Message, PromptRow, Source
from alignloop.run_dir.layout import enter, locked
from alignloop.run_dir.manifest import ArtifactRecord, Manifest
from alignloop.run_dir.reader import RunReader, all_published, begun_stage, ids_of, published_stage, published_stages

ROWS = [
    PromptRow(id=row_id, messages=[Message(role="user", content="Größe 7?")], source=Source(file="x.jsonl", line=1))
    for row_id in ("one", 'Größe "7"', "three")
]


def publish(run_dir: Path, number: int, folder: str, outputs: dict[str, Sequence[str]]) -> Path:
    path = run_dir / f"round-{number:02d}" / folder
    path.mkdir(parents=True)
    records = {
        name: [ArtifactRecord(path=file, digest="sha256:0") for file in files] for name, files in outputs.items()
    }
    for files in outputs.values():
        for file in files:
            dump_jsonl(path / file, ROWS)
    manifest = Manifest(
        stage=folder[3:], round=number, fingerprint="f", config={}, inputs={}, outputs=records, counts={}, metrics={},
        seed=0, versions={}, started="", ended="", seconds={},
    )  # fmt: skip
    (path / "manifest.json").write_text(manifest.text())
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run_dir = tmp_path / "runs" / "mine"
    with locked(run_dir):
        enter(run_dir, load_recipe("quickstart"), rebuild=False)
    publish(run_dir, 0, "01_ingest", {"prompts": ["a.jsonl"]})
    publish(run_dir, 1, "01_collect", {})
    for folder in ("03_average", "09_average"):
        publish(run_dir, 1, folder, {"checkpoint": ["model"]})
    (run_dir / "round-01" / "10_build_pairs.partial").mkdir()
    (run_dir / "round-01" / "notes").mkdir()
    return run_dir


def test_stages_by_round_name_and_occurrence(run: Path) -> None:
    reader = RunReader(run)
    assert reader.rounds == [0, 1]
    assert [stage.dir.name for stage in published_stages(run, 1)] == ["01_collect", "03_average", "09_average"]
    averages = [reader.stage(1, "average", occurrence=occurrence) for occurrence in (1, 2, 3)]
    assert [stage and stage.dir.name for stage in averages] == ["03_average", "09_average", None]
    assert reader.stage(7, "collect") is None
    assert begun_stage(run, 1) == "10_build_pairs"
    assert begun_stage(run, 0) is None
    assert all_published(run, [1], stage="collect")
    assert not all_published(run, [0, 1], stage="collect")
    assert not all_published(run, [], stage="collect")
    assert not all_published(None, [1], stage="collect")


def test_outputs_by_name_whatever_their_files_are_called(run: Path) -> None:
    reader = RunReader(run)
    assert [file.name for file in reader.files(0, "ingest", "prompts")] == ["a.jsonl"]
    assert reader.files(0, "ingest", "no such output") == reader.files(0, "collect", "prompts") == []
    assert list(reader.rows(0, "ingest", "prompts", PromptRow)) == ROWS
    assert reader.row(0, "ingest", "prompts", PromptRow, 'Größe "7"') == ROWS[1]
    assert reader.row(0, "ingest", "prompts", PromptRow, "Größe") is None  # stands in all of them, and is no id
    assert reader.where("ingest", "prompts", PromptRow, "three") == (0, ROWS[2])
    assert list(ids_of(reader.files(0, "ingest", "prompts")[0])) == [row.id for row in ROWS]


def test_a_line_that_is_no_such_row_is_named(run: Path) -> None:
    with pytest.raises(DataError, match=r"a\.jsonl, line 1, field .*written by another alignloop, or changed since"):
        RunReader(run).row(0, "ingest", "prompts", DroppedRow, "one")


def test_only_the_manifest_that_is_asked_for_is_read(run: Path) -> None:
    (run / "round-01" / "03_average" / "manifest.json").write_text("{")
    assert published_stage(run, 1, "collect") is not None
    with pytest.raises(RunDirError, match=r"03_average/manifest\.json: damaged"):
        published_stages(run, 1)


def test_where_no_run_lies_those_near_are_named(run: Path) -> None:
    for folder in (run.parent, run.parent / "yours"):
        with pytest.raises(RunDirError, match=rf"{folder}: no run lies here; runs there: {run}"):
            RunReader(folder)
    with pytest.raises(RunDirError, match="no run lies here; begin one"):
        RunReader(run / "round-01", hint="begin one")
