"""Trackers of a training and of a whole run; TensorBoard's event files are read back with its own reader."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from alignloop.config.training import DpoConfig
from alignloop.errors import RunDirError, UserError
from alignloop.records import RoundRow
from alignloop.training.run_trackers import (
    Curve,
    curve_of,
    known_identity,
    names_with_tensorboard,
    round_figures,
    track_round,
)
from alignloop.training.trackers import TRACKERS, Trackers, check_trackers, open_trackers

needs_tensorboard = pytest.mark.skipif(find_spec("tensorboard") is None, reason="tensorboard is not installed")
RUN = "round-01/02_train_reward"
CONFIG = DpoConfig(learning_rate=3e-4, warmup_fraction=0.25).model_dump(mode="json")


def opened(folder: Path, *names: str, run_name: str = RUN) -> Trackers:
    return open_trackers(names, out_dir=folder, run_name=run_name, config=CONFIG, say=pytest.fail)


def test_names_are_those_transformers_knows() -> None:
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    assert set(TRACKERS) == set(INTEGRATION_TO_CALLBACK)


@pytest.mark.parametrize("name", sorted(TRACKERS))
def test_every_name_is_accepted_or_says_what_to_install(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBEFLOW_TRAINER_SERVER_URL", raising=False)
    modules = TRACKERS[name]
    if modules and all(find_spec(module) for module in modules):
        check_trackers([name])
        return
    with pytest.raises(UserError, match=f"pip install {modules[0]}" if modules else "KUBEFLOW_TRAINER_SERVER_URL"):
        check_trackers([name])


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    assert find_spec("neptune") is None
    with pytest.raises(UserError) as caught:
        opened(tmp_path, "tensorbord", "neptune", "paper")
    message = str(caught.value)
    assert "unknown tracker 'tensorbord' - did you mean 'tensorboard'?" in message
    assert "neptune needs neptune, not installed here - pip install neptune" in message
    assert "unknown tracker 'paper' - known: azure_ml, clearml" in message
    assert list(tmp_path.iterdir()) == []


@needs_tensorboard
def test_checking_imports_nothing_heavy_and_takes_no_folder_for_a_package(tmp_path: Path) -> None:
    """wandb leaves a folder `wandb` where it ran, and Python finds it as a package without files."""
    (tmp_path / "neptune").mkdir()
    program = (
        "import sys\n"
        "from alignloop.errors import UserError\n"
        "from alignloop.training.trackers import check_trackers\n"
        "check_trackers(['tensorboard'])\n"
        "try:\n    check_trackers(['neptune'])\nexcept UserError as error:\n    print(error)\n"
        "print(sorted({'torch', 'transformers', 'tensorboard', 'accelerate'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "pip install neptune" in done.stdout
    assert done.stdout.endswith("[]\n")


def test_no_tracker_writes_nothing(tmp_path: Path) -> None:
    trackers = opened(tmp_path)
    trackers.log(1, {"loss": 1.0})
    trackers.close()
    assert list(tmp_path.iterdir()) == []


@needs_tensorboard
def test_tensorboard_holds_what_was_logged_and_the_stages_own_config(tmp_path: Path) -> None:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accelerator = Accelerator()  # at work, it is left alone
    before = dict(AcceleratorState._shared_state)
    trackers = opened(tmp_path, "tensorboard")
    trackers.log(1, {"loss": 0.75, "grad_norm": 2.0})
    trackers.log(2, {"loss": 0.5, "grad_norm": 1.0, "eval_accuracy": 0.625})
    trackers.close()
    assert scalars(tmp_path / "tensorboard") == {
        "train/loss": [(1, 0.75), (2, 0.5)],
        "train/grad_norm": [(1, 2.0), (2, 1.0)],
        "train/eval_accuracy": [(2, 0.625)],
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == [".told", "tensorboard"]
    (event,) = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Tensors("train/config/text_summary")
    text = event.tensor_proto.string_val[0].decode()
    assert '"learning_rate": 0.0003' in text  # not TrainingArguments' 5e-5
    assert '"warmup_fraction": 0.25' in text
    assert "per_device_train_batch_size" not in text
    assert before
    assert dict(AcceleratorState._shared_state) == before
    assert accelerator.num_processes == 1


@needs_tensorboard
def test_a_tracker_that_cannot_start_is_an_error_where_it_was_asked_for(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("not a folder")
    with pytest.raises(UserError, match=r"training\.trackers: tensorboard cannot start: .*Set it up, or leave it out"):
        opened(tmp_path, "tensorboard")


def test_a_tracker_that_fails_is_left_out_and_said(tmp_path: Path) -> None:
    class Failing:
        def log(self, step: int, metrics: object, *, group: str, axis: str) -> None:
            raise OSError("out of ink")

        def describe(self, name: str, values: object) -> None: ...

        def close(self) -> None:
            raise AssertionError("it is left out")

    said: list[str] = []
    trackers = Trackers({"paper": (Failing(), Curve(tmp_path, "train"))}, folder=tmp_path, say=said.append)
    for step in (1, 2):
        trackers.log(step, {"loss": 1.0})
    trackers.close()
    assert said == ["  tracker paper: OSError: out of ink; left out from here on, train_log.jsonl has it all"]


@pytest.mark.parametrize("name", ["codecarbon", "clearml"])
def test_transformers_callbacks_see_the_stages_config_and_the_steps(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their arguments stand in for TrainingArguments: the stage's own values, and its defaults for the rest."""
    from dataclasses import fields

    from transformers import TrainerCallback
    from transformers.integrations import integration_utils

    seen: list[Any] = []

    class Noted(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            shown = {field.name for field in fields(args)}
            assert {"learning_rate", "warmup_fraction", "beta"} <= shown
            assert args.to_dict()["learning_rate"] == args.to_sanitized_dict()["learning_rate"] == 3e-4
            seen.append((args.run_name, args.save_steps, os.environ["CLEARML_TASK"]))

        def on_log(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            seen.append((state.global_step, more["logs"]))

        def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            seen.append("end")

    monkeypatch.setitem(TRACKERS, name, ())
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, name, Noted)
    monkeypatch.delenv("CLEARML_TASK", raising=False)
    trackers = opened(tmp_path, name)
    trackers.log(1, {"loss": 0.5})
    trackers.close()
    assert seen == [(RUN, 500, RUN), (1, {"loss": 0.5}), "end"]
    assert "CLEARML_TASK" not in os.environ


# ---- one run with all rounds


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


def test_where_a_training_belongs(run_dir: Path, tmp_path: Path) -> None:
    stage = stage_dir(run_dir, "round-02/02_train_reward")
    assert curve_of(stage, "round-02/02_train_reward").folder == run_dir
    assert curve_of(stage / "variant-01", "round-02/02_train_reward/variant-01").folder == run_dir
    for folder, name in ((tmp_path / "alone.partial", "round-01/alone"), (tmp_path, "")):
        assert curve_of(folder, name) == Curve(folder, "train")


def test_curves_go_on_where_the_rounds_before_ended(run_dir: Path) -> None:
    stage_dir(run_dir, "round-01/02_train_reward", num_steps=3)
    stage_dir(run_dir, "round-01.before/02_train_reward", num_steps=50)  # a folder that is no round
    stage_dir(run_dir, "round-02/02_train_reward", num_steps=4)
    stage_dir(run_dir, "round-02/11_train_dpo", num_steps=100)
    third = stage_dir(run_dir, "round-03/02_train_reward")
    assert curve_of(third, "round-03/02_train_reward") == Curve(run_dir, "train_reward", 7)
    # A stage that is trained again does not count itself, nor what came after it.
    assert curve_of(run_dir / "round-02/02_train_reward", "round-02/02_train_reward").offset == 3
    stage_dir(run_dir, "round-01/08_train_sft/variant-02", num_steps=5)
    variant = curve_of(run_dir / "round-02/08_train_sft.partial/variant-02", "round-02/08_train_sft/variant-02")
    assert variant == Curve(run_dir, "train_sft/variant-02", 5)


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
    trackers = opened(first)
    trackers.log(1, {"loss": 0.75})
    trackers.log(2, {"loss": 0.5, "eval_accuracy": 0.625, "grad_norm": float("nan")})
    trackers.close()
    (first / "train_log.jsonl").write_text("{}\n{}\n")
    first.rename(first.with_suffix(""))
    track_round(run_dir, row(1), names=(), say=pytest.fail)
    second = opened(stage_dir(run_dir, "round-02/02_train_reward"), run_name="round-02/02_train_reward")
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
    killed = opened(folder)
    for step in (1, 2, 3):
        killed.log(step, {"loss": 4.0 - step})  # and never closed
    resumed = opened(folder)
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
    opened(tmp_path, run_name="round-01/alone").close()
    assert list(tmp_path.iterdir()) == []


@needs_tensorboard
@pytest.mark.parametrize("in_the_way", ["tensorboard", "trackers"])
def test_a_tracker_that_fails_is_said_and_tried_again(run_dir: Path, in_the_way: str) -> None:
    (run_dir / in_the_way).touch()
    (said,) = said_of(run_dir)
    assert "tracker tensorboard: " in said
    assert "round 1 stands in rounds.jsonl" in said
    (run_dir / in_the_way).unlink()
    assert said_of(run_dir) == []
    assert (1, 0.25) in scalars(run_dir / "tensorboard")["benchmarks/ifeval/mean"]


def said_of(run_dir: Path) -> list[str]:
    said: list[str] = []
    track_round(run_dir, row(1), names=(), say=said.append)
    return said


@needs_tensorboard
@pytest.mark.parametrize("content", [b"\xff{", b"[" * 100_000, b"[1]", b'{"tensorboard": 3}'])
def test_what_cannot_be_read_of_what_was_told_is_told_again(run_dir: Path, content: bytes) -> None:
    (run_dir / "trackers").mkdir()
    (run_dir / "trackers" / "rounds.json").write_bytes(content)
    track_round(run_dir, row(1), names=(), say=pytest.fail)
    assert list(json.loads((run_dir / "trackers" / "rounds.json").read_text())["tensorboard"]) == ["1"]


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
        "from alignloop.training.run_trackers import RUN_TRACKERS\n"
        "tracker = RUN_TRACKERS['trackio'](Path(sys.argv[1]))\n"
        "tracker.log(int(sys.argv[2]), {'ifeval/mean': 0.5}, group='benchmarks', axis='round')\n"
        "tracker.close()\n"
    )
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio")}
    for number in ("1", "2"):
        subprocess.run([sys.executable, "-c", program, str(run_dir), number], env=environment, check=True)
    name = f"run-{json.loads((run_dir / 'trackers' / 'trackio.json').read_text())['id']}"
    (database,) = (tmp_path / "trackio").rglob("alignloop*.db")
    with sqlite3.connect(database) as connection:
        found = connection.execute("select run_name, metrics from metrics").fetchall()
    assert {run for run, _ in found} == {name}
    assert sorted(json.loads(values)["round"] for _, values in found) == [1, 2]
