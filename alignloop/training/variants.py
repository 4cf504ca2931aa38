"""One training of a stage, or several with some fields changed (The Llama 3 Herd of Models, section 4.1.5).

    config ─► no variants ─► train() in the stage's folder
          └─► variants    ─► train() in variant-01/, variant-02/, ... each with its fields, its seed, its share of rows

Torch-free until something is trained: the plan counts what variants cost.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from alignloop.artifacts import Artifact, derive_seed, write_text
from alignloop.config.training import OptimizerConfig, TrainingConfig, Variant
from alignloop.packing.groups import PromptGroup
from alignloop.progress import Progress
from alignloop.training.digests import groups_digest, key_of
from alignloop.training.screening import Dropped, ObjectiveName

if TYPE_CHECKING:
    from alignloop.training.setup import TrainConfig
    from alignloop.training.trainer import TrainResult

RESULT = "result.json"
"""Written last in a variant's folder: where it stands, the variant is finished."""
REFERENCE_CACHE = "reference_logprobs.json"

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

    Args:
        run_name: the stage's, for trackers.

    Raises:
        TrainingError, ModelError: as `train`.
    """
    stage = _VariantStage(
        objective, groups, eval_groups, start, reference, out_dir, config, seed, progress, training, run_name
    )
    if not config.variants:
        every_row = tuple(range(len(groups)))
        result = stage.train(config, every_row, out_dir, seed=seed, run_name=run_name)
        return [TrainedVariant(None, {}, out_dir, every_row, result)]
    trained: list[TrainedVariant] = []
    for number in range(1, len(config.variants) + 1):
        trained.append(stage.variant(number, earlier=trained))
    return trained


@dataclass(frozen=True)
class _VariantStage:
    """The arguments of `train_variants`."""

    objective: ObjectiveName
    groups: Sequence[PromptGroup]
    eval_groups: Sequence[PromptGroup]
    start: Artifact
    reference: Artifact | None
    out_dir: Path
    config: TrainConfig
    seed: int
    progress: Progress
    training: TrainingConfig
    run_name: str

    def variant(self, number: int, *, earlier: Sequence[TrainedVariant]) -> TrainedVariant:
        """Train a variant, or take over what it left when it was finished."""
        config, variant = trainings(self.config)[number - 1]
        changed = changed_fields(variant)
        seed = variant_seed(self.seed, variant)
        rows = drawn_rows(len(self.groups), fraction=variant.data_fraction, seed=seed)
        folder = self.out_dir / f"variant-{number:02d}"
        key = self._key(config, rows, seed=seed)
        result = _finished(folder, key=key)
        self.progress.say(
            f"  variant {number} of {len(self.config.variants)}: {changed_in_words(changed)}"
            + (" (finished before)" if result else "")
        )
        if result is None:
            _share_reference(folder, rows, earlier=earlier)
            name = f"{self.run_name}/{folder.name}"
            result = self.train(config, rows, folder, seed=seed, run_name=name)
            _write_finished(folder, result, key=key)
        return TrainedVariant(number, changed, folder, rows, result)

    def train(
        self, config: TrainConfig, rows: Sequence[int], out_dir: Path, *, seed: int, run_name: str
    ) -> TrainResult:
        from alignloop.training.trainer import train

        return train(
            self.objective,
            groups=[self.groups[row] for row in rows],
            eval_groups=self.eval_groups,
            checkpoint=self.start.path,
            reference=None if self.reference is None else self.reference.path,
            out_dir=out_dir,
            config=config,
            seed=seed,
            progress=self.progress,
            training=self.training,
            run_name=run_name,
        )

    def _key(self, config: TrainConfig, rows: Sequence[int], *, seed: int) -> str:
        from alignloop.training.trainer import TRAINER_VERSION

        return key_of(
            trainer_version=TRAINER_VERSION,
            objective=self.objective,
            config=config.model_dump(mode="json"),
            seed=seed,
            start=self.start.digest,
            reference=None if self.reference is None else self.reference.digest,
            groups=groups_digest([self.groups[row] for row in rows]),
            eval_groups=groups_digest(self.eval_groups),
        )


def changed_in_words(changed: dict[str, Any]) -> str:
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
    from alignloop.training.trainer import TrainResult

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
    return TrainResult(
        checkpoints=checkpoints,
        metrics=known.metrics,
        num_steps=known.num_steps,
        num_tokens=known.num_tokens,
        dropped=known.dropped,
        checkpoint_metrics=known.checkpoint_metrics,
    )


def _write_finished(folder: Path, result: TrainResult, *, key: str) -> None:
    known = _Result(
        key=key,
        checkpoints=tuple(path.relative_to(folder).as_posix() for path in result.checkpoints),
        metrics=result.metrics,
        num_steps=result.num_steps,
        num_tokens=result.num_tokens,
        dropped=result.dropped,
        checkpoint_metrics=result.checkpoint_metrics,
    )
    write_text(folder / RESULT, known.model_dump_json(indent=1) + "\n")


def _share_reference(folder: Path, rows: Sequence[int], *, earlier: Sequence[TrainedVariant]) -> None:
    """An earlier variant on the same rows has the reference model's logprobs already; the cache checks its key."""
    twin = next((variant for variant in earlier if variant.rows == tuple(rows)), None)
    if twin is None or not (twin.dir / REFERENCE_CACHE).is_file() or (folder / REFERENCE_CACHE).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / REFERENCE_CACHE, (twin.dir / REFERENCE_CACHE).read_text(encoding="utf-8"))
