"""Which accelerate configuration a training runs under, and whether it can, found out before a model is loaded.

accelerate refuses an unknown key, but silently ignores one in `fsdp_config`: both are checked here against accelerate's
own names. Torch-free to import.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignloop.config.bundled import RECIPES
from alignloop.config.training import OptimizerConfig, TrainingConfig
from alignloop.config.yaml_values import YamlProblem, read_yaml
from alignloop.errors import ModelError, UserError, did_you_mean

BUNDLED = ("ddp", "fsdp2")
OLD_KEYS = ("fp16", "dynamo_backend")
"""Of earlier versions; accelerate still reads them."""
LAYER_CLASSES = "fsdp_transformer_layer_cls_to_wrap"
_UNSUPPORTED = {
    "deepspeed_config": "training runs with data parallel or FSDP",
    "main_process_ip": "training runs on one machine",
    "mpirun_config": "training runs on one machine",
    "megatron_lm_config": "training runs with data parallel or FSDP",
    "fp8_config": "the stage's dtype decides, float32 or bfloat16",
    "parallelism_config": "tensor and context parallel training are not supported",
}
_SWITCHES = ("fsdp_reshard_after_forward", "fsdp_offload_params", "fsdp_activation_checkpointing")


@dataclass(frozen=True)
class AccelerateFile:
    """A configuration file that training can be started with.

    Attributes:
        sharded: FSDP2; otherwise every process holds the whole model.
        mixed_precision: of the file; the stage's own `dtype` decides instead.
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
    try:
        values = read_yaml(path)
    except YamlProblem as error:
        raise UserError(f"{path}: not a readable YAML file: {error}") from error
    if not isinstance(values, dict) or "distributed_type" not in values:
        raise UserError(f"{path}: no accelerate configuration: it has no `distributed_type` - run `accelerate config`")
    section = values.get("fsdp_config") or {}
    if not isinstance(section, dict):
        raise UserError(f"{path}: fsdp_config is {section!r}: a mapping of names and values is wanted")
    # accelerate takes its keys without the `fsdp_`, too.
    fsdp = {name if name.startswith("fsdp") else f"fsdp_{name}": value for name, value in section.items()}
    problem = next(_problems(values, fsdp, training), None)
    if problem is not None:
        raise UserError(f"{path}: {problem}")
    sharded = values["distributed_type"] == "FSDP"
    by_class = sharded and str(fsdp.get("fsdp_auto_wrap_policy")).upper() == "TRANSFORMER_BASED_WRAP"
    names = fsdp.get(LAYER_CLASSES) if by_class else None
    classes = tuple(names.split(",")) if isinstance(names, str) else ()
    return AccelerateFile(path, sharded, str(values.get("mixed_precision") or "no"), classes)


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
    """Raises UserError where the file shards layers of a class that the model in `folder` does not have.

    The model is built from its config.json without weights.
    """
    if training.num_processes == 1 or not (file := accelerate_file(training)).layer_classes:
        return
    import torch
    from transformers import AutoConfig, AutoModel

    try:
        with torch.device("meta"):
            model = AutoModel.from_config(AutoConfig.from_pretrained(folder, local_files_only=True))
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{folder}/config.json: no model can be made of it: {error}") from error
    present = {type(module).__name__ for module in list(model.modules())[1:]}
    own = sorted(present.intersection(getattr(model, "_no_split_modules", None) or ()))
    for name in file.layer_classes:
        if name not in present:
            usual = f" - name {', '.join(own)}, or leave it out" if own else " - leave it out"
            raise UserError(f"{file.path}: {LAYER_CLASSES}: the base {folder} has no layer of class {name!r}{usual}")


# ---- what in a file stands against this training, and what to do ----------------------------------------------------


def _problems(values: Mapping[str, Any], fsdp: Mapping[str, Any], training: TrainingConfig) -> Iterator[str]:
    """Problems, of which the first counts; `fsdp` has the values of `fsdp_config`, by the full names of their keys."""
    yield from _unknown_keys(values, fsdp)
    numbers = {name: values.get(name) for name in ("num_processes", "num_machines", "machine_rank")}
    for name, number in (numbers | {"fsdp_min_num_params": fsdp.get("fsdp_min_num_params")}).items():
        if number is not None and type(number) is not int:
            yield f"{name} is {number!r}: a whole number is wanted"
    if values.get("compute_environment", "LOCAL_MACHINE") != "LOCAL_MACHINE":
        yield f"compute_environment is {values['compute_environment']}: training runs here (LOCAL_MACHINE)"
    if (values.get("num_machines") or 1) != 1:
        yield f"num_machines is {values['num_machines']}: training runs on one machine"
    for name, reason in _UNSUPPORTED.items():
        if values.get(name):
            yield f"{name}: {reason} - leave it out"
    count = values.get("num_processes")
    if count is not None and count != training.num_processes:
        yield (
            f"num_processes is {count}, training.num_processes is {training.num_processes}: make them equal, or leave "
            "it out of the file"
        )
    if training.num_processes > 1:
        yield from _wrong_kinds(values, fsdp, training)
        if values["distributed_type"] == "FSDP":
            yield from _wrong_choices(fsdp)


def _unknown_keys(values: Mapping[str, Any], fsdp: Mapping[str, Any]) -> Iterator[str]:
    from accelerate.commands.config.config_args import ClusterConfig
    from accelerate.commands.launch import launch_command_parser

    known = {*ClusterConfig.__dataclass_fields__, *OLD_KEYS}
    options = {action.dest for action in launch_command_parser()._actions}
    known_fsdp = {name for name in options if name.startswith("fsdp_")} | {"fsdp_ignored_modules"}
    for name in values:
        if name not in known:
            inside = "; it belongs under fsdp_config" if name in known_fsdp else _near(name, known)
            yield f"unknown key {name!r}{inside} - leave it out, or write the file anew with `accelerate config`"
    for name in fsdp:
        if name not in known_fsdp:
            yield (
                f"fsdp_config: unknown key {name!r}{_near(name, known_fsdp)} - leave it out; known keys: "
                f"{', '.join(sorted(known_fsdp))}"
            )


def _near(name: object, known: Collection[str]) -> str:
    hint = did_you_mean(str(name), known)
    return f"; {hint}" if hint else ""


def _wrong_kinds(values: Mapping[str, Any], fsdp: Mapping[str, Any], training: TrainingConfig) -> Iterator[str]:
    kind, gpus, version = values["distributed_type"], values.get("gpu_ids"), fsdp.get("fsdp_version") or 1
    if kind not in ("MULTI_GPU", "FSDP"):
        yield f"distributed_type is {kind}: MULTI_GPU (data parallel) or FSDP is wanted, on a CPU too"
    if gpus not in (None, "all") and len(str(gpus).split(",")) < training.num_processes:
        yield (
            f"gpu_ids is {gpus}, training.num_processes is {training.num_processes}: name a GPU for each process (such "
            'as "0,1"), or all'
        )
    if kind == "FSDP" and str(version) != "2":
        yield f"fsdp_version is {version}: set fsdp_version: 2 (`accelerate to-fsdp2` rewrites the file)"


def _wrong_choices(fsdp: Mapping[str, Any]) -> Iterator[str]:
    """A value that accelerate does not take, or that the recipe has a key of its own for."""
    from accelerate.utils.constants import FSDP_AUTO_WRAP_POLICY, FSDP_STATE_DICT_TYPE

    lists = {"fsdp_auto_wrap_policy": FSDP_AUTO_WRAP_POLICY, "fsdp_state_dict_type": FSDP_STATE_DICT_TYPE}
    for name, choices in lists.items():
        if fsdp.get(name) is not None and str(fsdp[name]).upper() not in choices:
            yield f"{name} is {fsdp[name]!r}{_near(fsdp[name], choices)} - one of {', '.join(choices)} is wanted"
    for name in _SWITCHES:
        if fsdp.get(name) is not None and str(fsdp[name]).lower() not in ("true", "false"):
            yield f"{name} is {fsdp[name]!r}: true or false is wanted"
    if str(fsdp.get("fsdp_activation_checkpointing")).lower() == "true":
        yield "fsdp_activation_checkpointing: set gradient_checkpointing: true in the recipe's stages instead"
    if fsdp.get(LAYER_CLASSES) is not None and not isinstance(fsdp[LAYER_CLASSES], str):
        yield f"{LAYER_CLASSES} is {fsdp[LAYER_CLASSES]!r}: names of classes with commas between them are wanted"
