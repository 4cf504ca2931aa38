"""Model averaging on disk: several checkpoints in, one complete Hugging Face directory out."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from alignloop.errors import ModelError
from alignloop.objectives.averaging import average_tensors, check_same_names, normalised_weights
from alignloop.training.checkpoints import written_aside


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
