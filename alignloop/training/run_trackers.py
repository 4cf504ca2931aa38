"""Trackers that show a whole run as one: every training's curves over all rounds, and every round's figures.

    train_log row ─► training (a step) ─┐
    RoundRow ─► track_round (a round) ──┴► TensorBoard, Weights & Biases, MLflow, trackio: one run, whatever process

A run's identity at each tracker is in `<run>/trackers/`, so a resumed run goes on in it. No tracker stays open between
two trainings: each opens the run, adds to it and closes it.

`accelerate.tracking` would save `init` and `log`, a line each, and nothing more: it logs through accelerate's global
state, which starts CUDA in a process that forks later; its TensorBoard makes a second run of what a run was made with,
its MLflow refuses a second round's, and rounds get no axis of their own.
"""

from __future__ import annotations

import json
import math
import os
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from alignloop.artifacts import fingerprint, load_json, write_text
from alignloop.errors import RunDirError
from alignloop.records import RoundRow
from alignloop.run_dir.layout import RESOLVED, round_dir, round_numbers

TENSORBOARD = "tensorboard"
PROJECT = "alignloop"
FOLDER = "trackers"
ROUNDS = "rounds.json"
"""In `trackers/`: tracker -> round -> the figures it has, as a fingerprint."""
LOG = "train_log.jsonl"
_STAGE = re.compile(r"round-(\d+)/\d+_([^/]+)(?:/(.+))?")


@dataclass(frozen=True)
class Curve:
    """Where a training's steps go.

    Attributes:
        folder: of the run; of the training itself, where it is part of none.
        group: prefix of the metrics: `train_dpo`, `train_dpo/variant-01`.
        offset: steps of this stage in earlier rounds.
    """

    folder: Path
    group: str
    offset: int = 0


def curve_of(out_dir: Path, run_name: str) -> Curve:
    """The curve a training's steps continue: that of the same stage in the rounds before; its own, where it runs alone.

    `run_name` is `round-01/02_train_reward`, `round-01/02_train_reward/variant-01`, or empty.
    """
    found, depth, folders = _STAGE.fullmatch(run_name), len(Path(run_name).parts), out_dir.absolute().parents
    if found is None or depth > len(folders) or not (folders[depth - 1] / RESOLVED).is_file():
        return Curve(out_dir, "train")
    run_dir, number, stage, rest = folders[depth - 1], int(found[1]), found[2], found[3] or "."
    earlier = [round_dir(run_dir, each) for each in round_numbers(run_dir) if each < number]
    logs = [log for folder in earlier for log in folder.glob(f"*_{stage}/{rest}/{LOG}")]
    group = stage if found[3] is None else f"{stage}/{rest}"
    return Curve(run_dir, group, sum(log.read_bytes().count(b"\n") for log in logs))


def names_with_tensorboard(names: Sequence[str]) -> list[str]:
    """TensorBoard is used always where it is installed; the recipe names the others."""
    installed = [TENSORBOARD] if TENSORBOARD not in names and find_spec(TENSORBOARD) is not None else []
    return [*installed, *dict.fromkeys(names)]


def first_line(error: Exception) -> str:
    """`OSError: out of ink`."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__


# ---- a round --------------------------------------------------------------------------------------------------------


def track_round(run_dir: Path, row: RoundRow, *, names: Sequence[str], say: Callable[[str], None]) -> None:
    """Report a finished round's figures to every tracker that does not have them yet.

    A tracker that fails is named to `say` and left out. `names` are as in `training.trackers`; TensorBoard need not be
    named, and those that know no runs are passed over.
    """
    file = run_dir / FOLDER / ROUNDS
    reported = _reported(file)
    mark, number = fingerprint(row.model_dump(mode="json")), str(row.round)
    for name in names_with_tensorboard(names):
        if name not in RUN_TRACKERS or reported.get(name, {}).get(number) == mark:
            continue
        try:
            tracker = RUN_TRACKERS[name](run_dir)
            try:
                for group, values in round_figures(row).items():
                    tracker.log(row.round, values, group=group, axis="round")
            finally:
                tracker.close()
            reported.setdefault(name, {})[number] = mark
            file.parent.mkdir(exist_ok=True)
            write_text(file, json.dumps(reported, indent=1) + "\n")
        except Exception as error:  # whatever a tracker's library raises, the run is worth more
            say(f"  tracker {name}: {first_line(error)}; round {row.round} stands in rounds.jsonl")


def _reported(file: Path) -> dict[str, dict[str, str]]:
    """What `rounds.json` holds; nothing where that cannot be read: it is reported again."""
    try:
        found = load_json(file)
    except ValueError:
        return {}
    trackers = found.items() if isinstance(found, dict) else ()
    return {name: rounds for name, rounds in trackers if isinstance(rounds, dict)}


def round_figures(row: RoundRow) -> dict[str, dict[str, float]]:
    """A round's figures by group; empty groups are left out."""
    groups = {
        "benchmarks": row.metrics,
        "benchmarks_stderr": row.stderr,
        "reward_model": row.reward_model,
        "measures": row.measures,
        "rows": {name: float(count) for name, count in row.rows.items()},
        "seconds": row.seconds,
    }
    return {name: dict(values) for name, values in groups.items() if values}


# ---- the run at each tracker ----------------------------------------------------------------------------------------


class Tracker(Protocol):
    """One run at one tracker, open: the run that was begun for the folder, or a new one."""

    def log(self, step: int, metrics: Mapping[str, float], *, group: str, axis: str) -> None:
        """Add `group/name` of each metric at `step` of the axis, and see that it is stored."""

    def describe(self, name: str, values: Mapping[str, Any]) -> None:
        """Show what something was made with."""

    def close(self) -> None:
        """End the process's part in the run."""


class _Tensorboard:
    """Events under `<run>/tensorboard`, all in one folder: TensorBoard shows them as one run."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(log_dir=str(folder / TENSORBOARD))

    def log(self, step: int, metrics: Mapping[str, float], *, group: str, axis: str) -> None:
        for name, value in _finite(metrics, group=group).items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def describe(self, name: str, values: Mapping[str, Any]) -> None:
        text = json.dumps(values, indent=1, default=str)
        self._writer.add_text(f"{name}/config", f"```json\n{text}\n```")

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    """Each group has its own axis, since rounds and steps count differently."""

    def __init__(self, folder: Path) -> None:
        wandb: Any = import_module("wandb")

        (folder / FOLDER).mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=_identity(folder, "wandb"),
            name=folder.resolve().name,
            resume="allow",
            dir=str(folder / FOLDER),
            settings=wandb.Settings(silent=True),
        )
        self._defined: set[str] = set()

    def log(self, step: int, metrics: Mapping[str, float], *, group: str, axis: str) -> None:
        if group not in self._defined:
            self._run.define_metric(axis)
            self._run.define_metric(f"{group}/*", step_metric=axis)
            self._defined.add(group)
        self._run.log({axis: step, **_finite(metrics, group=group)})

    def describe(self, name: str, values: Mapping[str, Any]) -> None:
        self._run.config.update({name: dict(values)}, allow_val_change=True)

    def close(self) -> None:
        self._run.finish()


class _Mlflow:
    """Its names take letters, digits and `_-. :/` alone."""

    def __init__(self, folder: Path) -> None:
        self._mlflow: Any = import_module("mlflow")

        if "MLFLOW_EXPERIMENT_NAME" not in os.environ and "MLFLOW_EXPERIMENT_ID" not in os.environ:
            self._mlflow.set_experiment(PROJECT)
        known = known_identity(folder, "mlflow")
        # A run that another process of ours left open in this one is ended: MLflow keeps one a process.
        self._mlflow.end_run()
        run = self._mlflow.start_run(run_id=known, run_name=None if known else folder.resolve().name)
        if known is None:
            _remember(folder, "mlflow", str(run.info.run_id))

    def log(self, step: int, metrics: Mapping[str, float], *, group: str, axis: str) -> None:
        values = {self._name(name): value for name, value in _finite(metrics, group=group).items()}
        self._mlflow.log_metrics(values, step=step, synchronous=True)

    def describe(self, name: str, values: Mapping[str, Any]) -> None:
        self._mlflow.log_dict(dict(values), f"config/{self._name(name).replace('/', '-')}.json")

    def close(self) -> None:
        self._mlflow.end_run()

    @staticmethod
    def _name(name: str) -> str:
        return re.sub(r"[^\w\-. :/]", "_", name)


class _Trackio:
    """Known by its name, which holds the run's own identity."""

    def __init__(self, folder: Path) -> None:
        self._trackio: Any = import_module("trackio")

        name = f"{folder.resolve().name}-{_identity(folder, 'trackio')}"
        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        self._trackio.init(project=project, name=name, resume="allow", embed=False)

    def log(self, step: int, metrics: Mapping[str, float], *, group: str, axis: str) -> None:
        self._trackio.log({axis: step, **_finite(metrics, group=group)})

    def describe(self, name: str, values: Mapping[str, Any]) -> None:
        """Its config is fixed when a run begins: the manifests have the stages'."""

    def close(self) -> None:
        self._trackio.finish()


RUN_TRACKERS: dict[str, Callable[[Path], Tracker]] = {
    TENSORBOARD: _Tensorboard,
    "wandb": _Wandb,
    "mlflow": _Mlflow,
    "trackio": _Trackio,
}
"""Those that show a run as one; any other that transformers knows shows one a stage."""


def _identity(folder: Path, name: str) -> str:
    """The run's identity at a tracker that lets us choose it; made at first."""
    known = known_identity(folder, name)
    return known or _remember(folder, name, secrets.token_hex(4))


def known_identity(folder: Path, name: str) -> str | None:
    """What a tracker calls the run that a folder belongs to; None where it has none yet."""
    path = folder / FOLDER / f"{name}.json"
    if not path.is_file():
        return None
    try:
        return str(load_json(path)["id"])
    except (ValueError, KeyError, TypeError) as error:
        raise RunDirError(
            f"{path}: does not name a run at {name} ({error}); remove it, and {name} shows a new run from here on"
        ) from error


def _remember(folder: Path, name: str, identity: str) -> str:
    path = folder / FOLDER / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({"id": identity}) + "\n")
    return identity


def _finite(metrics: Mapping[str, float], *, group: str) -> dict[str, float]:
    """By `group/name`."""
    return {f"{group}/{name}": float(value) for name, value in metrics.items() if math.isfinite(value)}
