"""What a training's steps are written to: `train_log.jsonl`, which is the record, and experiment trackers.

    train_log row ─► Trackers.log ─┬► run_trackers: TensorBoard, wandb, MLflow, trackio: one run with all rounds
                                   └► transformers' own callback of any other: one run a stage

A tracker that fails is dropped, and training goes on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import make_dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from alignloop.artifacts import write_text
from alignloop.errors import RecipeError, UserError, did_you_mean
from alignloop.training.run_trackers import (
    FOLDER,
    PROJECT,
    RUN_TRACKERS,
    TENSORBOARD,
    Curve,
    Tracker,
    curve_of,
    first_line,
    names_with_tensorboard,
)

LAST_STEP = ".told"
"""In a training's folder: the last step its trackers have."""
LAST_STEPS = 10
HELD_OUT = "eval_"
NO_MEANS = frozenset({"step", "learning_rate", "grad_norm", "tokens_per_second", "num_tokens"})

TRACKERS: dict[str, tuple[str, ...]] = {
    "azure_ml": ("azureml",),
    "clearml": ("clearml",),
    "codecarbon": ("codecarbon",),
    "comet_ml": ("comet_ml",),
    "dagshub": ("dagshub", "mlflow"),
    "dvclive": ("dvclive",),
    "flyte": ("flytekit",),
    "kubeflow": (),
    "mlflow": ("mlflow",),
    "neptune": ("neptune",),
    "swanlab": ("swanlab",),
    TENSORBOARD: ("tensorboard",),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
}
"""Every tracker transformers knows, and the modules it needs: a recipe is checked without importing transformers."""
PACKAGES = {"azureml": "azureml-sdk"}
"""Module -> the package that installs it, where their names differ."""
VARIABLES = {"kubeflow": "KUBEFLOW_TRAINER_SERVER_URL"}

# transformers leaves these open at the end of a training; the next stage of the process must not write into them.
_LEFT_OPEN: dict[str, Callable[[Any], object]] = {
    "comet_ml": lambda callback: callback._experiment and callback._experiment.end(),
    "dagshub": lambda callback: import_module("mlflow").end_run(),
    "swanlab": lambda callback: import_module("swanlab").finish(),
}


class TrainLog:
    """Appends a line a step; after a resume the lines of steps that are trained again are cut away."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, step: int, values: Mapping[str, float]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")

    def cut_after(self, step: int) -> None:
        """Keep the lines of the first `step` steps. A line cut short by a kill goes too."""
        rows = [row for row in self.rows() if row["step"] <= step]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in rows))

    def rows(self) -> list[dict[str, Any]]:
        if not self.path.is_file():
            return []
        lines = self.path.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def metrics(self, kept_steps: Sequence[int]) -> tuple[dict[str, float], tuple[dict[str, float], ...]]:
        """What a finished training measured.

        `train_*`, means over the last steps of the loss and of the objective's metrics, `eval_*` on the held-out groups
        at the end, `step_0_dpo_loss`; and the metrics on those groups after each of the kept steps.
        """
        rows = self.rows()
        by_step, last = {row["step"]: row for row in rows}, rows[-LAST_STEPS:]
        held_out = tuple(
            {name.removeprefix(HELD_OUT): value for name, value in by_step[step].items() if name.startswith(HELD_OUT)}
            for step in kept_steps
        )
        names = [name for name in last[-1] if name not in NO_MEANS and not name.startswith(HELD_OUT)]
        metrics = {f"train_{name}": sum(row[name] for row in last) / len(last) for name in names}
        metrics |= {f"eval_{name}": value for name, value in held_out[-1].items()}
        if "dpo_loss" in rows[0]:
            metrics["step_0_dpo_loss"] = rows[0]["dpo_loss"]
        return metrics, held_out


# ---- which trackers can be used -------------------------------------------------------------------------------------


def check_trackers(names: Sequence[str]) -> None:
    """Check that all trackers can be used; imports none of them.

    Raises:
        RecipeError: a `UserError` with every unknown name, and every package that is missing and how to install it.
    """
    problems = [problem for name in dict.fromkeys(names) if (problem := _problem(name)) is not None]
    if problems:
        raise RecipeError([f"training.trackers: {problem}" for problem in problems], where="training")


def _problem(name: str) -> str | None:
    if name not in TRACKERS:
        hint = did_you_mean(name.lower(), TRACKERS, cutoff=0.5, quote="'") or f"known: {', '.join(TRACKERS)}"
        return f"unknown tracker {name!r} - {hint}"
    variable = VARIABLES.get(name)
    if variable is not None and not os.environ.get(variable):
        return f"{name} works where {variable} is set (by its controller) - leave it out here"
    if missing := [module for module in TRACKERS[name] if not _installed(module)]:
        packages = " ".join(PACKAGES.get(module, module) for module in TRACKERS[name])
        return f"{name} needs {', '.join(missing)}, not installed here - pip install {packages}"
    return None


def _installed(module: str) -> bool:
    spec = find_spec(module)
    # A mere folder of that name (wandb and others leave one where they ran) is found, too, as a namespace package.
    return spec is not None and (spec.origin is not None or find_spec(f"{module}.core") is not None)


# ---- one training ---------------------------------------------------------------------------------------------------


class Trackers:
    """The open trackers of one training.

    Args:
        opened: by name: the tracker, and where this training's steps go in it.
        say: gets the line that names a tracker that failed on the way.
    """

    def __init__(
        self, opened: Mapping[str, tuple[Tracker, Curve]], *, folder: Path, say: Callable[[str], None]
    ) -> None:
        self._open, self._say = dict(opened), say
        self._last = folder / LAST_STEP

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Report the metrics of an optimiser step, counted from 1; steps come in order.

        After a resume some steps are trained a second time, and are not reported twice.
        """
        if not self._open or step <= self._last_step():
            return
        for name, (tracker, curve) in list(self._open.items()):
            with self._guarded(name):
                tracker.log(curve.offset + step, metrics, group=curve.group, axis=f"{curve.group}/step")
        self._last.write_text(f"{step}\n", encoding="utf-8")

    def close(self) -> None:
        """Write what is not yet written, and end every tracker's part."""
        for name, (tracker, _) in list(self._open.items()):
            with self._guarded(name):
                tracker.close()
        self._open = {}

    def _last_step(self) -> int:
        text = self._last.read_text(encoding="utf-8").strip() if self._last.is_file() else ""
        return int(text) if text.isdigit() else 0

    @contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever a tracker's library raises, hours of training are worth more
            del self._open[name]
            what = f"tracker {name}: {first_line(error)}"
            self._say(f"  {what}; left out from here on, train_log.jsonl has it all")


def open_trackers(
    names: Sequence[str], *, out_dir: Path, run_name: str, config: Mapping[str, Any], say: Callable[[str], None]
) -> Trackers:
    """Start the named trackers; to be called in one process alone, with an `Accelerator` at work or without.

    In a run, TensorBoard is used always where it is installed. It, Weights & Biases, MLflow and trackio have one run
    for all rounds; any other has one a stage. A training that is not part of a run is a run of its own.

    Args:
        names: as in `training.trackers`; without any, and not in a run, nothing is imported, and the result does
            nothing.
        run_name: of the stage, for example `round-01/02_train_reward`.
        config: the stage's config, as JSON-able values: what the trackers show as parameters.

    Raises:
        UserError: an unknown name, a missing package, or a tracker that cannot start (not logged in, no network).
    """
    check_trackers(names)
    curve = curve_of(out_dir, run_name)
    wanted = names_with_tensorboard(names) if curve.folder != out_dir else list(dict.fromkeys(names))
    opened: dict[str, tuple[Tracker, Curve]] = {}
    for name in wanted:
        try:
            if name in RUN_TRACKERS:
                tracker = RUN_TRACKERS[name](curve.folder)
                tracker.describe(curve.group, config)
                opened[name] = tracker, curve
            else:
                opened[name] = _Callback(name, out_dir, run_name, config), Curve(out_dir, "train")
        except Exception as error:  # libraries raise what they like where nobody is logged in
            if name not in names:
                say(f"  tracker {name}: {first_line(error)}; train_log.jsonl has it all")
                continue
            for other, _ in opened.values():
                other.close()
            raise UserError(
                f"training.trackers: {name} cannot start: {first_line(error)}. Set it up, or leave it out"
            ) from error
    return Trackers(opened, folder=out_dir, say=say)


class _Callback:
    """One of transformers' callbacks: a run of its own for each training."""

    def __init__(self, name: str, out_dir: Path, run_name: str, config: Mapping[str, Any]) -> None:
        from transformers.integrations.integration_utils import get_reporting_integration_callbacks
        from transformers.trainer_callback import TrainerControl, TrainerState

        folder = out_dir / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        self._name, self._arguments = name, _arguments(config, output_dir=folder, run_name=run_name)
        self._state, self._control = TrainerState(), TrainerControl()
        with _default_names(run_name):
            (callback,) = get_reporting_integration_callbacks([name])
            self._callback = callback()
            self._call("on_init_end")
            self._call("on_train_begin")

    def log(self, step: int, metrics: Mapping[str, float], *, group: str, axis: str) -> None:
        logs = {name: float(value) for name, value in metrics.items()}
        self._state.global_step = step
        self._state.log_history.append({**logs, "step": step})
        self._call("on_log", logs=logs)
        self._call("on_step_end")

    def describe(self, name: str, values: Mapping[str, Any]) -> None:
        """The callbacks have shown the arguments when training began."""

    def close(self) -> None:
        try:
            self._call("on_train_end")
        finally:
            if self._name in _LEFT_OPEN:
                _LEFT_OPEN[self._name](self._callback)

    def _call(self, event: str, **values: Any) -> None:
        handler = getattr(self._callback, event)
        handler(self._arguments, self._state, self._control, model=None, processing_class=None, **values)


def _arguments(config: Mapping[str, Any], *, output_dir: Path, run_name: str) -> Any:
    """What the callbacks read of `TrainingArguments`: its class's defaults; its fields are the stage's own config.

    Making a real one resets the state of accelerate, which the training at work depends on.
    """
    from transformers import TrainingArguments

    values = dict(_flat(config))

    def fallback(self: object, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(TrainingArguments, name, None)

    plain = {name: value if isinstance(value, int | float | str) else str(value) for name, value in values.items()}
    namespace = {
        "__getattr__": fallback,
        "to_dict": lambda self: dict(values),
        "to_sanitized_dict": lambda self: dict(plain),
        "output_dir": str(output_dir),
        "run_name": run_name or None,
    }
    return make_dataclass("StageArguments", [(name, Any) for name in values], namespace=namespace)(**values)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}_")
        else:
            yield f"{prefix}{name}", value


@contextmanager
def _default_names(run_name: str) -> Iterator[None]:
    """Where the user has not named project and task, ours instead of `huggingface` and `Trainer`."""
    wanted = {
        "COMET_PROJECT_NAME": PROJECT,
        "CLEARML_PROJECT": PROJECT,
        "CLEARML_TASK": run_name or PROJECT,
        "SWANLAB_PROJECT": PROJECT,
    }
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
