"""The processes of one training, seen from one of them: its rank, and what it exchanges with the others.

All processes must make every call here together, in the same order: a process that leaves a call out, or makes one
more, would leave the others waiting.

A module is wrapped over them data parallel, or sharded by torch's `fully_shard` with the settings of the accelerate
file. accelerate's own `prepare` shards on GPUs alone and swaps the optimiser's parameters afterwards; here the
optimiser is made of the sharded ones, and the same lines run on a CPU.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.nn.parallel import DistributedDataParallel

from alignloop.errors import TrainingError, UserError

Value = TypeVar("Value")

TIMEOUT = timedelta(hours=4)
"""How long a process waits for the others: the first one writes checkpoints meanwhile."""


@dataclass(frozen=True)
class Processes:
    """All processes as one of them sees them: the first, of rank 0, writes, reports and tracks.

    `sharded`: weights are split over the processes (FSDP2); otherwise each has all of them.
    """

    rank: int
    count: int
    device: torch.device
    sharded: bool = False

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def alone(self) -> bool:
        return self.count == 1

    @property
    def load_device(self) -> torch.device:
        """Where a model is loaded before it is wrapped: one that has to be sharded may not fit on a device whole."""
        return torch.device("cpu") if self.sharded else self.device

    def totals(self, values: Sequence[float]) -> list[float]:
        """Sums over the processes, number by number."""
        if self.alone:
            return list(values)
        # MPS has no float64, but there is no process group on it either.
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(total)
        result: list[float] = total.tolist()
        return result

    def gathered(self, value: Value) -> list[Value]:
        """Everyone's value, by rank."""
        if self.alone:
            return [value]
        values: list[Any] = [None] * self.count
        distributed.all_gather_object(values, value)
        return values

    def of_first(self, make: Callable[[], Value]) -> Value:
        """What `make` returns in the first process; the others do not call it."""
        if self.alone:
            return make()
        values: list[Any] = [make() if self.is_first else None]
        distributed.broadcast_object_list(values, src=0)
        value: Value = values[0]
        return value


def this_process() -> Processes:
    """A training of one process, on the accelerator where there is one."""
    device = torch.accelerator.current_accelerator(check_available=True)
    if device is None:
        return Processes(rank=0, count=1, device=torch.device("cpu"))
    return Processes(rank=0, count=1, device=torch.device(device.type, torch.accelerator.current_device_index()))


@contextmanager
def launched_processes() -> Iterator[Processes]:
    """The processes `accelerate launch` started, this one among them; their connection ends with the block."""
    from accelerate import PartialState

    # Under it transformers would leave the weights of every process but the first unread: each loads its own here.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=TIMEOUT)
    try:
        yield Processes(
            rank=state.process_index,
            count=state.num_processes,
            device=state.device,
            sharded=os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true",
        )
    finally:
        state.destroy_process_group()


TRAINED_PARTS = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
ALL_PARTS = StateDictOptions(full_state_dict=True, cpu_offload=True)
RESTORED_PARTS = StateDictOptions(full_state_dict=True, strict=False)


def wrapped(module: nn.Module, *, processes: Processes, bfloat16: bool, trains: bool = True) -> nn.Module:
    """The module whose `forward` all processes call together; gradients are means over the processes.

    `bfloat16`: it runs under autocast. `trains` is False for a model that is only evaluated: unsharded, each process
    calls its own.
    """
    if processes.sharded:
        return _sharded(module, processes=processes, bfloat16=bfloat16)
    if processes.alone or not trains:
        return module
    devices = None if processes.device.type == "cpu" else [processes.device]
    return DistributedDataParallel(module, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True)


def unwrapped(module: nn.Module) -> Any:
    return module.module if isinstance(module, DistributedDataParallel) else module


def without_sync(module: nn.Module) -> AbstractContextManager[None]:
    """Gradients stay in this process until the next backward pass after the block.

    Sharded modules go on sending them: kept back, they would be held whole.
    """
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()


def model_state(module: nn.Module, *, trained_only: bool) -> dict[str, Tensor]:
    """Whole tensors on the CPU, by the unwrapped module's names; in processes after the first it may be empty."""
    state: dict[str, Any] = get_model_state_dict(module, options=TRAINED_PARTS if trained_only else ALL_PARTS)
    # Tied weights come as copies of each other, of which a checkpoint would hold both.
    first_names: dict[nn.Parameter, str] = {}
    for name, parameter in unwrapped(module).named_parameters(remove_duplicate=False):
        first = first_names.setdefault(parameter, name)
        if name in state and first in state:
            state[name] = state[first]
    return state


def optimizer_state(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """As `model_state`: whole, by the names of the parameters, so that any number of processes can go on from it."""
    return get_optimizer_state_dict(module, optimizer, options=ALL_PARTS)


def write_optimizer(module: nn.Module, optimizer: torch.optim.Optimizer, path: Path, *, is_first: bool) -> None:
    """Write the state of each parameter, `NAME/exp_avg` and so on, as safetensors; the first process writes."""
    state = optimizer_state(module, optimizer)["state"]
    if is_first:
        tensors = {f"{name}/{slot}": value for name, slots in state.items() for slot, value in slots.items()}
        save_file(tensors, path)


def carry_optimizer(module: nn.Module, optimizer: torch.optim.Optimizer, path: Path) -> None:
    """Go on with the state that `write_optimizer` wrote; raises TrainingError where it is that of other parameters."""
    values = optimizer_state(module, optimizer)
    state: dict[str, dict[str, Tensor]] = {}
    for key, value in load_file(path).items():
        name, _, slot = key.rpartition("/")
        state.setdefault(name, {})[slot] = value
    before = {name: tuple(slots["exp_avg"].shape) for name, slots in state.items()}
    now = {name: tuple(slots["exp_avg"].shape) for name, slots in values["state"].items()}
    if before != now:
        other = sorted({*before.items()} ^ {*now.items()})[0][0]
        raise TrainingError(
            f"{path}: holds the optimizer's state of another model: {other} is {before.get(other, 'not there')}, here "
            f"{now.get(other, 'not there')} - set dpo.carry_optimizer: false"
        )
    set_optimizer_state_dict(module, optimizer, values | {"state": state}, options=RESTORED_PARTS)


def restore(
    module: nn.Module, optimizer: torch.optim.Optimizer, *, model: dict[str, Any], optimizer_values: dict[str, Any]
) -> None:
    """Load the results of `model_state` and `optimizer_state`; every process gets all of it."""
    set_model_state_dict(module, model, options=RESTORED_PARTS)
    set_optimizer_state_dict(module, optimizer, optimizer_values, options=RESTORED_PARTS)


def _sharded(module: Any, *, processes: Processes, bfloat16: bool) -> nn.Module:
    """Shard in place: the layers, then what is left, with the root at the module that is called.

    The root's own weights (embedding, norm, head) are whole from its forward to its backward pass, so that `forward`
    may read the head's weight. Layers compute with bfloat16 copies where autocast would make them anyway: its own
    copies would be kept for the backward pass, all layers' at once. The residual stream stays float32, as under
    autocast.
    """
    from accelerate.utils import FullyShardedDataParallelPlugin
    from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    try:
        plugin = FullyShardedDataParallelPlugin()
        plugin.set_auto_wrap_policy(module.model)
        is_unit = fsdp2_prepare_auto_wrap_policy(plugin, module.model)
    except ValueError as error:
        raise UserError(
            f"training.accelerate: fsdp_config does not fit {type(module.model).__name__}: {error}"
        ) from error
    mesh = init_device_mesh(processes.device.type, (processes.count,))
    precision = MixedPrecisionPolicy()
    if bfloat16:
        precision = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
    # Children first: a layer owns what is in it, whatever holds the layer owns the rest.
    for child in reversed(list(module.model.base_model.modules())[1:]):
        if is_unit is not None and is_unit(child):
            fully_shard(
                child,
                mesh=mesh,
                reshard_after_forward=plugin.reshard_after_forward,
                mp_policy=precision,
                offload_policy=plugin.cpu_offload,
            )
    return fully_shard(module, mesh=mesh, offload_policy=plugin.cpu_offload)
