"""Training on two processes: the curve of one, whole checkpoints and resume points, faults, and none left behind.

A start of two processes costs ten seconds of imports, so that each start here does several jobs.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from alignloop.config.training import LoraConfig, SftConfig, TrainingConfig
from alignloop.errors import DiskFullError, ModelError, TrainingError, UserError
from alignloop.packing.groups import PromptGroup
from alignloop.packing.layout import pack
from alignloop.progress import QuietProgress
from alignloop.training import launch
from alignloop.training.accelerate_file import accelerate_file, check_layer_classes, check_processes
from alignloop.training.job import TrainJob
from alignloop.training.launch import ReadProgress, TrainingWatch, run_launched
from alignloop.training.loop import TrainMetrics, run_here, train
from alignloop.training.new_tokens import NewToken, save_new_tokens
from alignloop.training.processes import this_process
from alignloop.training.rows import shares
from alignloop.training.worker import WrittenProgress

MakeGroups = Callable[..., list[PromptGroup]]
MakeJob = Callable[..., TrainJob]
KNOBS: dict[str, Any] = {
    "dtype": "float32",
    "batch_groups": 8,
    "epochs": 2,
    "learning_rate": 3e-3,
    "rows_per_microbatch": 2,
    "row_tokens": 32,
    "num_checkpoints": 2,
    "average_span": 0.5,
    "save_every_steps": 2,
}


class Notes(QuietProgress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line.strip())


@pytest.fixture
def job(run: Any) -> MakeJob:
    return partial(run.job, **KNOBS)


def adapted(make: MakeJob, objective: Any, out_dir: Path) -> TrainJob:
    """A job with an adapter, and the rows of three tokens beside it."""
    plain = make(objective, out_dir, lora=LoraConfig(rank=4))
    start = Path(shutil.copytree(plain.checkpoint, out_dir.with_name(f"{out_dir.name}-start")))
    save_new_tokens(start, [NewToken(id=index, token=f"w{index}", state="added") for index in (5, 40, 45)])
    reference = None if plain.reference is None else start
    return replace(plain, checkpoint=start, reference=reference)


def log_rows(out_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out_dir / "train_log.jsonl").read_text().splitlines()]


def run_alone(job: TrainJob, out_dir: Path) -> TrainMetrics:
    return run_here(replace(job, out_dir=out_dir), processes=this_process())


def assert_same_curve(ours: Path, theirs: Path) -> None:
    for row, other in zip(log_rows(ours), log_rows(theirs), strict=True):
        assert row.keys() == other.keys()
        for name in row.keys() - {"tokens_per_second"}:
            # At step 1 policy and reference are one model: which of a pair is better there is a matter of rounding.
            if (row["step"], name) != (1, "accuracy"):
                assert row[name] == pytest.approx(other[name], abs=1e-4, rel=1e-4), (row["step"], name)


def assert_same_checkpoints(ours: Path, theirs: Path) -> None:
    """The same files, and weights that differ by rounding alone."""
    for path in sorted((theirs / "checkpoints").iterdir()):
        own = ours / "checkpoints" / path.name
        assert sorted(file.name for file in own.iterdir()) == sorted(file.name for file in path.iterdir())
        assert (own / "config.json").read_bytes() == (path / "config.json").read_bytes()
        weights, expected = load_file(own / "model.safetensors"), load_file(path / "model.safetensors")
        assert weights.keys() == expected.keys()
        for name, tensor in weights.items():
            torch.testing.assert_close(tensor, expected[name], atol=2e-4, rtol=0)


# ---- two processes


def test_two_processes_train_as_one(tmp_path: Path, job: MakeJob) -> None:
    jobs = [job(name, tmp_path / f"two-{name}") for name in ("reward", "sft", "dpo")]
    jobs.append(adapted(job, "dpo", tmp_path / "two-adapted"))
    results = run_launched(jobs, training=TrainingConfig(num_processes=2), progress=QuietProgress())
    for each, result in zip(jobs, results, strict=True):
        alone = tmp_path / each.out_dir.name.replace("two", "one")
        expected = run_alone(each, alone)
        assert_same_curve(each.out_dir, alone)
        assert_same_checkpoints(each.out_dir, alone)
        assert result.metrics == pytest.approx(expected.metrics, abs=0.05)
        for metrics, others in zip(result.checkpoint_metrics, expected.checkpoint_metrics, strict=True):
            assert metrics == pytest.approx(others, abs=1e-4, rel=1e-4)
        assert not (each.out_dir / "resume").exists()
        assert not (each.out_dir / "launch").exists()


@pytest.mark.slow
def test_sharded_over_two_processes_with_faults_and_resumed(
    tmp_path: Path, job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    sharded = TrainingConfig(num_processes=2, accelerate="fsdp2")
    with monkeypatch.context() as patch:
        patch.setattr(launch, "WORKER", "faulty_worker")
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        _faults(tmp_path, job, sharded)
    # What the poisoned training left goes on: sharded over two, whole in one.
    shutil.copytree(tmp_path / "poisoned", tmp_path / "one-resumed")
    jobs = [
        job("sft", tmp_path / "poisoned", rows_per_microbatch=64),
        job("sft", tmp_path / "two-whole", rows_per_microbatch=64),
        job("reward", tmp_path / "two-reward", gradient_checkpointing=True),
        job("dpo", tmp_path / "two-dpo"),
        adapted(job, "sft", tmp_path / "two-adapted"),
    ]
    notes = Notes()
    run_launched(jobs, training=sharded, progress=notes)
    assert [line for line in notes.lines if "LoRA" not in line] == ["sft: going on after step 4 of 6"]
    for path in sorted((tmp_path / "two-whole" / "checkpoints").iterdir()):
        resumed = tmp_path / "poisoned" / "checkpoints" / path.name / "model.safetensors"
        assert resumed.read_bytes() == (path / "model.safetensors").read_bytes()
    run_alone(jobs[1], tmp_path / "one-resumed")
    assert_same_curve(tmp_path / "one-resumed", tmp_path / "two-whole")
    assert_same_checkpoints(tmp_path / "one-resumed", tmp_path / "two-whole")
    for each in jobs[1:]:
        alone = tmp_path / each.out_dir.name.replace("two", "one")
        run_alone(each, alone)
        assert_same_curve(each.out_dir, alone)
        assert_same_checkpoints(each.out_dir, alone)


def _faults(tmp_path: Path, job: MakeJob, sharded: TrainingConfig) -> None:
    """A job in bfloat16; one short of memory in the second process; one with a loss that is not finite there."""
    jobs = [
        job("dpo", tmp_path / "bfloat16", run_name="bfloat16", dtype="bfloat16"),
        job("sft", tmp_path / "crowded", run_name="crowded", rows_per_microbatch=4, row_tokens=16),
        job("sft", tmp_path / "poisoned", run_name="poisoned", rows_per_microbatch=64),
    ]
    notes = Notes()
    with pytest.raises(TrainingError, match=r"^sft: loss is nan at step 5 of 6, rows: row-\d+") as caught:
        run_launched(jobs, training=sharded, progress=notes)
    assert len(str(caught.value).split(", row-")) < 8, "the rows of one process, not of the whole step"
    assert notes.lines == [
        "out of memory in one of 2 processes: starting them again with 2 rows per microbatch",
    ]
    run_alone(jobs[1], tmp_path / "roomy")
    assert_same_curve(tmp_path / "crowded", tmp_path / "roomy")
    run_alone(job("dpo", tmp_path), tmp_path / "exact")
    first, exact = log_rows(tmp_path / "bfloat16")[0], log_rows(tmp_path / "exact")[0]
    assert first["dpo_loss"] == pytest.approx(0.6931, abs=2e-2)
    assert first["loss"] == pytest.approx(exact["loss"], rel=2e-2)
    assert first["grad_norm"] != pytest.approx(exact["grad_norm"], rel=1e-5), "it ran in float32"
    weights = load_file(tmp_path / "bfloat16" / "checkpoints" / "step-000006" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


# ---- none left behind


def pids_of(folder: Path) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and str(folder).encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def wait_for(condition: Callable[[], Any], *, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.1)
    return False


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where a job that never ends has its launch folder; what a failed test leaves is ended."""
    folder = (tmp_path / "endless" / "launch").resolve()
    yield folder
    for pid in pids_of(folder):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_killed_parent_leaves_no_process(tmp_path: Path, job: MakeJob, folder: Path) -> None:
    endless = job("sft", tmp_path / "endless", epochs=100_000)
    arguments = {"training": TrainingConfig(num_processes=2), "progress": QuietProgress()}
    # A fork has torch imported already; it only starts the processes and waits.
    parent = multiprocessing.get_context("fork").Process(target=run_launched, args=([endless],), kwargs=arguments)
    parent.start()
    assert wait_for(lambda: (endless.out_dir / "train_log.jsonl").is_file(), seconds=120)
    assert len(pids_of(folder)) == 3, "accelerate's launcher and two workers"
    os.kill(parent.pid or 0, signal.SIGKILL)
    parent.join()
    assert wait_for(lambda: not pids_of(folder), seconds=20)


def test_ctrl_c_leaves_no_process(tmp_path: Path, job: MakeJob, folder: Path) -> None:
    def interrupt() -> None:
        wait_for(lambda: pids_of(folder), seconds=30)
        time.sleep(1.0)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        run_launched(
            [job("sft", tmp_path / "endless", epochs=100_000)],
            training=TrainingConfig(num_processes=2),
            progress=QuietProgress(),
        )
    assert not pids_of(folder)


@pytest.mark.slow
def test_a_stopped_worker_is_said_and_leaves_with_the_others(
    tmp_path: Path, job: MakeJob, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless, notes = job("sft", tmp_path / "endless", epochs=100_000), Notes()
    monkeypatch.setattr(launch, "TrainingWatch", partial(TrainingWatch, said_after=2.0))
    stopped: list[int] = []

    def stop_one() -> None:
        wait_for(lambda: (endless.out_dir / "train_log.jsonl").is_file(), seconds=120)
        stopped.append(max(pids_of(folder)))
        os.kill(stopped[0], signal.SIGSTOP)
        wait_for(lambda: notes.lines, seconds=30)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    threading.Thread(target=stop_one, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        run_launched([endless], training=TrainingConfig(num_processes=2), progress=notes)
    assert f"training: process {stopped[0]} is stopped (`kill -CONT {stopped[0]}` lets it go on)" in notes.lines[0]
    assert wait_for(lambda: not pids_of(folder), seconds=5)


WORKER = "import time\nwhile True: {}"
LAUNCHER = (
    "import subprocess, sys, time\n"
    "child = subprocess.Popen([sys.executable, '-c', sys.argv[1]], start_new_session=True)\n"
    "print(child.pid, flush=True)\n"
    "child.wait()\n"
)


@pytest.mark.parametrize("work", ["pass", "time.sleep(1)"])
def test_a_watch_tells_who_is_stopped_from_who_waits(work: str) -> None:
    """The worker is in a session of its own, as the launcher starts it."""
    command = [sys.executable, "-c", LAUNCHER, WORKER.format(work)]
    said: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout is not None
        worker = int(launcher.stdout.readline())
        watch = TrainingWatch(launcher.pid, say=said.append, said_after=2.5)

        def looked() -> list[str]:
            watch.look()
            return said

        try:
            if work == "pass":
                assert not wait_for(looked, seconds=4.5)
                os.kill(worker, signal.SIGSTOP)
                assert wait_for(looked, seconds=20)
                os.kill(worker, signal.SIGCONT)
                assert wait_for(lambda: looked()[1:], seconds=20)
                assert said[0].startswith(f"  training: process {worker} is stopped (`kill -CONT {worker}` lets it go")
                assert said[1:] == [f"  training: process {worker} is no longer stopped"]
            else:
                assert wait_for(looked, seconds=20)
                assert said[0].startswith(f"  training: none of its processes ({worker}) has used processor time for")
        finally:
            os.kill(worker, signal.SIGKILL)


# ---- shares


def test_shares_are_even_and_in_order(make_groups: MakeGroups) -> None:
    bundles = pack(make_groups(40, completions=2), row_tokens=32)
    given = shares(bundles, count=3)
    assert sorted(map(id, bundles)) == sorted(id(bundle) for share in given for bundle in share)
    tokens = [sum(bundle.num_tokens for bundle in share) for share in given]
    # Longest first to whoever has least: no share is ahead of another by more than the longest bundle.
    assert max(tokens) - min(tokens) <= max(bundle.num_tokens for bundle in bundles)
    for share in given:
        places = [bundles.index(bundle) for bundle in share]
        assert places == sorted(places)
    # One bundle cannot be shared: two of three processes have nothing of their own.
    assert [len(share) for share in shares(bundles[:1], count=3)] == [1, 0, 0]


def test_progress_passes_through_a_file(tmp_path: Path) -> None:
    class Calls(Notes):
        def task(self, label: str, *, total: int, unit: str) -> Any:
            self.lines.append(f"{label} {total} {unit}")
            return super().task(label, total=total, unit=unit)

    written, calls = WrittenProgress(tmp_path / "lines"), Calls()
    with closing(ReadProgress(tmp_path / "lines", calls)) as read:
        read.pass_on()
        with written.task("train", total=3, unit="steps") as advance:
            advance(2)
            written.say("half-way")
            read.pass_on()
            assert calls.lines == ["train 3 steps", "half-way"]
            with (tmp_path / "lines").open("a") as file:
                file.write('{"say": "cut')
            read.pass_on()
            assert len(calls.lines) == 2
            with (tmp_path / "lines").open("a") as file:
                file.write(' short"}\n')
        read.pass_on()
    assert calls.lines[2:] == ["cut short"]


# ---- what cannot be

# What is wrong with a file of one's own is found by the plan: `tests/golden` has every finding.


@pytest.mark.parametrize(("name", "kind"), [("ddp", "MULTI_GPU"), ("fsdp2", "FSDP")])
def test_the_bundled_files_are_accelerates(name: str, kind: str) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    file = accelerate_file(TrainingConfig(num_processes=2, accelerate=name))
    assert file.sharded == (name == "fsdp2")
    assert str(load_config_from_file(str(file.path)).distributed_type.value) == kind
    assert file.path.parent.name == "accelerate", "in a folder of their own, so that they are no recipes"


def test_what_accelerate_config_writes_is_taken(tmp_path: Path, policy: Path) -> None:
    """A file of accelerate's own, as its dialog for two sharded processes writes it."""
    from accelerate.commands.config.config_args import ClusterConfig

    path = tmp_path / "written.yaml"
    fsdp = {
        "fsdp_version": 2,
        "fsdp_activation_checkpointing": False,
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_cpu_ram_efficient_loading": True,
        "fsdp_offload_params": False,
        "fsdp_reshard_after_forward": True,
        "fsdp_state_dict_type": "SHARDED_STATE_DICT",
        "fsdp_transformer_layer_cls_to_wrap": "LlamaDecoderLayer,LlamaMLP",
    }
    ClusterConfig(
        compute_environment="LOCAL_MACHINE",
        distributed_type="FSDP",
        mixed_precision="bf16",
        use_cpu=False,
        debug=False,
        num_processes=2,
        fsdp_config=fsdp,
    ).to_yaml_file(path)
    training = TrainingConfig(num_processes=2, accelerate=str(path))
    file = accelerate_file(training)
    assert (file.sharded, file.layer_classes) == (True, ("LlamaDecoderLayer", "LlamaMLP"))
    check_layer_classes(training, folder=policy)


def test_what_stops_before_training(tmp_path: Path, job: MakeJob) -> None:
    path = tmp_path / "mine.yaml"
    with pytest.raises(UserError, match=r"training\.accelerate: no such file: .*mine\.yaml .* ddp, fsdp2"):
        train(job("sft", tmp_path, training=TrainingConfig(num_processes=2, accelerate=str(path))))
    # A file that one process does not use is read all the same.
    path.write_text("distributed_type: MULTI_GPU\nnum_processes: 4")
    with pytest.raises(UserError, match=r"num_processes is 4, training\.num_processes is 1: make them equal"):
        train(job("sft", tmp_path, training=TrainingConfig(accelerate=str(path))))
    nf4 = SftConfig(lora=LoraConfig(quantize="nf4"))
    with pytest.raises(UserError, match=r"sft\.lora\.quantize is nf4.*4-bit weights cannot be sharded"):
        check_processes(TrainingConfig(num_processes=2, accelerate="fsdp2"), config=nf4, name="sft")
    check_processes(TrainingConfig(num_processes=2, accelerate="ddp"), config=nf4, name="sft")
    check_processes(TrainingConfig(num_processes=1, accelerate="fsdp2"), config=nf4, name="sft")


def test_errors_come_back_as_they_were() -> None:
    error = launch.raised({"class": "ModelError", "message": "no such model", "path": "", "traceback": "..."})
    assert type(error) is ModelError
    assert str(error) == "no such model"
    full = launch.raised({"class": "DiskFullError", "message": "...", "path": "/x/y", "traceback": "..."})
    assert isinstance(full, DiskFullError)
    assert full.path == Path("/x/y")
    defect = launch.raised({"class": "KeyError", "message": "'a'", "path": "", "traceback": "in f: KeyError: 'a'"})
    assert type(defect) is TrainingError
    assert "in f: KeyError: 'a'" in str(defect)
