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

from alignloop.artifacts import Artifact, derive_seed, write_text
from alignloop.config.training import ObjectiveName, OptimizerConfig, TrainingConfig, Variant
from alignloop.packing.groups import PromptGroup
from alignloop.progress import Progress
from alignloop.training.job import (
    REFERENCE_CACHE,
    TRAINER_VERSION,
    Dropped,
    TrainConfig,
    TrainJob,
    TrainResult,
    groups_digest,
    key_of,
)

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
        rows: indices of the groups it was given.
    """

    number: int | None
    changed: dict[str, Any]
    dir: Path
    rows: tuple[int, ...]
    result: TrainResult


def num_trainings(config: OptimizerConfig) -> int:
    """How often the stage is trained."""
    return max(1, len(config.variants))


def trainings(config: ConfigT) -> list[tuple[ConfigT, Variant]]:
    """The config and the variant of each training of the stage; one that changes nothing where it has no variants."""
    return [(variant_config(config, variant), variant) for variant in config.variants or (Variant(),)]


def variant_config(config: ConfigT, variant: Variant) -> ConfigT:
    """The stage's config with the variant's fields in it, and without variants: a training depends on its own alone."""
    changed = {name: value for name, value in changed_fields(variant).items() if name in type(config).model_fields}
    return config.model_copy(update={**changed, "variants": ()})


def changed_fields(variant: Variant) -> dict[str, Any]:
    """What the variant says that is not the stage's own."""
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


def train_variants(
    objective: ObjectiveName,
    *,
    groups: Sequence[PromptGroup],
    eval_groups: Sequence[PromptGroup],
    start: Artifact,
    reference: Artifact | None,
    out_dir: Path,
    config: TrainConfig,
    seed: int,
    progress: Progress,
    training: TrainingConfig,
    run_name: str,
) -> list[TrainedVariant]:
    """Train the stage once, in `out_dir`, or once a variant, in `out_dir/variant-01` and so on.

    After a kill, variants that are finished are taken over and the one that was at work goes on from its resume point.

    Raises:
        TrainingError, ModelError: as `train`.
    """
    from alignloop.training.loop import train

    frozen = None if reference is None else reference.path
    stage = TrainJob(
        objective, groups, eval_groups, start.path, frozen, out_dir, config, seed, progress, training, run_name
    )
    if not config.variants:
        return [TrainedVariant(None, {}, out_dir, tuple(range(len(groups))), train(stage))]
    models = {"start": start.digest, "reference": None if reference is None else reference.digest}
    trained: list[TrainedVariant] = []
    for number in range(1, len(config.variants) + 1):
        trained.append(_train_variant(stage, number, models=models, earlier=trained))
    return trained


def _train_variant(
    stage: TrainJob, number: int, *, models: Mapping[str, str | None], earlier: Sequence[TrainedVariant]
) -> TrainedVariant:
    """Train a variant, or take over what it left when it was finished.

    Args:
        models: digests of the models that the stage trains with.
    """
    from alignloop.training.loop import train

    config, variant = trainings(stage.config)[number - 1]
    changed, seed = changed_fields(variant), variant_seed(stage.seed, variant)
    rows = drawn_rows(len(stage.groups), fraction=variant.data_fraction, seed=seed)
    folder = stage.out_dir / f"variant-{number:02d}"
    groups, run_name = [stage.groups[row] for row in rows], f"{stage.run_name}/{folder.name}"
    job = replace(stage, config=config, groups=groups, out_dir=folder, seed=seed, run_name=run_name)
    key = key_of(
        trainer_version=TRAINER_VERSION,
        objective=job.objective,
        config=config.model_dump(mode="json"),
        seed=seed,
        groups=groups_digest(groups),
        eval_groups=groups_digest(job.eval_groups),
        **models,
    )
    result = _finished(folder, key=key)
    stage.progress.say(
        f"  variant {number} of {len(stage.config.variants)}: {changed_in_words(changed)}"
        + (" (finished before)" if result else "")
    )
    if result is None:
        _share_reference(folder, rows, earlier=earlier)
        result = train(job)
        _write_finished(folder, result, key=key)
    return TrainedVariant(number, changed, folder, rows, result)


def changed_in_words(changed: Mapping[str, Any]) -> str:
    """`learning_rate 2e-05, seed 1`."""
    return ", ".join(f"{name} {value}" for name, value in changed.items()) or "the stage as it is"


class _Result(BaseModel):
    """`result.json`: a `TrainResult` on disk, with the digest of what it was made from."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    key: str
    checkpoints: tuple[str, ...]
    metrics: dict[str, float]
    num_steps: int
    num_tokens: int
    dropped: Dropped
    checkpoint_metrics: tuple[dict[str, float], ...]


def _finished(folder: Path, *, key: str) -> TrainResult | None:
    """What a finished variant of this key left; None where there is none, or of something else."""
    path = folder / RESULT
    if not path.is_file():
        return None
    try:
        known = _Result.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError:
        return None  # of another version: trained again
    checkpoints = tuple(folder / name for name in known.checkpoints)
    if known.key != key or not all(checkpoint.is_dir() for checkpoint in checkpoints):
        return None
    return TrainResult(**known.model_dump(exclude={"key", "checkpoints"}), checkpoints=checkpoints)


def _write_finished(folder: Path, result: TrainResult, *, key: str) -> None:
    checkpoints = tuple(path.relative_to(folder).as_posix() for path in result.checkpoints)
    known = _Result(key=key, **{**vars(result), "checkpoints": checkpoints})
    write_text(folder / RESULT, known.model_dump_json(indent=1) + "\n")


def _share_reference(folder: Path, rows: Sequence[int], *, earlier: Sequence[TrainedVariant]) -> None:
    """An earlier variant on the same rows has the reference model's logprobs already; the cache checks its key."""
    twin = next((variant for variant in earlier if variant.rows == tuple(rows)), None)
    if twin is None or not (twin.dir / REFERENCE_CACHE).is_file() or (folder / REFERENCE_CACHE).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / REFERENCE_CACHE, (twin.dir / REFERENCE_CACHE).read_text(encoding="utf-8"))
