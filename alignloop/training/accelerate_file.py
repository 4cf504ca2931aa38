"""Which accelerate configuration a training runs under, and whether it can: before a model is loaded. Torch-free."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from alignloop.bundled import RECIPES
from alignloop.config.recipe import OptimizerConfig, TrainingConfig
from alignloop.errors import UserError

BUNDLED = ("ddp", "fsdp2")


@dataclass(frozen=True)
class AccelerateFile:
    """A configuration file that training can be started with.

    Attributes:
        sharded: FSDP2; otherwise every process holds the whole model.
        mixed_precision: what the file asks for; the stage's own `dtype` decides instead.
    """

    path: Path
    sharded: bool
    mixed_precision: str


def accelerate_file(training: TrainingConfig) -> AccelerateFile:
    """The file that `training.accelerate` names, checked.

    Raises:
        UserError: no such file, not one of accelerate's, or something in it that training here cannot do.
    """
    path = _path(training.accelerate)
    values = _read(path)
    if problem := _problem(values, training):
        raise UserError(f"{path}: {problem}")
    sharded = values.get("distributed_type") == "FSDP"
    return AccelerateFile(path, sharded, str(values.get("mixed_precision") or "no"))


def check_processes(training: TrainingConfig, *, config: OptimizerConfig, name: str) -> None:
    """Raises UserError where the stage `name` cannot be trained as `training` says; fine for one process."""
    if training.num_processes == 1:
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
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: not a readable YAML file: {error}") from error
    if not isinstance(values, dict) or "distributed_type" not in values:
        raise UserError(f"{path}: no accelerate configuration: it has no `distributed_type` - run `accelerate config`")
    return values


def _wrong_value(values: Mapping[str, Any], fsdp: Any) -> str | None:
    """A value that accelerate itself would fall over, or that names another machine."""
    if not isinstance(fsdp, dict):
        return f"fsdp_config is {fsdp!r}: a mapping of names and values is wanted"
    for where, name in (
        (values, "num_processes"),
        (values, "num_machines"),
        (values, "machine_rank"),
        (fsdp, "fsdp_min_num_params"),
    ):
        if where.get(name) is not None and type(where[name]) is not int:
            return f"{name} is {where[name]!r}: a whole number is wanted"
    if values.get("compute_environment", "LOCAL_MACHINE") != "LOCAL_MACHINE":
        return f"compute_environment is {values['compute_environment']}: training runs here (LOCAL_MACHINE)"
    for name in ("deepspeed_config", "main_process_ip"):
        if values.get(name):
            return f"{name}: training runs on one machine, with data parallel or FSDP - leave it out"
    return None


def _problem(values: Mapping[str, Any], training: TrainingConfig) -> str | None:
    """What in the file stands against this training, and what to do."""
    kind = values["distributed_type"]
    fsdp = values.get("fsdp_config") or {}
    if problem := _wrong_value(values, fsdp):
        return problem
    num_processes = values.get("num_processes")
    if kind not in ("MULTI_GPU", "FSDP"):
        return f"distributed_type is {kind}: MULTI_GPU (data parallel) or FSDP is wanted, on a CPU too"
    version = fsdp.get("fsdp_version") or 1
    if kind == "FSDP" and str(version) != "2":
        return f"fsdp_version is {version}: set fsdp_version: 2 (`accelerate to-fsdp2` rewrites the file)"
    if num_processes is not None and num_processes != training.num_processes:
        return (
            f"num_processes is {num_processes}, training.num_processes is {training.num_processes}: make them equal, "
            "or leave it out of the file"
        )
    if int(values.get("num_machines") or 1) != 1:
        return f"num_machines is {values['num_machines']}: training runs on one machine"
    if values.get("parallelism_config"):
        return "parallelism_config: tensor and context parallel training are not supported - leave it out"
    if fsdp.get("fsdp_activation_checkpointing"):
        return "fsdp_activation_checkpointing: set gradient_checkpointing: true in the recipe's stages instead"
    return None
