"""Which checkpoints are averaged, with which shares, and what a summary says of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from alignloop.artifacts import Artifact
from alignloop.config.training import AverageConfig
from alignloop.errors import DataError, UserError
from alignloop.training.average import average_checkpoints, best_checkpoints, shares_of
from alignloop.training.summary import TrainedCheckpoint, TrainSummary, entries_of, read_summary

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
    assert best_checkpoints([{"loss": 0.5}, {"loss": 0.5}], choose=1, metric="loss") == (1,)
    nan = float("nan")
    assert best_checkpoints([{"loss": nan}, {"loss": 9.0}, {"loss": nan}], choose=1, metric="loss") == (1,)


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
