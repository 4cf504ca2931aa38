"""Memory that runs out where fewer rows would not help is said in words: what, how large, and what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import PreTrainedModel

from alignloop.config.training import LoraConfig
from alignloop.engines.checkpoint import num_parameters
from alignloop.errors import ModelError, TrainingError
from alignloop.packing.groups import PromptGroup
from alignloop.progress import QuietProgress
from alignloop.training.scoring import score_groups

MakeGroups = Callable[..., list[PromptGroup]]
NO_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


def refuse(*arguments: Any, **named: Any) -> Any:
    raise NO_MEMORY


@pytest.fixture
def no_room_for_moments() -> Iterator[None]:
    """torch's own hook before any optimiser's step."""
    hook = register_optimizer_step_pre_hook(refuse)
    yield
    hook.remove()


@pytest.mark.usefixtures("no_room_for_moments")
def test_in_the_optimisers_step(run: Any, tmp_path: Path, policy: Path) -> None:
    with pytest.raises(TrainingError) as caught:
        run("sft", tmp_path / "whole")
    said = str(caught.value)
    assert said.startswith("sft: out of memory in the optimiser's update at step 1 of 3: ")
    assert f"{num_parameters(policy):,} weights train, which take 0.0 GB with gradients and moments" in said
    assert "Train adapters (sft.lora: {}), shard the model over several GPUs (training.num_processes" in said
    assert "set sft.gradient_checkpointing: true, or use a smaller model" in said
    with pytest.raises(TrainingError) as caught:
        run("sft", tmp_path / "adapted", lora=LoraConfig(rank=2), gradient_checkpointing=True)
    said = str(caught.value)
    assert "quantize: nf4" in said
    assert "Train adapters" not in said
    assert "gradient_checkpointing" not in said


@pytest.mark.parametrize("where", ["load", "move"])
def test_while_a_model_is_loaded(
    run: Any, tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """transformers' loading, or torch's move to the device, finds no memory."""
    owner, name = (torch.nn.Module, "to") if where == "move" else (PreTrainedModel, "from_pretrained")
    monkeypatch.setattr(owner, name, refuse)
    with pytest.raises(ModelError) as caught:
        run("sft", tmp_path / "run")
    count = num_parameters(policy)
    assert f"out of memory while {policy} was loaded: {count:,} weights take 0.0 GB in float32, " in str(caught.value)
    assert "or use a smaller model" in str(caught.value)


def test_anywhere_else(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", refuse)
    with pytest.raises(TrainingError, match=r"^sft: out of memory: .*torch says: CUDA out of memory\. Tried.*adapters"):
        run("sft", tmp_path / "run")


def test_what_is_no_lack_of_memory_stays_as_it_is(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def defect(*arguments: Any, **named: Any) -> Any:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", defect)
    with pytest.raises(RuntimeError, match=r"^shapes do not match$"):
        run("sft", tmp_path / "run")


def test_a_reward_model_that_has_no_room_to_score(
    run: Any, tmp_path: Path, make_groups: MakeGroups, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = make_groups(4, completions=2)
    trained = run("reward", tmp_path, groups=groups, eval_groups=[], max_steps=1)
    monkeypatch.setattr(torch.nn.Module, "to", refuse)
    with pytest.raises(ModelError, match=r"out of memory while .* was loaded: .*\. Use a smaller model$"):
        score_groups(groups, reward_model=trained.checkpoints[-1], progress=QuietProgress(), dtype="float32")
