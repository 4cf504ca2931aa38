"""What an accelerate configuration file may say for a training here, held against accelerate's own names.

accelerate stops at a key it does not know, but lets one of `fsdp_config` fall without a word: both are found here.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Any

from alignloop.config.training import TrainingConfig

OLD_KEYS = ("fp16", "dynamo_backend")
"""Of earlier versions; accelerate still reads them."""
LAYER_CLASSES = "fsdp_transformer_layer_cls_to_wrap"
_ELSEWHERE = {
    "deepspeed_config": "training runs with data parallel or FSDP",
    "main_process_ip": "training runs on one machine",
    "mpirun_config": "training runs on one machine",
    "megatron_lm_config": "training runs with data parallel or FSDP",
    "fp8_config": "the stage's dtype decides, float32 or bfloat16",
    "parallelism_config": "tensor and context parallel training are not supported",
}
_SWITCHES = ("fsdp_reshard_after_forward", "fsdp_offload_params", "fsdp_activation_checkpointing")


def problem_of(values: Mapping[str, Any], training: TrainingConfig) -> str | None:
    """What in the file stands against this training, and what to do; None where nothing does."""
    if not isinstance(values.get("fsdp_config") or {}, dict):
        return f"fsdp_config is {values['fsdp_config']!r}: a mapping of names and values is wanted"
    fsdp = fsdp_values(values)
    alone = training.num_processes == 1
    return (
        _unknown_key(values, fsdp)
        or _wrong_number(values, fsdp)
        or _elsewhere(values)
        or _other_count(values, training)
        or (None if alone else _wrong_kind(values, fsdp, training) or _wrong_choice(values, fsdp))
    )


def fsdp_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """`fsdp_config` with the full name of every key; accelerate takes them without the `fsdp_`, too."""
    section = values.get("fsdp_config") or {}
    return {name if name.startswith("fsdp") else f"fsdp_{name}": value for name, value in section.items()}


def layer_classes(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the classes that are sharded as a unit, where the file says which."""
    fsdp = fsdp_values(values)
    if str(fsdp.get("fsdp_auto_wrap_policy")).upper() != "TRANSFORMER_BASED_WRAP":
        return ()
    names = fsdp.get(LAYER_CLASSES)
    return tuple(names.split(",")) if isinstance(names, str) else ()


def _unknown_key(values: Mapping[str, Any], fsdp: Mapping[str, Any]) -> str | None:
    from accelerate.commands.config.config_args import ClusterConfig
    from accelerate.commands.launch import launch_command_parser

    known = {*ClusterConfig.__dataclass_fields__, *OLD_KEYS}
    options = {action.dest for action in launch_command_parser()._actions}
    known_fsdp = {name for name in options if name.startswith("fsdp_")} | {"fsdp_ignored_modules"}
    for name in values:
        if name not in known:
            inside = "; it belongs under fsdp_config" if name in known_fsdp else _near(name, known)
            return f"unknown key {name!r}{inside} - leave it out, or write the file anew with `accelerate config`"
    for name in fsdp:
        if name not in known_fsdp:
            return (
                f"fsdp_config: unknown key {name!r}{_near(name, known_fsdp)} - leave it out; known keys: "
                f"{', '.join(sorted(known_fsdp))}"
            )
    return None


def _near(name: object, known: Collection[str]) -> str:
    near = difflib.get_close_matches(str(name), known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _wrong_number(values: Mapping[str, Any], fsdp: Mapping[str, Any]) -> str | None:
    for where, name in (
        (values, "num_processes"),
        (values, "num_machines"),
        (values, "machine_rank"),
        (fsdp, "fsdp_min_num_params"),
    ):
        if where.get(name) is not None and type(where[name]) is not int:
            return f"{name} is {where[name]!r}: a whole number is wanted"
    return None


def _elsewhere(values: Mapping[str, Any]) -> str | None:
    """What asks for another machine, or for another way of training."""
    if values.get("compute_environment", "LOCAL_MACHINE") != "LOCAL_MACHINE":
        return f"compute_environment is {values['compute_environment']}: training runs here (LOCAL_MACHINE)"
    if (values.get("num_machines") or 1) != 1:
        return f"num_machines is {values['num_machines']}: training runs on one machine"
    for name, reason in _ELSEWHERE.items():
        if values.get(name):
            return f"{name}: {reason} - leave it out"
    return None


def _other_count(values: Mapping[str, Any], training: TrainingConfig) -> str | None:
    count = values.get("num_processes")
    if count is None or count == training.num_processes:
        return None
    return (
        f"num_processes is {count}, training.num_processes is {training.num_processes}: make them equal, or leave it "
        "out of the file"
    )


def _wrong_kind(values: Mapping[str, Any], fsdp: Mapping[str, Any], training: TrainingConfig) -> str | None:
    kind = values["distributed_type"]
    if kind not in ("MULTI_GPU", "FSDP"):
        return f"distributed_type is {kind}: MULTI_GPU (data parallel) or FSDP is wanted, on a CPU too"
    gpus = values.get("gpu_ids")
    if gpus not in (None, "all") and len(str(gpus).split(",")) < training.num_processes:
        return (
            f"gpu_ids is {gpus}, training.num_processes is {training.num_processes}: name a GPU for each process (such "
            'as "0,1"), or all'
        )
    version = fsdp.get("fsdp_version") or 1
    if kind == "FSDP" and str(version) != "2":
        return f"fsdp_version is {version}: set fsdp_version: 2 (`accelerate to-fsdp2` rewrites the file)"
    return None


def _wrong_choice(values: Mapping[str, Any], fsdp: Mapping[str, Any]) -> str | None:
    """A value of fsdp_config that accelerate does not take, or that the recipe says in another place."""
    from accelerate.utils.constants import FSDP_AUTO_WRAP_POLICY, FSDP_STATE_DICT_TYPE

    if values["distributed_type"] != "FSDP":
        return None
    for name, choices in (
        ("fsdp_auto_wrap_policy", FSDP_AUTO_WRAP_POLICY),
        ("fsdp_state_dict_type", FSDP_STATE_DICT_TYPE),
    ):
        if fsdp.get(name) is not None and str(fsdp[name]).upper() not in choices:
            return f"{name} is {fsdp[name]!r}{_near(fsdp[name], choices)} - one of {', '.join(choices)} is wanted"
    for name in _SWITCHES:
        if fsdp.get(name) is not None and str(fsdp[name]).lower() not in ("true", "false"):
            return f"{name} is {fsdp[name]!r}: true or false is wanted"
    if str(fsdp.get("fsdp_activation_checkpointing")).lower() == "true":
        return "fsdp_activation_checkpointing: set gradient_checkpointing: true in the recipe's stages instead"
    if fsdp.get(LAYER_CLASSES) is not None and not isinstance(fsdp[LAYER_CLASSES], str):
        return f"{LAYER_CLASSES} is {fsdp[LAYER_CLASSES]!r}: names of classes with commas between them are wanted"
    return None
