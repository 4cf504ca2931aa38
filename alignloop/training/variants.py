"""One training of a stage, or several with some fields changed (The Llama 3 Herd of Models, section 4.1.5).

    config ─► no variants ─► train() in the stage's folder
          └─► variants    ─► train() in variant-01/, variant-02/, ... each with its fields, its seed, its share of rows

Torch-free until something is trained: the plan counts what variants cost.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from alignloop.artifacts import derive_seed, write_text
from alignloop.config.training import OptimizerConfig, Variant
from alignloop.training.job import REFERENCE_CACHE, TRAINER_VERSION, TrainJob, TrainResult, groups_digest, key_of

RESULT = "result.json"
"""Written last in a variant's folder: where it stands, the variant is finished."""

ConfigT = TypeVar("ConfigT", bound=OptimizerConfig)


@dataclass(frozen=True)
class TrainedVariant:
    """One finished training.

    Attributes:
        number: of the variant, from 1; None where the stage has none.
        changed: what the variant changes in the stage's config.
        dir: holds its checkpoints and its log.
        rows: indices of the groups it trained on.
    """

    number: int | None
    changed: dict[str, Any]
    dir: Path
    rows: tuple[int, ...]
    result: TrainResult


def num_trainings(config: OptimizerConfig) -> int:
    return max(1, len(config.variants))


def trainings(config: ConfigT) -> list[tuple[ConfigT, Variant]]:
    """The config and the variant of each training of the stage; one that changes nothing where it has no variants."""
    return [(variant_config(config, variant), variant) for variant in config.variants or (Variant(),)]


def variant_config(config: ConfigT, variant: Variant) -> ConfigT:
    """The stage's config with the variant's fields in it, and without variants: a training depends on its own alone."""
    changed = {name: value for name, value in changed_fields(variant).items() if name in type(config).model_fields}
    return config.model_copy(update={**changed, "variants": ()})


def changed_fields(variant: Variant) -> dict[str, Any]:
    """What the variant changes of the stage's own."""
    return variant.model_dump(mode="json", exclude_defaults=True)


def variant_seed(seed: int, variant: Variant) -> int:
    """Variants of one seed see the same order of rows; seed 0 is the stage's own."""
    return derive_seed(seed, "variant", variant.seed) if variant.seed else seed


def num_drawn(num_rows: int, *, fraction: float) -> int:
    """Rows a variant trains on: its share, but at least one of any."""
    return min(num_rows, max(1, round(fraction * num_rows)))


def drawn_rows(num_rows: int, *, fraction: float, seed: int) -> tuple[int, ...]:
    """Indices of the rows a variant trains on, in order."""
    wanted = num_drawn(num_rows, fraction=fraction)
    return tuple(sorted(random.Random(f"{seed}/rows").sample(range(num_rows), wanted)))


def train_variants(stage: TrainJob, *, models: Mapping[str, str | None]) -> list[TrainedVariant]:
    """Train a stage once, in its folder, or once a variant, in `variant-01` and so on of its folder.

    After a kill, finished variants are kept and the one that was at work goes on from its resume point. `models` are
    digests of the models that the stage trains with, `start` and `reference`. Raises as `train`.
    """
    from alignloop.training.loop import train

    if not stage.config.variants:
        return [TrainedVariant(None, {}, stage.out_dir, tuple(range(len(stage.groups))), train(stage))]
    trained: list[TrainedVariant] = []
    for number, (config, variant) in enumerate(trainings(stage.config), start=1):
        changed, seed = changed_fields(variant), variant_seed(stage.seed, variant)
        rows = drawn_rows(len(stage.groups), fraction=variant.data_fraction, seed=seed)
        name, groups = f"variant-{number:02d}", [stage.groups[row] for row in rows]
        job = replace(
            stage,
            config=config,
            groups=groups,
            out_dir=stage.out_dir / name,
            seed=seed,
            run_name=f"{stage.run_name}/{name}",
        )
        key, words = (
            _key(job, models),
            f"  variant {number} of {len(stage.config.variants)}: {changed_in_words(changed)}",
        )
        result = _finished(job.out_dir, key=key)
        stage.progress.say(words if result is None else f"{words} (finished before)")
        if result is None:
            _share_reference(job.out_dir, rows, earlier=trained)
            result = train(job)
            _write_finished(job.out_dir, result, key=key)
        trained.append(TrainedVariant(number, changed, job.out_dir, rows, result))
    return trained


def _key(job: TrainJob, models: Mapping[str, str | None]) -> str:
    return key_of(
        trainer_version=TRAINER_VERSION,
        objective=job.objective,
        config=job.config.model_dump(mode="json"),
        layout=job.training.layout,
        seed=job.seed,
        groups=groups_digest(job.groups),
        eval_groups=groups_digest(job.eval_groups),
        **models,
    )


def changed_in_words(changed: Mapping[str, Any]) -> str:
    """`learning_rate 2e-05, seed 1`."""
    return ", ".join(f"{name} {value}" for name, value in changed.items()) or "the stage as it is"


class _Finished(BaseModel):
    """`result.json`: what a variant's training made, checkpoints relative to its folder, and the key of what from."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    key: str
    checkpoints: tuple[Path, ...]
    metrics: dict[str, float]
    num_steps: int
    num_tokens: int
    dropped: tuple[tuple[str, str], ...]
    checkpoint_metrics: tuple[dict[str, float], ...]


def _finished(folder: Path, *, key: str) -> TrainResult | None:
    """What a finished variant of this key left; None where there is none, or of something else."""
    try:
        known = _Finished.model_validate_json((folder / RESULT).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValidationError):
        return None  # never finished; of another version: trained again
    checkpoints = tuple(folder / path for path in known.checkpoints)
    if known.key != key or not all(checkpoint.is_dir() for checkpoint in checkpoints):
        return None
    return TrainResult(**known.model_dump(exclude={"key", "checkpoints"}), checkpoints=checkpoints)


def _write_finished(folder: Path, result: TrainResult, *, key: str) -> None:
    checkpoints = tuple(path.relative_to(folder) for path in result.checkpoints)
    known = _Finished(key=key, **{**vars(result), "checkpoints": checkpoints})
    write_text(folder / RESULT, known.model_dump_json(indent=1) + "\n")


def _share_reference(folder: Path, rows: Sequence[int], *, earlier: Sequence[TrainedVariant]) -> None:
    """An earlier variant on the same rows has the reference model's logprobs already; the cache checks its key."""
    twin = next((variant for variant in earlier if variant.rows == tuple(rows)), None)
    if twin is None or not (twin.dir / REFERENCE_CACHE).is_file() or (folder / REFERENCE_CACHE).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / REFERENCE_CACHE, (twin.dir / REFERENCE_CACHE).read_text(encoding="utf-8"))
