"""Model averaging on disk: several checkpoints in, one complete Hugging Face directory out."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from alignloop.config.training import AverageConfig
from alignloop.errors import ModelError, UserError
from alignloop.objectives.averaging import average_tensors, check_same_names, normalised_weights
from alignloop.training.checkpoints import written_aside


def shares_of(
    metrics: Sequence[Mapping[str, float]], *, config: AverageConfig, section: str = "averaging"
) -> tuple[float, ...]:
    """The share of each checkpoint in the mean: they sum to one, and what is not chosen has 0.

    Args:
        metrics: of each checkpoint on held-out rows, in order.
        section: the recipe's, for messages.

    Raises:
        UserError: not one weight for each that is averaged, or nothing to choose by.
    """
    count = len(metrics)
    chosen = tuple(range(count))
    if config.choose is not None and config.choose < count:
        chosen = best_checkpoints(metrics, choose=config.choose, metric=config.metric, section=section)
    if config.weights is not None and len(config.weights) != len(chosen):
        raise UserError(
            f"{section}.weights: {len(config.weights)} weights for {len(chosen)} checkpoints to average: give one "
            "each, or leave weights out (a stage of few steps keeps fewer than num_checkpoints)"
        )
    try:
        shares = dict(zip(chosen, normalised_weights(config.weights, count=len(chosen)), strict=True))
    except ValueError as error:
        raise UserError(f"{section}: {error}") from error
    return tuple(shares.get(number, 0.0) for number in range(count))


def best_checkpoints(
    metrics: Sequence[Mapping[str, float]], *, choose: int, metric: str, section: str = "averaging"
) -> tuple[int, ...]:
    """Indices of the best: lowest loss or highest accuracy on held-out rows, the later one of equals; in order.

    Raises:
        UserError: a checkpoint has no such metric.
    """
    if any(metric not in each for each in metrics):
        raise UserError(
            f"{section}.choose: the checkpoints have no {metric} on held-out rows to choose by - hold rows out "
            "(data.heldout_fraction above 0), give the stage's train_summary.json where it is run alone, or leave "
            "choose out"
        )
    sign = 1.0 if metric == "loss" else -1.0
    values = [math.inf if math.isnan(each[metric]) else sign * each[metric] for each in metrics]
    return tuple(sorted(sorted(range(len(metrics)), key=lambda number: (values[number], -number))[:choose]))


def average_checkpoints(checkpoints: Sequence[Path], *, out_dir: Path, weights: Sequence[float] | None = None) -> Path:
    """Weighted mean of checkpoints of one architecture (The Llama 3 Herd of Models, section 4.1.5).

    One tensor of every checkpoint is in memory at a time, and one output file. Averaging one checkpoint copies it.
    Config and tokenizer come from the last checkpoint.

    Args:
        weights: one per checkpoint, scaled to sum to one; None: uniform.

    Returns:
        `out_dir`, a complete directory.

    Raises:
        ModelError: the checkpoints do not fit together, or one holds no safetensors.
    """
    try:
        shares = normalised_weights(weights, count=len(checkpoints))
        with written_aside(out_dir) as partial:
            _copy_all(checkpoints[-1], partial, weights=len(checkpoints) == 1)
            if len(checkpoints) > 1:
                _average(checkpoints, partial, shares)
    except ValueError as error:
        raise ModelError(f"averaging {', '.join(str(path) for path in checkpoints)}: {error}") from error
    return out_dir


def tensor_files(checkpoint: Path) -> dict[str, Path]:
    """Tensor name -> the safetensors file that holds it.

    Raises:
        ModelError: there is none.
    """
    from safetensors import safe_open

    files = sorted(checkpoint.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{checkpoint}: no safetensors files to average")
    names: dict[str, Path] = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            names.update(dict.fromkeys(file.keys(), path))
    return names


def _copy_all(source: Path, target: Path, *, weights: bool) -> None:
    for path in sorted(source.iterdir()):
        if path.is_file() and (weights or path.suffix != ".safetensors"):
            shutil.copyfile(path, target / path.name)


def _average(checkpoints: Sequence[Path], target: Path, shares: Sequence[float]) -> None:
    """Writes files with the names and the tensors of the last checkpoint's."""
    from safetensors.torch import save_file

    located = [tensor_files(path) for path in checkpoints]
    for path, names in zip(checkpoints, located, strict=True):
        check_same_names(located[-1], names, other=str(path))
    for out_file in sorted(set(located[-1].values())):
        with ExitStack() as stack:
            readers = _Readers(stack)
            averaged = {
                name: average_tensors(
                    [readers.tensor(names[name], name) for names in located], weights=shares, name=name
                )
                for name, file in located[-1].items()
                if file == out_file
            }
            save_file(averaged, target / out_file.name, metadata={"format": "pt"})


class _Readers:
    """Open safetensors files, each opened once."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._open: dict[Path, Any] = {}

    def tensor(self, path: Path, name: str) -> Any:
        from safetensors import safe_open

        if path not in self._open:
            self._open[path] = self._stack.enter_context(safe_open(path, framework="pt"))
        return self._open[path].get_tensor(name)
