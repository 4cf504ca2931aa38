"""Which checkpoints are averaged, with which shares; the average on disk by hand; what a summary says of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from alignloop.artifacts import Artifact
from alignloop.config.training import AverageConfig
from alignloop.errors import DataError, ModelError, UserError
from alignloop.training.average import (
    TrainedCheckpoint,
    TrainSummary,
    average_checkpoints,
    average_tensors,
    best_checkpoints,
    entries_of,
    normalised_weights,
    read_summary,
    shares_of,
)

METRICS = [{"loss": 0.7, "accuracy": 0.5}, {"loss": 0.4, "accuracy": 0.6}, {"loss": 0.5, "accuracy": 0.8}]


def test_all_alike_or_by_given_weights() -> None:
    assert shares_of(METRICS, config=AverageConfig()) == (1 / 3, 1 / 3, 1 / 3)
    assert shares_of([{}], config=AverageConfig()) == (1.0,)
    # 1 + 1 + 2 = 4
    assert shares_of(METRICS, config=AverageConfig(weights=(1, 1, 2))) == (0.25, 0.25, 0.5)


def test_the_best_by_loss_or_accuracy_keep_their_order() -> None:
    assert shares_of(METRICS, config=AverageConfig(choose=2)) == (0.0, 0.5, 0.5)
    assert shares_of(METRICS, config=AverageConfig(choose=1, metric="accuracy")) == (0.0, 0.0, 1.0)
    # Weights go by age, not by rank: the older of the two has the first.
    assert shares_of(METRICS, config=AverageConfig(choose=2, weights=(3, 1))) == (0.0, 0.75, 0.25)


def test_equal_checkpoints_and_losses_that_are_no_number() -> None:
    assert best_checkpoints([{"loss": 0.5}, {"loss": 0.5}], choose=1, metric="loss") == [1]
    nan = float("nan")
    assert best_checkpoints([{"loss": nan}, {"loss": 9.0}, {"loss": nan}], choose=1, metric="loss") == [1]


def test_choosing_all_needs_no_held_out_rows() -> None:
    assert shares_of([{}, {}], config=AverageConfig(choose=2)) == (0.5, 0.5)


def test_nothing_to_choose_by_and_weights_that_do_not_fit() -> None:
    with pytest.raises(UserError, match=r"averaging\.sft\.choose: the checkpoints have no loss on held-out rows"):
        shares_of([{}, {}], config=AverageConfig(choose=1), section="averaging.sft")
    with pytest.raises(UserError, match="2 weights for 3 checkpoints"):
        shares_of(METRICS, config=AverageConfig(weights=(1, 1)))
    with pytest.raises(UserError, match="must not all be zero"):
        shares_of(METRICS, config=AverageConfig(weights=(0, 0, 0)))


def summary_of(*digests: str) -> TrainSummary:
    entries = tuple(
        TrainedCheckpoint(file=f"checkpoints/step-{n:06d}", digest=digest, step=n, metrics={"loss": float("inf")})
        for n, digest in enumerate(digests)
    )
    return TrainSummary(objective="sft", checkpoints=entries)


def test_a_summary_is_read_back_and_known_by_digests(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_text(summary_of("a", "b", "b").model_dump_json())
    summary = read_summary(path)
    assert summary == summary_of("a", "b", "b")
    found = entries_of([Artifact(tmp_path / "y", "b"), Artifact(tmp_path / "x", "a"), Artifact(tmp_path, "b")], summary)
    assert [entry.step for entry in found] == [1, 0, 2]
    with pytest.raises(DataError, match="does not name this checkpoint"):
        entries_of([Artifact(tmp_path / "z", "c")], summary)
    path.write_text("{}")
    with pytest.raises(DataError, match=r"not a summary of a training stage"):
        read_summary(path)


def test_adapters_beside_the_merged_weights_are_left_where_they_are(policy: Path, tmp_path: Path) -> None:
    """Mean of w and 3w is 2w; `adapter/` of a checkpoint is no part of the model."""
    folders = []
    for factor in (1.0, 3.0):
        folder = average_checkpoints([policy], out_dir=tmp_path / f"times-{factor:g}")
        tensors = {name: tensor * factor for name, tensor in load_file(folder / "model.safetensors").items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "adapter").mkdir()
        save_file({"lora_A": torch.ones(2)}, folder / "adapter" / "adapter_model.safetensors")
        folders.append(folder)
    mean = average_checkpoints(folders, out_dir=tmp_path / "mean")
    assert not (mean / "adapter").exists()
    before, after = load_file(policy / "model.safetensors"), load_file(mean / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.allclose(after[name], 2.0 * tensor)
    assert not (average_checkpoints(folders[:1], out_dir=tmp_path / "one") / "adapter").exists()


def shifted(policy: Path, target: Path, *, by: float) -> Path:
    average_checkpoints([policy], out_dir=target)
    path = target / "model.safetensors"
    save_file({name: tensor + by for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})
    return target


def test_one_checkpoint_is_copied(policy: Path, tmp_path: Path) -> None:
    average = average_checkpoints([policy], out_dir=tmp_path / "average")
    assert {path.name for path in average.iterdir()} == {path.name for path in policy.iterdir()}
    assert all((average / path.name).read_bytes() == path.read_bytes() for path in policy.iterdir())


def test_weighted_average_on_disk_by_hand(policy: Path, tmp_path: Path) -> None:
    other = shifted(policy, tmp_path / "other", by=4.0)
    average = average_checkpoints([policy, other], out_dir=tmp_path / "average", weights=[3, 1])
    plain, averaged = load_file(policy / "model.safetensors"), load_file(average / "model.safetensors")
    for name in plain:
        torch.testing.assert_close(averaged[name], plain[name] + 1.0, atol=1e-6, rtol=0)
    assert AutoModelForCausalLM.from_pretrained(average).config.vocab_size == 64
    assert (average / "tokenizer.json").is_file()


def test_checkpoints_that_do_not_fit_leave_nothing_behind(policy: Path, tmp_path: Path) -> None:
    other = average_checkpoints([policy], out_dir=tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    tensors.pop("model.norm.weight")
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="tensors missing"):
        average_checkpoints([policy, other], out_dir=tmp_path / "average")
    assert not list(tmp_path.glob("average*"))


@pytest.mark.parametrize("count", [1, 3, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_averaging_equal_weights_is_the_identity_to_the_bit(count: int, dtype: torch.dtype) -> None:
    weight = torch.randn(1000, generator=torch.Generator().manual_seed(0)).to(dtype)
    average = average_tensors([weight] * count, weights=normalised_weights(None, count=count), name="w")
    assert average.dtype == dtype
    assert torch.equal(average, weight)


def test_means_by_hand_and_numbers_without_a_mean() -> None:
    first, second = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 6.0])
    assert average_tensors([first, second], weights=(0.5, 0.5), name="w").tolist() == [2.0, 4.0]
    assert average_tensors([torch.tensor([1]), torch.tensor([2])], weights=(0.5, 0.5), name="n").tolist() == [2]
    with pytest.raises(ValueError, match="w: shapes differ"):
        average_tensors([first, torch.zeros(1)], weights=(0.5, 0.5), name="w")
    with pytest.raises(ValueError, match="no checkpoint"):
        normalised_weights(None, count=0)
