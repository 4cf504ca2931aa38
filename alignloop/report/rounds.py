"""A round's line of `rounds.jsonl`, from what its stages published."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from alignloop.artifacts import Artifact
from alignloop.records import RoundRow
from alignloop.run_dir.manifest import Manifest
from alignloop.run_dir.reader import published_stages

UNCOUNTED = ("average", "base", "evaluate", "measure")
"""Stages whose counts are not of rows."""


def round_row(run_dir: Path, number: int, *, policy: Artifact, stderr: dict[str, float]) -> RoundRow:
    """What a round came to.

    Args:
        policy: the checkpoint the round ends with (of round 0: the base).
        stderr: standard errors of the benchmarks, under the metrics' names.
    """
    manifests = [stage.manifest for stage in published_stages(run_dir, number)]
    return RoundRow(
        round=number,
        policy=policy.path.relative_to(run_dir.resolve()).as_posix(),
        metrics=_metrics(manifests, "evaluate"),
        stderr=stderr,
        reward_model=_reward_model(manifests),
        rows=_rows(manifests),
        seconds=_seconds(manifests),
        measures=_metrics(manifests, "measure"),
    )


def _rows(manifests: Sequence[Manifest]) -> dict[str, int]:
    counted = [manifest for manifest in manifests if manifest.stage not in UNCOUNTED]
    return {f"{manifest.stage}_{name}": count for manifest in counted for name, count in manifest.counts.items()}


def _reward_model(manifests: Sequence[Manifest]) -> dict[str, float]:
    """Held-out accuracy and loss of the reward model, and the rewards of the candidates it picked from."""
    trained = _metrics(manifests, "train_reward")
    heldout = {name.replace("eval_", "heldout_"): value for name, value in trained.items() if name.startswith("eval_")}
    return {**heldout, **_metrics(manifests, "select")}


def _metrics(manifests: Sequence[Manifest], stage: str) -> dict[str, float]:
    return {name: value for m in manifests if m.stage == stage for name, value in m.metrics.items()}


def _seconds(manifests: Sequence[Manifest]) -> dict[str, float]:
    total: dict[str, float] = {}
    for manifest in manifests:
        for activity, seconds in manifest.seconds.items():
            total[activity] = total.get(activity, 0.0) + seconds
    return {activity: round(seconds, 3) for activity, seconds in total.items()}
