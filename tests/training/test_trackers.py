"""The trackers of one training; TensorBoard's event files are read back with its own reader."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from alignloop.config.training import DpoConfig
from alignloop.errors import UserError
from alignloop.training.trackers import TRACKERS, Trackers, check_trackers, open_trackers

RUN = "round-01/02_train_reward"
CONFIG = DpoConfig(learning_rate=3e-4, warmup_fraction=0.25).model_dump(mode="json")


@pytest.fixture(scope="module", autouse=True)
def _needs_tensorboard() -> None:
    pytest.importorskip("tensorboard", reason="the extra `trackers` is not installed")


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Tag -> (step, value) as TensorBoard would show them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    return {
        tag: [(event.step, event.value) for event in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]
    }


def test_names_are_those_transformers_knows() -> None:
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    assert set(TRACKERS) == set(INTEGRATION_TO_CALLBACK)


@pytest.mark.parametrize("name", sorted(TRACKERS))
def test_every_name_is_accepted_or_says_what_to_install(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBEFLOW_TRAINER_SERVER_URL", raising=False)
    needs = TRACKERS[name]
    if needs.modules and all(find_spec(module) for module in needs.modules):
        check_trackers([name])
        return
    expected = f"pip install {needs.packages}" if needs.packages else "KUBEFLOW_TRAINER_SERVER_URL"
    with pytest.raises(UserError, match=expected):
        check_trackers([name])


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    assert find_spec("neptune") is None
    with pytest.raises(UserError) as caught:
        open_trackers(["tensorbord", "neptune", "paper"], out_dir=tmp_path, run_name=RUN, config={})
    message = str(caught.value)
    assert "unknown tracker 'tensorbord' - did you mean 'tensorboard'?" in message
    assert "neptune needs neptune, not installed here - pip install neptune" in message
    assert "unknown tracker 'paper' - known: azure_ml, clearml" in message
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_the_same_name_is_no_package(tmp_path: Path) -> None:
    """wandb leaves a folder `wandb` where it ran, and Python finds it as a package without files."""
    (tmp_path / "neptune").mkdir()
    program = (
        "from alignloop.training.trackers import check_trackers\n"
        "from alignloop.errors import UserError\n"
        "try:\n    check_trackers(['neptune'])\nexcept UserError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "pip install neptune" in done.stdout


def test_checking_imports_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "from alignloop.training.trackers import check_trackers\n"
        "check_trackers(['tensorboard'])\n"
        "print(sorted({'torch', 'transformers', 'tensorboard', 'accelerate'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_no_tracker_writes_nothing(tmp_path: Path) -> None:
    trackers = open_trackers([], out_dir=tmp_path, run_name=RUN, config={})
    trackers.log(1, {"loss": 1.0})
    trackers.close()
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_holds_what_was_logged(tmp_path: Path) -> None:
    trackers = open_trackers(["tensorboard"], out_dir=tmp_path, run_name=RUN, config=CONFIG)
    trackers.log(1, {"loss": 0.75, "grad_norm": 2.0})
    trackers.log(2, {"loss": 0.5, "grad_norm": 1.0, "eval_accuracy": 0.625})
    trackers.close()
    assert scalars(tmp_path / "tensorboard") == {
        "train/loss": [(1, 0.75), (2, 0.5)],
        "train/grad_norm": [(1, 2.0), (2, 1.0)],
        "train/eval_accuracy": [(2, 0.625)],
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == [".told", "tensorboard"]


def test_tensorboard_shows_the_stages_own_config(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trackers = open_trackers(["tensorboard"], out_dir=tmp_path, run_name=RUN, config=CONFIG)
    trackers.log(1, {"loss": 0.75})
    trackers.close()
    accumulator = EventAccumulator(str(tmp_path / "tensorboard"))
    accumulator.Reload()
    (event,) = accumulator.Tensors("train/config/text_summary")
    text = event.tensor_proto.string_val[0].decode()
    assert '"learning_rate": 0.0003' in text  # not TrainingArguments' 5e-5
    assert '"warmup_fraction": 0.25' in text
    assert "per_device_train_batch_size" not in text


def test_a_resumed_stage_goes_on_without_duplicates(tmp_path: Path) -> None:
    """Killed after step 3 with a resume point at step 1: steps 2 and 3 are trained again, and not told again."""
    killed = open_trackers(["tensorboard"], out_dir=tmp_path, run_name=RUN, config=CONFIG)
    for step, loss in ((1, 4.0), (2, 3.0), (3, 2.0)):
        killed.log(step, {"loss": loss})  # and never closed
    resumed = open_trackers(["tensorboard"], out_dir=tmp_path, run_name=RUN, config=CONFIG)
    for step, loss in ((2, 3.0), (3, 2.0), (4, 1.0)):
        resumed.log(step, {"loss": loss})
    resumed.close()
    assert scalars(tmp_path / "tensorboard")["train/loss"] == [(1, 4.0), (2, 3.0), (3, 2.0), (4, 1.0)]


def test_the_accelerator_at_work_is_left_alone(tmp_path: Path) -> None:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    accelerator = Accelerator()
    before = dict(AcceleratorState._shared_state)
    trackers = open_trackers(["tensorboard"], out_dir=tmp_path, run_name=RUN, config=CONFIG)
    trackers.log(1, {"loss": 1.0})
    trackers.close()
    assert before
    assert dict(AcceleratorState._shared_state) == before
    assert accelerator.num_processes == 1


def test_a_tracker_that_cannot_start_is_an_error_where_it_was_asked_for(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("not a folder")
    with pytest.raises(UserError, match=r"training\.trackers: tensorboard cannot start: .*Set it up, or leave it out"):
        open_trackers(["tensorboard"], out_dir=tmp_path, run_name=RUN, config={})


def test_a_tracker_that_fails_is_left_out_and_said(tmp_path: Path) -> None:
    class Failing:
        name = "paper"

        def log(self, step: int, metrics: object) -> None:
            raise OSError("out of ink")

        def close(self) -> None:
            raise AssertionError("it is left out")

    said: list[str] = []
    trackers = Trackers([Failing()], folder=tmp_path, say=said.append)
    for step in (1, 2):
        trackers.log(step, {"loss": 1.0})
    trackers.close()
    assert said == ["  tracker paper: OSError: out of ink; left out from here on, train_log.jsonl has it all"]
