"""Variants of a training stage: their fields, seeds and rows; each trained once, also over a kill."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from alignloop.config.training import DpoConfig, DpoVariant, SftConfig, Variant
from alignloop.errors import Interrupted
from alignloop.training.variants import (
    TrainedVariant,
    drawn_rows,
    num_drawn,
    train_variants,
    trainings,
    variant_config,
    variant_seed,
)


class Heard:
    """Stops the run, as Ctrl-C would, at the line `stop_at`."""

    def __init__(self, stop_at: str = "never") -> None:
        self.stop_at, self.said, self.tasks = stop_at, list[str](), list[str]()

    @contextmanager
    def task(self, label: str, *, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        self.tasks.append(label)
        yield lambda num_done: None

    def say(self, line: str) -> None:
        self.said.append(line.strip())
        if self.stop_at in line:
            raise Interrupted


Train = Callable[..., list[TrainedVariant]]


@pytest.fixture
def train(run: Any) -> Train:
    """Trains 24 groups, three steps an epoch, in a folder, with the given fields of the config."""

    def train(out_dir: Path, *, objective: str = "sft", heard: Heard | None = None, **knobs: Any) -> Any:
        job = run.job(objective, out_dir, progress=heard or Heard(), run_name="round-01/02_train", **knobs)
        return train_variants(job, models={"start": "sha256:policy", "reference": None})

    return train


# ---- what a variant is


def test_a_variant_replaces_the_fields_it_names() -> None:
    config = DpoConfig(learning_rate=1e-5, beta=0.1, epochs=2, variants=(DpoVariant(beta=0.3), DpoVariant(epochs=1)))
    first, second = (each for each, _ in trainings(config))
    assert (first.beta, first.learning_rate, first.epochs) == (0.3, 1e-5, 2)
    assert (second.beta, second.learning_rate, second.epochs) == (0.1, 1e-5, 1)
    assert first.variants == second.variants == ()
    assert variant_config(config, DpoVariant()) == config.model_copy(update={"variants": ()})
    simpo = DpoConfig(loss="simpo", variants=(DpoVariant(gamma=0.5), DpoVariant(beta=10.0)))
    assert [(each.loss, each.beta, each.gamma) for each, _ in trainings(simpo)] == [
        ("simpo", 2.0, 0.5),
        ("simpo", 10.0, 1.0),
    ]
    plain = SftConfig(epochs=3)
    assert trainings(plain) == [(plain, Variant())]


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


def test_each_variant_trains_in_its_folder_as_it_would_alone(run: Any, train: Train, tmp_path: Path) -> None:
    def weights(variant: TrainedVariant) -> str:
        return str(run.digest(variant.result.checkpoints[-1]))

    (plain,) = train(tmp_path / "plain")
    assert (plain.number, plain.dir) == (None, tmp_path / "plain")
    assert {path.name for path in plain.dir.iterdir()} == {"checkpoints", "train_log.jsonl"}
    variants = (Variant(), Variant(learning_rate=1e-3), Variant(seed=1, data_fraction=0.5))
    first, faster, drawn = train(tmp_path / "three", variants=variants)
    assert [path.name for path in sorted((tmp_path / "three").iterdir())] == ["variant-01", "variant-02", "variant-03"]
    (alone,) = train(tmp_path / "alone", learning_rate=1e-3)
    assert weights(first) == weights(plain)
    assert weights(faster) == weights(alone) != weights(first)
    assert (faster.number, faster.changed) == (2, {"learning_rate": 1e-3})
    # 24 rows, 8 a step: three steps of all of them, two of the half.
    assert [one.result.num_steps for one in (first, faster, drawn)] == [3, 3, 2]
    assert len(drawn.rows) == 12


def test_a_finished_variant_is_not_trained_again_after_a_kill(run: Any, train: Train, tmp_path: Path) -> None:
    knobs = {"variants": (Variant(seed=1), Variant(seed=2)), "num_checkpoints": 2, "average_span": 0.5}
    unbroken = train(tmp_path / "unbroken", **knobs)
    with pytest.raises(Interrupted):
        train(tmp_path / "broken", heard=Heard(stop_at="variant 2 of 2"), **knobs)
    done = sorted((tmp_path / "broken").rglob("*.safetensors"))
    assert len(done) == 2
    before = {path: path.stat().st_mtime_ns for path in done}

    heard = Heard()
    resumed = train(tmp_path / "broken", heard=heard, **knobs)
    assert {path: path.stat().st_mtime_ns for path in done} == before
    assert heard.tasks.count("train sft") == 1
    assert heard.said[0] == "variant 1 of 2: seed 1 (finished before)"
    for one, other in zip(resumed, unbroken, strict=True):
        assert [run.digest(path) for path in one.result.checkpoints] == [
            run.digest(path) for path in other.result.checkpoints
        ]
        assert one.result.metrics == other.result.metrics
        assert one.result.checkpoint_metrics == other.result.checkpoint_metrics
        assert one.result.num_tokens == other.result.num_tokens


def test_what_a_variant_of_other_settings_left_is_not_taken(run: Any, train: Train, tmp_path: Path) -> None:
    old = train(tmp_path, variants=(Variant(seed=1), Variant(seed=2)))
    before = [run.digest(one.result.checkpoints[-1]) for one in old]
    heard, changed = Heard(), (Variant(seed=3), Variant(seed=2))
    new = train(tmp_path, heard=heard, variants=changed)
    assert heard.tasks.count("train sft") == 1
    assert run.digest(new[0].result.checkpoints[-1]) != before[0]
    assert run.digest(new[1].result.checkpoints[-1]) == before[1]
    (tmp_path / "variant-02" / "result.json").write_text(json.dumps({"key": "cut short"}))
    train(tmp_path, heard=heard, variants=changed)
    assert heard.tasks.count("train sft") == 2


def test_variants_on_the_same_rows_share_the_reference_logprobs(train: Train, tmp_path: Path) -> None:
    heard = Heard()
    variants = (DpoVariant(), DpoVariant(beta=0.3), DpoVariant(seed=1, data_fraction=0.5))
    train(tmp_path, objective="dpo", heard=heard, variants=variants)
    assert heard.tasks.count("reference logprobs") == 2
