from __future__ import annotations

import os

import pytest

from alignloop.config.engine import EngineConfig
from alignloop.engines.placement import EnginePlace, num_cores, places, visible_devices
from alignloop.errors import UserError


def gpus(monkeypatch: pytest.MonkeyPatch, count: int, *, visible: str | None = None) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)


def test_one_engine_has_the_whole_machine() -> None:
    assert places(EngineConfig()) == (EnginePlace(num_cores()),)
    assert places(EngineConfig())[0].environment() == {}


def test_engines_side_by_side_on_a_cpu_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(5)), raising=False)
    assert places(EngineConfig(data_parallel=2)) == (EnginePlace(2), EnginePlace(2))
    assert places(EngineConfig(data_parallel=8)) == (EnginePlace(1),) * 8


def test_gpus_are_given_in_blocks_under_the_names_they_have_here(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 5, visible="3,1,GPU-ab,0,7")
    config = EngineConfig(data_parallel=2, tensor_parallel=2)
    assert [place.devices for place in places(config)] == [("3", "1"), ("GPU-ab", "0")]
    assert places(config)[1].environment() == {"CUDA_VISIBLE_DEVICES": "GPU-ab,0"}
    gpus(monkeypatch, 8)
    wide = EngineConfig(data_parallel=2, tensor_parallel=2, pipeline_parallel=2)
    assert [place.devices for place in places(wide)] == [("0", "1", "2", "3"), ("4", "5", "6", "7")]
    assert places(EngineConfig(tensor_parallel=4))[0].devices is None  # one engine: all that are visible


def test_more_gpus_asked_for_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 3)
    with pytest.raises(
        UserError, match=r"data_parallel 2 x tensor_parallel 2 x pipeline_parallel 1 take 4 GPUs, and 3"
    ):
        places(EngineConfig(data_parallel=2, tensor_parallel=2))
    with pytest.raises(UserError, match="take 4 GPUs, and 3 can be seen"):
        places(EngineConfig(tensor_parallel=4))


@pytest.mark.parametrize("field", ["tensor_parallel", "pipeline_parallel"])
def test_a_model_is_not_split_over_a_cpu_nor_by_transformers(monkeypatch: pytest.MonkeyPatch, field: str) -> None:
    gpus(monkeypatch, 0)
    with pytest.raises(UserError, match=rf"engine\.{field}: 2, but no GPU can be seen"):
        places(EngineConfig.model_validate({field: 2}))
    gpus(monkeypatch, 2)
    with pytest.raises(UserError, match=rf"engine\.{field}: 2, but engine\.name: transformers"):
        places(EngineConfig.model_validate({field: 2, "name": "transformers"}))


def test_transformers_does_not_quantise() -> None:
    with pytest.raises(UserError, match=r"engine\.quantization: fp8, but engine\.name: transformers"):
        places(EngineConfig(name="transformers", quantization="fp8"))


def test_no_gpu_is_seen_where_none_is_made_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 0, visible="")
    assert visible_devices() == ()
