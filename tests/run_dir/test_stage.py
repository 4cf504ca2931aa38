"""The interface of every stage: publish whole, take over what matches, refuse what does not."""

from __future__ import annotations

import errno
import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytest

from alignloop.artifacts import Artifact, derive_seed, digest_of, disk_errors_named
from alignloop.config.base import Section
from alignloop.config.recipe import Recipe
from alignloop.engines.base import Engine
from alignloop.errors import DataError, DiskFullError, DriftError, RunDirError
from alignloop.evaluation.comparing import read_differences
from alignloop.progress import QuietProgress
from alignloop.records import RoundRow
from alignloop.run_dir.manifest import read_manifest
from alignloop.run_dir.reader import read_rounds, write_rounds
from alignloop.run_dir.stage import Location, Stage, StageContext, run_stage
from alignloop.run_dir.stage import Outputs as StageOutputs
from alignloop.run_dir.verification import verify_run
from alignloop.stages.runner import StageRunner


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


def count(**config: int) -> Stage[CountConfig, CountInputs, CountOutputs]:
    return Stage("count", CountInputs, CountOutputs, lambda recipe: CountConfig(**config), count_rows)


COUNT = count()


def run_count(
    run_dir: Path, rows: Path, *, add: int = 1, rebuild: bool = False, stage: Stage[Any, Any, CountOutputs] = COUNT
) -> CountOutputs:
    return run_stage(
        stage,
        CountConfig(add=add),
        CountInputs(Artifact.of(rows)),
        location=Location(run_dir / "round-01" / "01_count", 1, 0),
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
        run_count(tmp_path, rows, stage=Stage("lose", CountInputs, CountOutputs, lambda recipe: CountConfig(), lose))


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


def test_a_manifest_that_cannot_be_read_is_not_called_damaged(
    tmp_path: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To remove a sound stage for the permissions of its file would cost its work."""
    first = run_count(tmp_path, rows)

    def refused(path: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patched:  # root may read everything
        patched.setattr(Path, "read_bytes", refused)
        with pytest.raises(RunDirError) as caught:
            run_count(tmp_path, rows)
    path = tmp_path / "round-01/01_count/manifest.json"
    assert str(caught.value) == f"{path}: cannot be read (Permission denied): make it readable, and run again"
    assert run_count(tmp_path, rows) == first


def test_a_manifest_with_one_other_digit_is_noticed(tmp_path: Path, rows: Path) -> None:
    first = run_count(tmp_path, rows)
    path = tmp_path / "round-01/01_count/manifest.json"
    text = path.read_text()
    assert '"share": 0.6666' in text
    path.write_text(text.replace('"share": 0.6666', '"share": 0.6766'))
    with pytest.raises(RunDirError, match=r"its digest is another\); remove .*01_count and run again"):
        run_count(tmp_path, rows)
    with pytest.raises(RunDirError, match="its digest is another"):
        verify_run(tmp_path, progress=QuietProgress())
    path.write_text(json.dumps(json.loads(text), indent=4))  # the same values, written otherwise
    assert run_count(tmp_path, rows) == first


def test_a_manifest_of_an_earlier_version_has_no_digest(tmp_path: Path, rows: Path) -> None:
    first = run_count(tmp_path, rows)
    path = tmp_path / "round-01/01_count/manifest.json"
    values = json.loads(path.read_text())
    del values["digest"]
    path.write_text(json.dumps(values))
    assert run_count(tmp_path, rows) == first


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e400"])
@pytest.mark.parametrize("field", ["metrics", "seconds"])
def test_a_number_that_is_none_is_refused_by_name(tmp_path: Path, rows: Path, field: str, number: str) -> None:
    run_count(tmp_path, rows)
    path = tmp_path / "round-01/01_count/manifest.json"
    values = json.loads(path.read_text())
    del values["digest"]
    values[field] = {"share": 12345}
    path.write_text(json.dumps(values).replace("12345", number))
    with pytest.raises(RunDirError, match=rf"{field}\.share: .* finite number\); remove .*01_count and run again"):
        run_count(tmp_path, rows)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, a device that is always full")  # noqa: PTH110
def test_full_disk_is_named_and_nothing_is_published(tmp_path: Path, rows: Path) -> None:
    def fill(config: CountConfig, inputs: CountInputs, ctx: StageContext) -> CountOutputs:
        (ctx.dir / "total.txt").symlink_to("/dev/full")
        (ctx.dir / "total.txt").write_text("x" * 10_000)
        raise AssertionError("unreachable: the write fails")

    with pytest.raises(DiskFullError, match=r"disk is full.*are free.*run the same command again"):
        run_count(tmp_path, rows, stage=Stage("fill", CountInputs, CountOutputs, lambda recipe: CountConfig(), fill))
    assert not (tmp_path / "round-01/01_count").exists()


def test_what_is_not_there_has_no_digest(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert digest_of(tmp_path / "empty").startswith("sha256:e3b0c44298fc1c149afbf4c8996fb924")  # SHA-256 of nothing
    with pytest.raises(DataError, match="none: no such file or folder"):
        digest_of(tmp_path / "none")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="pipe: is neither a file nor a folder"):
        digest_of(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(DataError, match=r"loop: cannot be read \(Too many levels of symbolic links\)"):
        Artifact.of(tmp_path / "loop")


FULL = "No space left on device"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, FULL, "/x/y"), "/x/y: the disk is full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "/x/y"), "/x/y: the disk quota is used up"),
        (Exception(f"Error while serializing: I/O error: {FULL} (os error 28)"), "the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", f"/x/{FULL}/y"), None),
        (DataError(f"rows.jsonl, line 1, field prompt: {FULL!r}"), None),
        (ValueError(f"{FULL}: a row that quotes it"), None),
        (RuntimeError(f"{FULL} is what the model wrote"), None),
    ],
)
def test_only_a_full_disk_is_called_full(tmp_path: Path, error: Exception, said: str | None) -> None:
    with pytest.raises(DiskFullError if said else type(error)) as raised, disk_errors_named(tmp_path):
        raise error
    assert said is None or said in str(raised.value)


def test_a_published_file_that_was_cut_short_or_removed_is_noticed(tmp_path: Path, rows: Path) -> None:
    total = run_count(tmp_path, rows).total.path
    total.write_text("4")
    with pytest.raises(RunDirError, match=r"total\.txt: holds 1 bytes, published were 15.*Remove .*01_count"):
        run_count(tmp_path, rows)
    total.unlink()
    with pytest.raises(RunDirError, match=r"total\.txt: is gone"):
        run_count(tmp_path, rows)


def seeded(name: str) -> Stage:
    def run(config: CountConfig, inputs: CountInputs, ctx: StageContext) -> CountOutputs:
        (ctx.dir / "total.txt").write_text(f"{ctx.name} {ctx.seed}")
        return CountOutputs(total=Artifact.of(ctx.dir / "total.txt"), parts=())

    return Stage(name, CountInputs, CountOutputs, lambda recipe: CountConfig(), run)


def runner_of(run_dir: Path, *, rebuild: bool = False) -> StageRunner:
    engine = cast(Engine, None)  # these stages use none
    return StageRunner(Recipe(preferences=("p",), seed=5), run_dir, engine, QuietProgress(), rebuild=rebuild)


def test_a_stage_alone_is_the_stage_in_the_run(tmp_path: Path, rows: Path) -> None:
    """Wherever it stands in its round, and whatever its folder is called."""
    inputs = CountInputs(Artifact.of(rows))
    first, third = runner_of(tmp_path / "one").round(1), runner_of(tmp_path / "two").round(1)
    for name in ("collect", "score"):
        third.run(seeded(name), inputs)
    one = first.run(seeded("sample"), inputs)
    two = third.run(seeded("sample"), inputs)
    again = third.run(seeded("sample"), inputs)
    alone = run_stage(
        seeded("sample"),
        CountConfig(),
        inputs,
        location=Location(tmp_path / "mine", 1, 5),
        engine=cast(Engine, None),
        progress=QuietProgress(),
    )
    assert two.total.path == tmp_path / "two/round-01/03_sample/total.txt"
    assert one.total.path.read_text() == two.total.path.read_text() == alone.total.path.read_text()
    manifests = [read_manifest(outputs.total.path.parent) for outputs in (one, two, alone)]
    assert len({manifest.fingerprint for manifest in manifests if manifest}) == 1
    # A second stage of the same name in the round draws otherwise; so does the same stage in another round.
    assert again.total.path.read_text() != two.total.path.read_text()
    later = runner_of(tmp_path / "one").round(2).run(seeded("sample"), inputs)
    assert later.total.path.read_text() != one.total.path.read_text()


def test_a_stage_of_the_old_seeds_says_that_it_is_the_seed(tmp_path: Path, rows: Path) -> None:
    run_count(tmp_path, rows)
    path = tmp_path / "round-01/01_count/manifest.json"
    values = json.loads(path.read_text())
    del values["digest"]  # an earlier version wrote none
    path.write_text(json.dumps({**values, "seed": derive_seed(0, 1, "01_count"), "fingerprint": "other"}))
    with pytest.raises(DriftError, match=r"- seed: \d+ -> \d+ \(an earlier alignloop derived it"):
        run_count(tmp_path, rows)


def test_rebuild_removes_what_was_built_on_it_and_nothing_else(tmp_path: Path, rows: Path) -> None:
    inputs = CountInputs(Artifact.of(rows))
    stages = runner_of(tmp_path)
    stages.round(99).run(COUNT, inputs)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    later = [tmp_path / "round-99/02_next", tmp_path / "round-99/02_next.partial", tmp_path / "round-100/01_count"]
    kept = [tmp_path / "round-98/01_count", tmp_path / "round-99/notes", tmp_path / "round-99.before/01_count"]
    for folder in [*later, *kept]:
        folder.mkdir(parents=True)
    (tmp_path / "round-99/zzz.txt").write_text("a note")
    (tmp_path / "round-101").symlink_to(elsewhere)
    runner_of(tmp_path, rebuild=True).round(99).run(count(add=2), inputs)
    assert not any(folder.exists() for folder in later)
    assert all(folder.exists() for folder in [*kept, elsewhere, tmp_path / "round-99/zzz.txt"])
    assert not (tmp_path / "round-101").exists()


def test_a_leaf_is_done_again_alone_and_a_round_that_has_ended_is_gone_on_with(tmp_path: Path, rows: Path) -> None:
    inputs, stages = CountInputs(Artifact.of(rows)), runner_of(tmp_path)
    leaf, other = (replace(count(add=add), name="leaf", is_leaf=True) for add in (0, 3))
    for number in (1, 2):
        stages.round(number).run(COUNT, inputs)
        assert stages.run_due(leaf, inputs, is_due=False) is None
    write_rounds(tmp_path, [round_line(number) for number in (0, 1, 2)])
    assert stages.back_to(1).run(leaf, inputs).total.path == tmp_path / "round-01/02_leaf/total.txt"
    drifting = runner_of(tmp_path).round(1)
    drifting.run(COUNT, inputs)
    with pytest.raises(DriftError, match=r"--rebuild to redo this stage alone\."):
        drifting.run(other, inputs)
    again = runner_of(tmp_path, rebuild=True).round(1)
    again.run(COUNT, inputs)
    assert again.run_due(other, inputs, is_due=False) is None
    assert again.run(other, inputs).total.path.read_text() != "4 resumed=False"
    assert (tmp_path / "round-02/01_count").is_dir()
    assert [row.round for row in read_rounds(tmp_path)] == [0, 1, 2]
    # Not due, but there: it is taken over.
    second = runner_of(tmp_path).round(1)
    second.run(COUNT, inputs)
    RUNS.clear()
    known = second.run_due(other, inputs, is_due=False)
    assert known is not None
    assert known.total.path == tmp_path / "round-01/02_leaf/total.txt"
    assert RUNS == []


def round_line(number: int) -> RoundRow:
    return RoundRow(round=number, policy="p", metrics={}, stderr={}, reward_model={}, rows={}, seconds={})


@pytest.mark.parametrize("how", ["rebuild", "by hand"])
def test_a_stage_that_runs_again_takes_the_rounds_lines_with_it(tmp_path: Path, rows: Path, how: str) -> None:
    inputs = CountInputs(Artifact.of(rows))
    stages = runner_of(tmp_path)
    for number in (0, 1, 2):
        stages.round(number).run(COUNT, inputs)
    write_rounds(tmp_path, [round_line(number) for number in (0, 1, 2)])
    entries = [{"round": 1, "against": 0}, {"round": 2, "against": 1}, {"round": 2, "against": 0}]
    (tmp_path / "differences.json").write_text(json.dumps({"rounds": entries}))
    stages.round(1).run(COUNT, inputs)
    assert len(read_rounds(tmp_path)) == 3
    if how == "by hand":
        shutil.rmtree(tmp_path / "round-02")
        stages.round(2).run(COUNT, inputs)
        assert [row.round for row in read_rounds(tmp_path)] == [0, 1]
        assert [entry.round for entry in read_differences(tmp_path)] == [1]
    else:
        runner_of(tmp_path, rebuild=True).round(1).run(count(add=3), inputs)
        assert [row.round for row in read_rounds(tmp_path)] == [0]
        assert read_differences(tmp_path) == []


def test_a_published_folder_without_its_manifest_is_found_before_the_stage_runs(tmp_path: Path, rows: Path) -> None:
    run_count(tmp_path, rows)
    (tmp_path / "round-01/01_count/manifest.json").unlink()
    RUNS.clear()
    with pytest.raises(RunDirError, match=r"01_count: lies there without a manifest\.json.*Remove .*01_count and run"):
        run_count(tmp_path, rows)
    assert RUNS == []
    shutil.rmtree(tmp_path / "round-01/01_count")
    (tmp_path / "round-01/01_count").mkdir()  # nothing is lost in an empty one
    assert run_count(tmp_path, rows).total.path.read_text() == "4 resumed=False"
