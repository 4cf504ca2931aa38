"""The door of every stage: publish whole, take over what matches, refuse what does not."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from alignloop.artifacts import Artifact, Manifest, digest_of, read_manifest
from alignloop.config.base import Section
from alignloop.errors import DiskFullError, DriftError, RunDirError
from alignloop.progress import QuietProgress
from alignloop.stage import Outputs as StageOutputs
from alignloop.stage import Place, Stage, StageContext, run_stage


class CountConfig(Section):
    add: int = 1


@dataclass(frozen=True)
class CountInputs:
    rows: Artifact
    more: tuple[Artifact, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CountOutputs(StageOutputs):
    total: Artifact
    parts: tuple[Artifact, ...]


RUNS: list[str] = []


def count_rows(config: CountConfig, inputs: CountInputs, ctx: StageContext) -> CountOutputs:
    RUNS.append(ctx.dir.name)
    half = ctx.dir / "half.txt"
    resumed = half.exists()
    half.write_text("half done")
    if config.add < 0 and not resumed:
        raise RuntimeError("killed in the middle")
    (ctx.dir / "total.txt").write_text(f"{(inputs.rows.rows or 0) + config.add} resumed={resumed}")
    (ctx.dir / "part").mkdir(exist_ok=True)
    (ctx.dir / "part" / "a").write_text("a")
    return CountOutputs(
        total=Artifact.of(ctx.dir / "total.txt"),
        parts=(Artifact.of(ctx.dir / "part"),),
        counts={"in": 3, "kept": 2, "dropped": 1},
        metrics={"share": 2 / 3},
    )


COUNT = Stage("count", CountInputs, CountOutputs, count_rows)


def run_count(run_dir: Path, rows: Path, *, add: int = 1, rebuild: bool = False) -> CountOutputs:
    return run_stage(
        COUNT,
        CountConfig(add=add),
        CountInputs(Artifact.of(rows)),
        place=Place(run_dir / "round-01" / "01_count", 1, 0),
        engine=None,  # type: ignore[arg-type]  # this stage uses none
        progress=QuietProgress(),
        rebuild=rebuild,
    )


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    file.write_text("{}\n{}\n{}\n")
    RUNS.clear()
    return file


def test_published_once_and_taken_over(tmp_path: Path, rows: Path) -> None:
    first = run_count(tmp_path, rows)
    second = run_count(tmp_path, rows)
    assert first == second
    assert RUNS == ["01_count.partial"]
    assert first.total.path == tmp_path / "round-01/01_count/total.txt"
    assert first.total.path.read_text() == "4 resumed=False"
    assert first.parts[0].path.is_dir()
    manifest = read_manifest(tmp_path / "round-01" / "01_count")
    assert manifest is not None
    assert manifest.outputs["total"].digest == digest_of(first.total.path)
    assert manifest.inputs["rows"]["path"] == "rows.jsonl"


def test_artifacts_are_absolute_also_in_a_relative_run_directory(
    tmp_path: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`runs/<name>`, the default, is relative."""
    monkeypatch.chdir(tmp_path)
    for outputs in (run_count(Path("runs/a"), rows), run_count(Path("runs/a"), rows)):
        assert outputs.total.path == tmp_path / "runs/a/round-01/01_count/total.txt"
    assert not (tmp_path / "round-01/01_count.partial").exists()


def test_drift_names_the_changed_field_and_is_refused(tmp_path: Path, rows: Path) -> None:
    run_count(tmp_path, rows)
    with pytest.raises(DriftError, match=r"config\.add: 1 -> 5"):
        run_count(tmp_path, rows, add=5)
    assert run_count(tmp_path, rows, add=5, rebuild=True).total.path.read_text().startswith("8")


def test_changed_input_is_drift(tmp_path: Path, rows: Path) -> None:
    run_count(tmp_path, rows)
    rows.write_text("{}\n")
    with pytest.raises(DriftError, match=r"input\.rows\.digest"):
        run_count(tmp_path, rows)


def test_rebuild_removes_what_was_built_on_it(tmp_path: Path, rows: Path) -> None:
    run_count(tmp_path, rows)
    later = [tmp_path / "round-01/02_next", tmp_path / "round-02/01_count"]
    earlier = tmp_path / "round-00/01_base"
    for folder in [*later, earlier]:
        folder.mkdir(parents=True)
    run_count(tmp_path, rows, add=2, rebuild=True)
    assert not any(folder.exists() for folder in later)
    assert earlier.exists()


def test_half_done_work_is_kept_for_the_same_inputs_only(tmp_path: Path, rows: Path) -> None:
    with pytest.raises(RuntimeError, match="killed"):
        run_count(tmp_path, rows, add=-1)
    assert read_manifest(tmp_path / "round-01" / "01_count") is None
    assert run_count(tmp_path, rows, add=-1).total.path.read_text() == "2 resumed=True"
    with pytest.raises(RuntimeError, match="killed"):
        run_count(tmp_path / "other", rows, add=-1)
    assert run_count(tmp_path / "other", rows, add=1).total.path.read_text() == "4 resumed=False"


def test_rows_that_vanish_are_a_defect(tmp_path: Path, rows: Path) -> None:
    def lose(config: CountConfig, inputs: CountInputs, ctx: StageContext) -> CountOutputs:
        outputs = count_rows(config, inputs, ctx)
        return CountOutputs(total=outputs.total, parts=(), counts={"in": 3, "kept": 1, "dropped": 1})

    with pytest.raises(AssertionError, match="rows vanished"):
        run_stage(
            Stage("lose", CountInputs, CountOutputs, lose),
            CountConfig(),
            CountInputs(Artifact.of(rows)),
            place=Place(tmp_path / "round-01" / "01_lose", 1, 0),
            engine=None,  # type: ignore[arg-type]
            progress=QuietProgress(),
        )


def test_newer_manifest_is_refused(tmp_path: Path, rows: Path) -> None:
    run_count(tmp_path, rows)
    path = tmp_path / "round-01/01_count/manifest.json"
    path.write_text(path.read_text().replace('"manifest_version": 1', '"manifest_version": 99'))
    with pytest.raises(RunDirError, match="newer alignloop"):
        run_count(tmp_path, rows)


def test_broken_manifest_says_what_to_do(tmp_path: Path, rows: Path) -> None:
    run_count(tmp_path, rows)
    (tmp_path / "round-01/01_count/manifest.json").write_text("{")
    with pytest.raises(RunDirError, match=r"remove .*01_count"):
        run_count(tmp_path, rows)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, a device that is always full")  # noqa: PTH110
def test_full_disk_is_named_and_nothing_is_published(tmp_path: Path, rows: Path) -> None:
    def fill(config: CountConfig, inputs: CountInputs, ctx: StageContext) -> CountOutputs:
        (ctx.dir / "total.txt").symlink_to("/dev/full")
        (ctx.dir / "total.txt").write_text("x" * 10_000)
        raise AssertionError("unreachable: the write fails")

    with pytest.raises(DiskFullError, match=r"disk is full.*are free.*run the same command again"):
        run_stage(
            Stage("fill", CountInputs, CountOutputs, fill),
            CountConfig(),
            CountInputs(Artifact.of(rows)),
            place=Place(tmp_path / "round-01" / "01_fill", 1, 0),
            engine=None,  # type: ignore[arg-type]
            progress=QuietProgress(),
        )
    assert not (tmp_path / "round-01/01_fill").exists()


def test_manifest_round_trips() -> None:
    manifest = Manifest(
        stage="s",
        round=1,
        fingerprint="f",
        config={"a": 1},
        inputs={"rows": {"digest": "sha256:0", "path": "rows.jsonl"}},
        outputs={},
        counts={"in": 1},
        metrics={"loss": 0.5},
        seed=1,
        versions={},
        started="",
        ended="",
        seconds={},
    )
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest


def test_a_published_file_that_was_cut_short_or_removed_is_noticed(tmp_path: Path, rows: Path) -> None:
    total = run_count(tmp_path, rows).total.path
    total.write_text("4")
    with pytest.raises(RunDirError, match=r"total\.txt: holds 1 bytes, published were 15.*Remove .*01_count"):
        run_count(tmp_path, rows)
    total.unlink()
    with pytest.raises(RunDirError, match=r"total\.txt: is gone"):
        run_count(tmp_path, rows)
