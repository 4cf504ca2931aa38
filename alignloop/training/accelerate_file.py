"""Which accelerate configuration a training runs under, and whether it can: before a model is loaded.

Torch-free to import.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignloop.config.bundled import RECIPES
from alignloop.config.training import OptimizerConfig, TrainingConfig
from alignloop.config.yaml_values import YamlProblem, read_yaml
from alignloop.errors import ModelError, UserError
from alignloop.training.accelerate_values import LAYER_CLASSES, layer_classes, problem_of

BUNDLED = ("ddp", "fsdp2")


@dataclass(frozen=True)
class AccelerateFile:
    """A configuration file that training can be started with.

    Attributes:
        sharded: FSDP2; otherwise every process holds the whole model.
        mixed_precision: what the file asks for; the stage's own `dtype` decides instead.
        layer_classes: names of the classes sharded as a unit; empty: those the model names itself.
    """

    path: Path
    sharded: bool
    mixed_precision: str
    layer_classes: tuple[str, ...] = ()


def accelerate_file(training: TrainingConfig) -> AccelerateFile:
    """The file that `training.accelerate` names, checked.

    Raises:
        UserError: no such file, not one of accelerate's, or something in it that training here cannot do.
    """
    path = _path(training.accelerate)
    values = _read(path)
    if problem := problem_of(values, training):
        raise UserError(f"{path}: {problem}")
    sharded = values.get("distributed_type") == "FSDP"
    classes = layer_classes(values) if sharded else ()
    return AccelerateFile(path, sharded, str(values.get("mixed_precision") or "no"), classes)


def check_processes(training: TrainingConfig, *, config: OptimizerConfig, name: str) -> None:
    """Raises UserError where the stage `name` cannot be trained as `training` says.

    One process needs no file; one that is named all the same must still be one that does not ask for more.
    """
    if training.num_processes == 1:
        if training.accelerate not in BUNDLED:
            accelerate_file(training)
        return
    if training.num_processes > (os.cpu_count() or 1):
        raise UserError(
            f"training.num_processes is {training.num_processes}, but this machine has {os.cpu_count()} cores: "
            "give one process a GPU, or on a CPU at most one a core"
        )
    file = accelerate_file(training)
    if file.sharded and config.lora is not None and config.lora.quantize == "nf4":
        raise UserError(
            f"{name}.lora.quantize is nf4, training.accelerate is {training.accelerate}: 4-bit weights cannot be "
            "sharded - set training.accelerate: ddp, or quantize: none"
        )


def unused_file(training: TrainingConfig) -> str | None:
    """A note where `training.accelerate` is set although one process trains without it."""
    if training.num_processes > 1 or training.accelerate == TrainingConfig().accelerate:
        return None
    return f"training.accelerate: {training.accelerate} is not used: training.num_processes is 1"


def check_layer_classes(training: TrainingConfig, *, folder: Path) -> None:
    """Raises UserError where the file has layers sharded whose class the model in `folder` does not have.

    The model is built from its config.json without weights.
    """
    if training.num_processes == 1:
        return
    file = accelerate_file(training)
    if not file.layer_classes:
        return
    present, suggested = _module_classes(folder)
    for name in file.layer_classes:
        if name not in present:
            usual = f" - name {', '.join(suggested)}, or leave it out" if suggested else " - leave it out"
            raise UserError(f"{file.path}: {LAYER_CLASSES}: the base {folder} has no layer of class {name!r}{usual}")


def _module_classes(folder: Path) -> tuple[frozenset[str], tuple[str, ...]]:
    """(class names of the modules within a model, those it would have sharded itself)."""
    import torch
    from transformers import AutoConfig, AutoModel

    try:
        with torch.device("meta"):
            model = AutoModel.from_config(AutoConfig.from_pretrained(folder, local_files_only=True))
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{folder}/config.json: no model can be made of it: {error}") from error
    names = frozenset(type(module).__name__ for module in list(model.modules())[1:])
    return names, tuple(sorted(names.intersection(getattr(model, "_no_split_modules", None) or ())))


def _path(name: str) -> Path:
    if name in BUNDLED:
        return RECIPES / "accelerate" / f"{name}.yaml"
    path = Path(name).expanduser()
    if not path.is_file():
        raise UserError(
            f"training.accelerate: no such file: {path} - name a file that `accelerate config` wrote, or one of "
            f"{', '.join(BUNDLED)}"
        )
    return path


def _read(path: Path) -> Mapping[str, Any]:
    try:
        values = read_yaml(path)
    except YamlProblem as error:
        raise UserError(f"{path}: not a readable YAML file: {error}") from error
    if not isinstance(values, dict) or "distributed_type" not in values:
        raise UserError(f"{path}: no accelerate configuration: it has no `distributed_type` - run `accelerate config`")
    return values
