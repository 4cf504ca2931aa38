"""Experiment trackers of one training, fed a step at a time.

    train_log row ─► Trackers.log ─┬► run_trackers: TensorBoard, wandb, MLflow, trackio: one run with all rounds
                                   └► transformers' own callback of any other: one run a stage

`train_log.jsonl` is the record; a tracker that fails is dropped, and training goes on.
"""

from __future__ import annotations

import difflib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import make_dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from alignloop.errors import RecipeError, UserError
from alignloop.terminal import printable
from alignloop.training.run_trackers import (
    PROJECT,
    RUN_TRACKERS,
    TENSORBOARD,
    curve_of,
    first_line,
    names_with_tensorboard,
    open_run_tracker,
    run_of,
)

LAST_STEP = ".told"
"""In a training's folder: the last step its trackers have."""

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
"""That bring a module of another name."""
VARIABLES = {"kubeflow": "KUBEFLOW_TRAINER_SERVER_URL"}

# transformers leaves these open at the end of a training; the next stage of the process must not write into them.
_LEFT_OPEN: dict[str, Callable[[Any], object]] = {
    "comet_ml": lambda callback: callback._experiment and callback._experiment.end(),
    "dagshub": lambda callback: import_module("mlflow").end_run(),
    "swanlab": lambda callback: import_module("swanlab").finish(),
}


def check_trackers(names: Sequence[str]) -> None:
    """Find out whether all trackers can be used; imports none of them.

    Raises:
        RecipeError: a `UserError` with every unknown name, and every package that is missing and how to install it.
    """
    problems = [problem for name in dict.fromkeys(names) if (problem := _problem(name)) is not None]
    if problems:
        raise RecipeError([f"training.trackers: {problem}" for problem in problems], where="training")


def _problem(name: str) -> str | None:
    if name not in TRACKERS:
        near = difflib.get_close_matches(name.lower(), TRACKERS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(TRACKERS)}"
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


class StepTracker(Protocol):
    """One tracker of one training."""

    @property
    def name(self) -> str: ...
    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...
    def close(self) -> None: ...


class Trackers:
    """The open trackers of one training."""

    def __init__(self, trackers: Sequence[StepTracker], *, folder: Path, say: Callable[[str], None]) -> None:
        self._trackers, self._say = list(trackers), say
        self._mark = folder / LAST_STEP

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Report the metrics of an optimiser step, counted from 1; steps come in order.

        After a resume some steps are trained a second time, and are not reported twice.
        """
        if not self._trackers or step <= self._last_step():
            return
        for tracker in list(self._trackers):
            self._guarded(tracker, lambda tracker=tracker: tracker.log(step, metrics))  # type: ignore[misc]
        self._mark.write_text(f"{step}\n", encoding="utf-8")

    def close(self) -> None:
        """Write out what is not yet written, and end every tracker's part."""
        for tracker in list(self._trackers):
            self._guarded(tracker, tracker.close)
        self._trackers = []

    def _last_step(self) -> int:
        text = self._mark.read_text(encoding="utf-8").strip() if self._mark.is_file() else ""
        return int(text) if text.isdigit() else 0

    def _guarded(self, tracker: StepTracker, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # whatever a tracker's library raises, hours of training are worth more
            self._trackers.remove(tracker)
            what = f"tracker {tracker.name}: {first_line(error)}"
            self._say(f"  {what}; left out from here on, train_log.jsonl has it all")


def open_trackers(
    names: Sequence[str],
    *,
    out_dir: Path,
    run_name: str,
    config: Mapping[str, Any],
    say: Callable[[str], None] | None = None,
) -> Trackers:
    """Start the named trackers; to be called in one process alone, with an `Accelerator` at work or without.

    In a run, TensorBoard is used always where it is installed. It, Weights & Biases, MLflow and trackio have one run
    for all rounds; any other has one a stage. A training outside a run is a run of its own.

    Args:
        names: as in `training.trackers`; none, outside a run: nothing is imported, and the result does nothing.
        run_name: of the stage, for example `round-01/02_train_reward`.
        config: the stage's config, as JSON-able values: what the trackers show as parameters.
        say: gets the line that says a tracker failed on the way; None: the standard error stream.

    Raises:
        UserError: an unknown name, a missing package, or a tracker that cannot start (not logged in, no network).
    """
    check_trackers(names)
    say = say or (lambda line: print(printable(line), file=sys.stderr))
    wanted = names_with_tensorboard(names) if run_of(out_dir, run_name) is not None else list(dict.fromkeys(names))
    opened: list[StepTracker] = []
    for name in wanted:
        try:
            kind = _RunSteps if name in RUN_TRACKERS else _CallbackSteps
            opened.append(kind(name, out_dir=out_dir, run_name=run_name, config=config))
        except Exception as error:  # libraries raise what they like where nobody is logged in
            if name not in names:
                say(f"  tracker {name}: {first_line(error)}; train_log.jsonl has it all")
                continue
            for other in opened:
                other.close()
            raise UserError(
                f"training.trackers: {name} cannot start: {first_line(error)}. Set it up, or leave it out"
            ) from error
    return Trackers(opened, folder=out_dir, say=say)


class _RunSteps:
    """A training's steps as part of the whole run's curve."""

    def __init__(self, name: str, *, out_dir: Path, run_name: str, config: Mapping[str, Any]) -> None:
        self.name, self._curve = name, curve_of(out_dir, run_name)
        self._tracker = open_run_tracker(name, self._curve.folder)
        self._tracker.describe(self._curve.group, config)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        group = self._curve.group
        self._tracker.log(self._curve.offset + step, metrics, group=group, axis=f"{group}/step")

    def close(self) -> None:
        self._tracker.close()


class _CallbackSteps:
    """A training's steps for one of transformers' callbacks."""

    def __init__(self, name: str, *, out_dir: Path, run_name: str, config: Mapping[str, Any]) -> None:
        from transformers.integrations.integration_utils import get_reporting_integration_callbacks
        from transformers.trainer_callback import TrainerControl, TrainerState

        folder = out_dir / "trackers"
        folder.mkdir(parents=True, exist_ok=True)
        self.name, self._arguments = name, _arguments(config, output_dir=folder, run_name=run_name)
        self._state, self._control = TrainerState(), TrainerControl()
        with _default_names(run_name):
            (callback,) = get_reporting_integration_callbacks([name])
            self._callback = callback()
            self._call("on_init_end")
            self._call("on_train_begin")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        logs = {name: float(value) for name, value in metrics.items()}
        self._state.global_step = step
        self._state.log_history.append({**logs, "step": step})
        self._call("on_log", logs=logs)
        self._call("on_step_end")

    def close(self) -> None:
        try:
            self._call("on_train_end")
        finally:
            if self.name in _LEFT_OPEN:
                _LEFT_OPEN[self.name](self._callback)

    def _call(self, event: str, **values: Any) -> None:
        handler = getattr(self._callback, event)
        handler(self._arguments, self._state, self._control, model=None, processing_class=None, **values)


def _arguments(config: Mapping[str, Any], *, output_dir: Path, run_name: str) -> Any:
    """What the callbacks read of `TrainingArguments`: its class's defaults; its fields are the stage's own config.

    Making a real one resets the state of accelerate, which the training at work stands on.
    """
    from transformers import TrainingArguments

    values = dict(_flat(config))

    def fallback(self: object, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(TrainingArguments, name, None)

    plain = {
        name: value if isinstance(value, bool | int | float | str) else str(value) for name, value in values.items()
    }
    namespace = {
        "__getattr__": fallback,
        "to_dict": lambda self: dict(values),
        "to_sanitized_dict": lambda self: dict(plain),
        "to_json_string": lambda self: json.dumps(values, indent=2, default=str),
        "output_dir": str(output_dir),
        "run_name": run_name or None,
        "project": PROJECT,
        "report_to": [],
    }
    kind = make_dataclass("StageArguments", [(name, Any) for name in values], namespace=namespace)
    return kind(**values)


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
        "MLFLOW_EXPERIMENT_NAME": PROJECT,
    }
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
