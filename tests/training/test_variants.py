"""Variants of a training stage: their fields, seeds and rows; each trained once, also over a kill."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from alignloop.artifacts import Artifact
from alignloop.config.training import DpoConfig, DpoVariant, SftConfig, TrainingConfig, Variant
from alignloop.errors import Interrupted
from alignloop.packing.groups import PromptGroup
from alignloop.training.variants import (
    TrainedVariant,
    drawn_rows,
    num_drawn,
    train_variants,
    trainings,
    variant_config,
    variant_seed,
)

MakeGroups = Callable[..., list[PromptGroup]]


@dataclass
class Heard:
    """Keeps what is said and the labels of the tasks; stops the run, as Ctrl-C would, where `stop_at` is said."""

    stop_at: str = "never"
    said: list[str] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)

    @contextmanager
    def task(self, label: str, *, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        self.tasks.append(label)
        yield lambda num_done: None

    def say(self, line: str) -> None:
        self.said.append(line.strip())
        if self.stop_at in line:
            raise Interrupted


def config_of(kind: type[Any] = SftConfig, **settings: Any) -> Any:
    return kind(dtype="float32", batch_groups=8, learning_rate=3e-3, **settings)


def run(policy: Path, out_dir: Path, make_groups: MakeGroups, config: Any, progress: Heard) -> list[TrainedVariant]:
    objective: Any = "dpo" if isinstance(config, DpoConfig) else "sft"
    completions = 2 if objective == "dpo" else 1
    start = Artifact(policy, "sha256:policy")
    return train_variants(
        objective,
        groups=make_groups(16, completions=completions),
        eval_groups=make_groups(4, completions=completions, seed=1),
        start=start,
        reference=start if objective == "dpo" else None,
        out_dir=out_dir,
        config=config,
        seed=5,
        progress=progress,
        training=TrainingConfig(),
        run_name="round-01/02_train",
    )


def weights(variant: TrainedVariant) -> str:
    return hashlib.sha256((variant.result.checkpoints[-1] / "model.safetensors").read_bytes()).hexdigest()


# ---- what a variant is


def test_a_variant_replaces_the_fields_it_names() -> None:
    config = DpoConfig(learning_rate=1e-5, beta=0.1, epochs=2, variants=(DpoVariant(beta=0.3), DpoVariant(epochs=1)))
    first, second = (each for each, _ in trainings(config))
    assert (first.beta, first.learning_rate, first.epochs) == (0.3, 1e-5, 2)
    assert (second.beta, second.learning_rate, second.epochs) == (0.1, 1e-5, 1)
    assert first.variants == second.variants == ()
    assert variant_config(config, DpoVariant()) == config.model_copy(update={"variants": ()})


def test_a_stage_without_variants_is_trained_as_it_is() -> None:
    config = SftConfig(epochs=3)
    assert trainings(config) == [(config, Variant())]


def test_seeds_are_the_stages_own_or_another_for_each() -> None:
    assert variant_seed(7, Variant()) == 7
    seeds = {variant_seed(run_seed, Variant(seed=seed)) for run_seed in (7, 8) for seed in (1, 2)}
    assert len(seeds | {7, 8}) == 6


def test_a_share_of_rows_is_drawn_by_seed_and_keeps_its_order() -> None:
    assert drawn_rows(5, fraction=1.0, seed=1) == (0, 1, 2, 3, 4)
    assert [num_drawn(10, fraction=fraction) for fraction in (0.01, 0.25, 0.5, 0.99)] == [1, 2, 5, 10]
    assert num_drawn(0, fraction=0.5) == 0
    half = drawn_rows(100, fraction=0.5, seed=1)
    assert len(set(half)) == 50
    assert list(half) == sorted(half)
    assert half == drawn_rows(100, fraction=0.5, seed=1)
    assert half != drawn_rows(100, fraction=0.5, seed=2)


# ---- trained


def test_each_variant_trains_in_its_folder_as_it_would_alone(
    policy: Path, tmp_path: Path, make_groups: MakeGroups
) -> None:
    plain = run(policy, tmp_path / "plain", make_groups, config_of(), Heard())
    assert [one.number for one in plain] == [None]
    assert plain[0].dir == tmp_path / "plain"
    assert {path.name for path in (tmp_path / "plain").iterdir()} == {"checkpoints", "train_log.jsonl"}

    variants = (Variant(), Variant(learning_rate=1e-3), Variant(seed=1, data_fraction=0.5))
    first, faster, drawn = run(policy, tmp_path / "three", make_groups, config_of(variants=variants), Heard())
    assert [path.name for path in sorted((tmp_path / "three").iterdir())] == ["variant-01", "variant-02", "variant-03"]
    assert weights(first) == weights(plain[0])
    alone = run(
        policy, tmp_path / "alone", make_groups, config_of().model_copy(update={"learning_rate": 1e-3}), Heard()
    )
    assert weights(faster) == weights(alone[0]) != weights(first)
    assert (faster.number, faster.changed) == (2, {"learning_rate": 1e-3})
    # 16 rows, 8 a step: two steps of all of them, one of the half.
    assert [one.result.num_steps for one in (first, faster, drawn)] == [2, 2, 1]
    assert len(drawn.rows) == 8


def test_a_finished_variant_is_not_trained_again_after_a_kill(
    policy: Path, tmp_path: Path, make_groups: MakeGroups
) -> None:
    config = config_of(variants=(Variant(seed=1), Variant(seed=2)), num_checkpoints=2, average_span=0.5)
    unbroken = run(policy, tmp_path / "unbroken", make_groups, config, Heard())
    with pytest.raises(Interrupted):
        run(policy, tmp_path / "broken", make_groups, config, Heard(stop_at="variant 2 of 2"))
    done = sorted((tmp_path / "broken").rglob("*.safetensors"))
    assert len(done) == 2
    before = {path: path.stat().st_mtime_ns for path in done}

    heard = Heard()
    resumed = run(policy, tmp_path / "broken", make_groups, config, heard)
    assert {path: path.stat().st_mtime_ns for path in done} == before
    assert heard.tasks.count("train sft") == 1
    assert heard.said[0] == "variant 1 of 2: seed 1 (finished before)"
    for one, other in zip(resumed, unbroken, strict=True):
        assert weights(one) == weights(other)
        assert one.result.metrics == other.result.metrics
        assert one.result.checkpoint_metrics == other.result.checkpoint_metrics
        assert one.result.num_tokens == other.result.num_tokens


def test_what_a_variant_of_other_settings_left_is_not_taken(
    policy: Path, tmp_path: Path, make_groups: MakeGroups
) -> None:
    old = run(policy, tmp_path, make_groups, config_of(variants=(Variant(seed=1), Variant(seed=2))), Heard())
    before = [weights(one) for one in old]
    heard = Heard()
    new = run(policy, tmp_path, make_groups, config_of(variants=(Variant(seed=3), Variant(seed=2))), heard)
    assert heard.tasks.count("train sft") == 1
    assert weights(new[0]) != before[0]
    assert weights(new[1]) == before[1]
    (tmp_path / "variant-02" / "result.json").write_text(json.dumps({"key": "cut short"}))
    run(policy, tmp_path, make_groups, config_of(variants=(Variant(seed=3), Variant(seed=2))), heard)
    assert heard.tasks.count("train sft") == 2


def test_variants_on_the_same_rows_share_the_reference_logprobs(
    policy: Path, tmp_path: Path, make_groups: MakeGroups
) -> None:
    variants = (DpoVariant(), DpoVariant(beta=0.3), DpoVariant(seed=1, data_fraction=0.5))
    heard = Heard()
    run(policy, tmp_path, make_groups, config_of(DpoConfig, variants=variants), heard)
    assert heard.tasks.count("reference logprobs") == 2
