"""Which engine a recipe gets, on which part of the machine, and where its log is named."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from alignloop.config import load_recipe
from alignloop.config.bundled import QUICKSTART
from alignloop.config.engine import EngineConfig
from alignloop.engines.base import GenerateRequest
from alignloop.engines.open import FALLBACK, log_named, machine_shares, open_engine, temporary_log, visible_devices
from alignloop.engines.worker import MachineShare, child_environment, num_cores
from alignloop.errors import EngineError, TrainingError, UserError
from alignloop.loop.check import check


def gpus(monkeypatch: pytest.MonkeyPatch, count: int, *, visible: str | None = None) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)


@pytest.fixture
def without_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("alignloop.engines.open", "alignloop.config.engine"):
        monkeypatch.setattr(f"{module}.find_spec", lambda name: None)


def test_engines_on_a_cpu_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine_shares(EngineConfig()) == (MachineShare(num_cores()),)
    assert "CUDA_VISIBLE_DEVICES" not in child_environment(EngineConfig()).keys() - os.environ.keys()
    gpus(monkeypatch, 0, visible="")
    assert visible_devices() == ()
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(5)), raising=False)
    assert machine_shares(EngineConfig(data_parallel=2)) == (MachineShare(2), MachineShare(2))
    assert machine_shares(EngineConfig(data_parallel=8)) == (MachineShare(1),) * 8


def test_gpus_are_given_in_blocks_under_the_names_they_have_here(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 5, visible="3,1,GPU-ab,0,7")
    config = EngineConfig(data_parallel=2, tensor_parallel=2)
    shares = machine_shares(config)
    assert [share.devices for share in shares] == [("3", "1"), ("GPU-ab", "0")]
    assert child_environment(config, share=shares[1])["CUDA_VISIBLE_DEVICES"] == "GPU-ab,0"
    gpus(monkeypatch, 8)
    wide = EngineConfig(data_parallel=2, tensor_parallel=2, pipeline_parallel=2)
    assert [share.devices for share in machine_shares(wide)] == [("0", "1", "2", "3"), ("4", "5", "6", "7")]
    assert machine_shares(EngineConfig(tensor_parallel=4))[0].devices is None  # one engine: all that are visible


@pytest.mark.parametrize(
    ("num_gpus", "values", "message"),
    [
        (3, {"data_parallel": 2, "tensor_parallel": 2}, r"data_parallel 2 x tensor_parallel 2 .* take 4 GPUs, and 3"),
        (3, {"tensor_parallel": 4}, "take 4 GPUs, and 3 can be seen"),
        (0, {"tensor_parallel": 2}, r"engine\.tensor_parallel: 2, but no GPU can be seen"),
        (0, {"pipeline_parallel": 2}, r"engine\.pipeline_parallel: 2, but no GPU can be seen"),
        (2, {"tensor_parallel": 2, "name": "transformers"}, "tensor_parallel: 2, but engine.name: transformers"),
        (2, {"pipeline_parallel": 2, "name": "transformers"}, "pipeline_parallel: 2, but engine.name: transformers"),
        (0, {"quantization": "fp8", "name": "transformers"}, "quantization: fp8, but engine.name: transformers"),
    ],
)
def test_what_this_machine_cannot_do_is_refused(
    monkeypatch: pytest.MonkeyPatch, num_gpus: int, values: dict[str, Any], message: str
) -> None:
    gpus(monkeypatch, num_gpus)
    with pytest.raises(UserError, match=message):
        machine_shares(EngineConfig.model_validate(values))


def test_environment_is_fixed_before_the_child_imports_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "40")
    environment = child_environment(EngineConfig())
    assert "VLLM_CPU_KVCACHE_SPACE" not in environment  # it would go before engine.kv_cache_gb
    assert environment["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert environment["OMP_WAIT_POLICY"] == "PASSIVE"
    assert environment["OMP_NUM_THREADS"] == "3"  # the user's own choice stays
    assert environment["VLLM_NO_USAGE_STATS"] == environment["DO_NOT_TRACK"] == "1"


@pytest.mark.usefixtures("without_vllm")
def test_transformers_generates_where_vllm_is_not_installed_and_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"engine\.name: transformers"):
        open_engine(EngineConfig(name="vllm"), log_file=tmp_path / "engine.log")
    said: list[str] = []
    config = EngineConfig(dtype="float32", max_model_len=256)
    with open_engine(config, log_file=tmp_path / "engine.log", say=said.append) as engine:
        engine.load_weights(QUICKSTART / "base")
        assert engine.generate([GenerateRequest((5, 6, 7), max_tokens=6, temperature=0.0)])[0][0].token_ids
    assert FALLBACK in said
    recipe = load_recipe("quickstart")
    assert recipe.engine.name == "transformers"
    assert FALLBACK in check(recipe).notes
    assert FALLBACK in check(load_recipe(recipe)).notes  # a run reads what the command line has read once more
    named = load_recipe("quickstart", overrides=["engine.name=transformers"])
    assert FALLBACK not in check(named).notes


@pytest.mark.usefixtures("without_vllm")
def test_run_and_plan_say_that_transformers_generates(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, alignloop: Callable[..., Any]
) -> None:
    # A disk without room: the run ends when it has said what it is about to do.
    monkeypatch.setattr("alignloop.loop.check.shutil.disk_usage", lambda path: SimpleNamespace(total=0, used=0, free=0))
    ran = alignloop("run", "quickstart", "--run-dir", str(tmp_path / "run"))
    assert ran.code != 0
    assert "free" in ran.err
    assert " ".join(ran.out.split()).count("vLLM is not installed: the transformers engine generates") == 1
    assert "vLLM is not installed: the transformers engine generates" in " ".join(alignloop("plan").out.split())


@pytest.mark.parametrize(
    ("logs", "error", "named"),
    [
        (["engine.log"], EngineError("died"), ["engine.log"]),
        (["engine-0.log", "engine-1.log"], EngineError("died"), ["engine-0.log", "engine-1.log"]),
        (["engine.log"], TrainingError("NaN"), []),
        (["engine.log"], UserError("no file"), []),
        ([], EngineError("cannot start"), []),
        (["engine.log"], EngineError("died; the end of {}/engine.log"), []),  # the error names it itself
    ],
)
def test_a_log_is_named_where_the_engine_failed(
    tmp_path: Path, logs: list[str], error: Exception, named: list[str]
) -> None:
    for name in logs:
        (tmp_path / name).write_text("words")
    with pytest.raises(type(error)) as caught, log_named(tmp_path / "engine.log"):
        raise type(error)(str(error).format(tmp_path))
    notes = [f"What the engine said: {', '.join(str(tmp_path / name) for name in named)}"] if named else []
    assert getattr(caught.value, "__notes__", []) == notes


@pytest.mark.parametrize(
    ("error", "stays"),
    [
        (None, False),
        (UserError("no"), False),
        (KeyboardInterrupt(), False),
        (EngineError("died"), True),
        (KeyError(), True),
    ],
)
@pytest.mark.parametrize("name", ["engine.log", "engine-0.log"])
def test_a_temporary_log_stays_where_the_engine_failed(error: BaseException | None, stays: bool, name: str) -> None:
    folders = []
    with nullcontext() if error is None else pytest.raises(type(error)), temporary_log() as log_file:
        folders.append(log_file.parent)
        log_file.with_name(name).write_text("words")
        if error is not None:
            raise error
    assert folders[0].exists() == stays
    if stays:
        (folders[0] / name).unlink()
        folders[0].rmdir()
