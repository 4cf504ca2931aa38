"""One run with all rounds at every tracker: what TensorBoard's own reader shows, and what a resume adds."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from alignloop.errors import RunDirError
from alignloop.records import RoundRow
from alignloop.training.run_trackers import (
    curve_of,
    known_identity,
    names_with_tensorboard,
    open_run_tracker,
    round_figures,
    run_of,
    track_round,
)
from alignloop.training.trackers import Trackers, open_trackers

needs_tensorboard = pytest.mark.skipif(find_spec("tensorboard") is None, reason="tensorboard is not installed")


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "resolved.json").write_text("{}")
    return tmp_path / "run"


def stage_dir(run_dir: Path, name: str, *, num_steps: int | None = None) -> Path:
    """A stage's folder: published with so many steps, or at work."""
    folder = run_dir / (name if num_steps is not None else f"{name}.partial")
    folder.mkdir(parents=True)
    if num_steps is not None:
        (folder / "train_log.jsonl").write_text("{}\n" * num_steps)
    return folder


def opened(folder: Path, name: str, *, names: tuple[str, ...] = ()) -> Trackers:
    return open_trackers(names, out_dir=folder, run_name=name, config={"learning_rate": 0.5})


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Tag -> (step, value) as TensorBoard shows the one run in a folder."""
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

    shown = EventMultiplexer(size_guidance={"scalars": 0}).AddRunsFromDirectory(str(folder))
    shown.Reload()
    (run,) = shown.Runs()
    tags = shown.Runs()[run]["scalars"]
    # By step: files that one process begins within a second are read in the order of their names, .10 before .9.
    return {tag: sorted((event.step, event.value) for event in shown.Scalars(run, tag)) for tag in tags}


def row(number: int, **more: object) -> RoundRow:
    values = {
        "round": number, "policy": "p", "metrics": {"ifeval/mean": 0.25 * number}, "stderr": {},
        "reward_model": {}, "rows": {"prune_kept": 3}, "seconds": {"training": 1.5},
    }  # fmt: skip
    return RoundRow.model_validate(values | more)


def test_a_folder_that_is_no_round_is_not_counted(run_dir: Path) -> None:
    stage_dir(run_dir, "round-01/02_train_reward", num_steps=3)
    stage_dir(run_dir, "round-01.before/02_train_reward", num_steps=5)
    stage = stage_dir(run_dir, "round-02/02_train_reward")
    assert curve_of(stage, "round-02/02_train_reward").offset == 3


def test_where_a_training_belongs(run_dir: Path, tmp_path: Path) -> None:
    stage = stage_dir(run_dir, "round-02/02_train_reward")
    assert run_of(stage, "round-02/02_train_reward") == run_dir
    assert run_of(stage / "variant-01", "round-02/02_train_reward/variant-01") == run_dir
    assert run_of(tmp_path / "alone.partial", "round-01/alone") is None
    assert run_of(tmp_path, "") is None


def test_curves_go_on_where_the_rounds_before_ended(run_dir: Path) -> None:
    stage_dir(run_dir, "round-01/02_train_reward", num_steps=3)
    stage_dir(run_dir, "round-02/02_train_reward", num_steps=4)
    stage_dir(run_dir, "round-02/11_train_dpo", num_steps=100)
    third = stage_dir(run_dir, "round-03/02_train_reward")
    assert (curve_of(third, "round-03/02_train_reward").group, curve_of(third, "round-03/02_train_reward").offset) == (
        "train_reward",
        7,
    )
    # A stage that is trained again does not count itself, nor what came after it.
    assert curve_of(run_dir / "round-02/02_train_reward", "round-02/02_train_reward").offset == 3
    stage_dir(run_dir, "round-01/08_train_sft/variant-02", num_steps=5)
    variant = curve_of(run_dir / "round-02/08_train_sft.partial/variant-02", "round-02/08_train_sft/variant-02")
    assert (variant.group, variant.offset) == ("train_sft/variant-02", 5)


def test_figures_of_a_round() -> None:
    assert round_figures(row(1, measures={"stop_rate": 1.0})) == {
        "benchmarks": {"ifeval/mean": 0.25},
        "measures": {"stop_rate": 1.0},
        "rows": {"prune_kept": 3.0},
        "seconds": {"training": 1.5},
    }


@needs_tensorboard
def test_tensorboard_is_told_though_nobody_names_it(run_dir: Path) -> None:
    assert names_with_tensorboard([]) == ["tensorboard"]
    assert names_with_tensorboard(["wandb", "tensorboard", "wandb"]) == ["wandb", "tensorboard"]
    first = stage_dir(run_dir, "round-01/02_train_reward")
    trackers = opened(first, "round-01/02_train_reward")
    trackers.log(1, {"loss": 0.75})
    trackers.log(2, {"loss": 0.5, "eval_accuracy": 0.625, "grad_norm": float("nan")})
    trackers.close()
    (first / "train_log.jsonl").write_text("{}\n{}\n")
    first.rename(first.with_suffix(""))
    track_round(run_dir, row(1), names=(), say=pytest.fail)
    second = opened(stage_dir(run_dir, "round-02/02_train_reward"), "round-02/02_train_reward")
    second.log(1, {"loss": 0.25})
    second.close()
    track_round(run_dir, row(2), names=(), say=pytest.fail)
    assert scalars(run_dir / "tensorboard") == {
        "train_reward/loss": [(1, 0.75), (2, 0.5), (3, 0.25)],
        "train_reward/eval_accuracy": [(2, 0.625)],
        "benchmarks/ifeval/mean": [(1, 0.25), (2, 0.5)],
        "rows/prune_kept": [(1, 3.0), (2, 3.0)],
        "seconds/training": [(1, 1.5), (2, 1.5)],
    }


@needs_tensorboard
def test_a_resume_tells_nothing_twice(run_dir: Path) -> None:
    folder = stage_dir(run_dir, "round-01/02_train_reward")
    killed = opened(folder, "round-01/02_train_reward")
    for step in (1, 2, 3):
        killed.log(step, {"loss": 4.0 - step})  # and never closed
    resumed = opened(folder, "round-01/02_train_reward")
    for step in (2, 3, 4):
        resumed.log(step, {"loss": 4.0 - step})
    resumed.close()
    for _ in range(2):
        track_round(run_dir, row(1), names=(), say=pytest.fail)
    shown = scalars(run_dir / "tensorboard")
    assert shown["train_reward/loss"] == [(1, 3.0), (2, 2.0), (3, 1.0), (4, 0.0)]
    assert shown["benchmarks/ifeval/mean"] == [(1, 0.25)]
    # A round that came out otherwise is told anew.
    track_round(run_dir, row(1, metrics={"ifeval/mean": 0.75}), names=(), say=pytest.fail)
    assert scalars(run_dir / "tensorboard")["benchmarks/ifeval/mean"] == [(1, 0.25), (1, 0.75)]


@needs_tensorboard
def test_outside_a_run_nothing_is_told_unasked(tmp_path: Path) -> None:
    opened(tmp_path, "round-01/alone").close()
    assert list(tmp_path.iterdir()) == []


@needs_tensorboard
def test_a_tracker_that_fails_is_said_and_tried_again(run_dir: Path) -> None:
    (run_dir / "tensorboard").write_text("in the way")
    said: list[str] = []
    track_round(run_dir, row(1), names=(), say=said.append)
    assert len(said) == 1
    assert "tracker tensorboard: " in said[0]
    assert "round 1 stands in rounds.jsonl" in said[0]
    (run_dir / "tensorboard").unlink()
    track_round(run_dir, row(1), names=(), say=pytest.fail)
    assert scalars(run_dir / "tensorboard")["benchmarks/ifeval/mean"] == [(1, 0.25)]


@needs_tensorboard
@pytest.mark.parametrize("content", [b"\xff{", b"[" * 100_000, b"[1]", b'{"tensorboard": 3}'])
def test_what_cannot_be_read_of_what_was_told_is_told_again(run_dir: Path, content: bytes) -> None:
    (run_dir / "trackers").mkdir()
    (run_dir / "trackers" / "rounds.json").write_bytes(content)
    track_round(run_dir, row(1), names=(), say=pytest.fail)
    assert list(json.loads((run_dir / "trackers" / "rounds.json").read_text())["tensorboard"]) == ["1"]


@needs_tensorboard
def test_a_file_where_the_trackers_folder_should_be_is_said(run_dir: Path) -> None:
    (run_dir / "trackers").touch()
    said: list[str] = []
    track_round(run_dir, row(1), names=(), say=said.append)
    assert len(said) == 1
    assert "trackers" in said[0]
    assert "round 1 stands in rounds.jsonl" in said[0]


def test_a_damaged_name_of_the_run_at_a_tracker_is_named(run_dir: Path) -> None:
    (run_dir / "trackers").mkdir()
    (run_dir / "trackers" / "wandb.json").write_text("{")
    with pytest.raises(RunDirError, match=r"wandb\.json: does not name a run at wandb .* remove it"):
        known_identity(run_dir, "wandb")


def test_wandb_goes_on_in_the_same_run(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for number in (1, 2):
        track_round(run_dir, row(number), names=("wandb",), say=pytest.fail)
    identity = json.loads((run_dir / "trackers" / "wandb.json").read_text())["id"]
    folders = sorted((run_dir / "trackers" / "wandb").glob("offline-run-*"))
    assert len(folders) >= 1
    assert {folder.name.rpartition("-")[2] for folder in folders} == {identity}


def test_mlflow_goes_on_in_the_same_run(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    for number in (1, 2):
        track_round(run_dir, row(number, metrics={"gsm8k/exact_match,strict": 0.5}), names=("mlflow",), say=pytest.fail)
    identity = json.loads((run_dir / "trackers" / "mlflow.json").read_text())["id"]
    history = mlflow.tracking.MlflowClient().get_metric_history(identity, "benchmarks/gsm8k/exact_match_strict")
    assert [(point.step, point.value) for point in history] == [(1, 0.5), (2, 0.5)]
    assert len(mlflow.search_runs(search_all_experiments=True)) == 1


def test_trackio_goes_on_in_the_same_run(run_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("trackio", reason="trackio is not installed")
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from alignloop.training.run_trackers import open_run_tracker\n"
        "tracker = open_run_tracker('trackio', Path(sys.argv[1]))\n"
        "tracker.log(int(sys.argv[2]), {'ifeval/mean': 0.5}, group='benchmarks', axis='round')\n"
        "tracker.close()\n"
    )
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio")}
    for number in ("1", "2"):
        subprocess.run([sys.executable, "-c", program, str(run_dir), number], env=environment, check=True)
    name = f"run-{json.loads((run_dir / 'trackers' / 'trackio.json').read_text())['id']}"
    import sqlite3

    (database,) = (tmp_path / "trackio").rglob("alignloop*.db")
    with sqlite3.connect(database) as connection:
        found = connection.execute("select run_name, metrics from metrics").fetchall()
    assert {run for run, _ in found} == {name}
    assert sorted(json.loads(values)["round"] for _, values in found) == [1, 2]


def test_no_tracker_is_left_open_by_a_failure(run_dir: Path) -> None:
    shutil.rmtree(run_dir)
    with pytest.raises(KeyError):
        open_run_tracker("paper", run_dir)
