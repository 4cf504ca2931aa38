"""The processes of one training, seen from one of them: who it is, and what it says to the others.

Everything here is called by all processes together, in the same order: a process that leaves a call out, or makes one
more, would leave the others waiting.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed

Value = TypeVar("Value")

TIMEOUT = timedelta(hours=4)
"""How long a process waits for the others: the first one writes checkpoints meanwhile."""


@dataclass(frozen=True)
class Processes:
    """Attributes:
    rank: this process, 0 is the first: it writes, tells and tracks.
    count: how many there are.
    device: this process's own.
    sharded: weights are split over the processes (FSDP2); otherwise each has all of them.
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

    def sums(self, values: Mapping[str, float]) -> dict[str, float]:
        """Sums over the processes of numbers that all of them have, by name."""
        return dict(zip(values, self.totals(list(values.values())), strict=True))

    def totals(self, values: Sequence[float]) -> list[float]:
        """Sums over the processes, one a place."""
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
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return Processes(rank=0, count=1, device=_with_index(accelerator) or torch.device("cpu"))


def _with_index(device: torch.device | None) -> torch.device | None:
    return torch.device(device.type, torch.accelerator.current_device_index()) if device is not None else None


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


def merged_sums(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Sums by name of mappings that need not have the same names."""
    totals: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            totals[name] = totals.get(name, 0.0) + value
    return totals
