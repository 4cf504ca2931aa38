"""Rows of prompt groups through a model: cut into microbatches, shared out over processes, fewer where memory runs out.

Every process lays out the same rows and comes to the same shares without a word to the others. All run the same number
of forward passes, because a pass that one process leaves out would leave the others waiting: where a share is used up
its process runs the shortest row once more, and what comes out counts nothing.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from alignloop.engines.checkpoint import num_parameters
from alignloop.errors import ModelError, TrainingError
from alignloop.packing.batch import RowBatch, collate
from alignloop.packing.check import is_out_of_memory
from alignloop.packing.groups import PromptGroup
from alignloop.packing.layout import LayoutMode, RowBundle, microbatch_end, pack
from alignloop.progress import Advance, Progress
from alignloop.training.job import TrainJob
from alignloop.training.model import free_memory
from alignloop.training.processes import Processes

Result = TypeVar("Result")

BLOCK_GROUPS = 1024
"""Groups laid out at a time where there is no step to say how many."""
REMEDY = "lower max_length or row_tokens, or use a smaller model"
TRAINING_REMEDY = (
    "lower max_length or row_tokens, set gradient_checkpointing: true, train adapters (lora), shard the model "
    "(training.accelerate: fsdp2), or use a smaller one"
)
"""What to do where one row is too much."""
GB = 1e9
TRAINED_BYTES = 16
"""Of a weight that trains: itself, its gradient and two moments of AdamW, in float32."""


@dataclass
class RowRunner:
    """How groups become microbatches, and in which precision they run.

    Attributes:
        rows: packed rows per forward pass; halves itself where memory runs out.
        bfloat16: run under autocast; weights stay in their own dtype.
    """

    mode: LayoutMode
    row_tokens: int
    rows: int
    pad_token_id: int
    device: torch.device
    bfloat16: bool
    progress: Progress

    def pack(self, groups: Sequence[PromptGroup]) -> list[RowBundle]:
        return pack(groups, row_tokens=self.row_tokens, mode=self.mode)

    def microbatches(self, bundles: Sequence[RowBundle]) -> Iterator[RowBatch]:
        """Batches on the device, in order."""
        start = 0
        while start < len(bundles):
            end = self._end(bundles, start)
            yield self._batch(bundles[start:end])
            start = end

    def forward(self, module: nn.Module, batch: RowBatch) -> Tensor:
        with torch.autocast(device_type=self.device.type, dtype=torch.bfloat16, enabled=self.bfloat16):
            output: Tensor = module(batch)
        return output

    def outputs(self, module: nn.Module, groups: Sequence[PromptGroup]) -> Iterator[tuple[RowBatch, Tensor, range]]:
        """Forward passes without gradients over any number of groups.

        Yields:
            (batch, output, numbers): `batch.completion_group` g is group `numbers[g]` of `groups`.
        """
        for numbers in _blocks(groups):
            bundles = self.pack([groups[number] for number in numbers])
            start = 0
            while start < len(bundles):
                end, batch, output = self.backing_off(lambda: self._infer(module, bundles, start))  # noqa: B023
                yield batch, output, numbers
                start = end

    def backing_off(self, attempt: Callable[[], Result], *, remedy: str = REMEDY) -> Result:
        """`attempt()`, again with half the rows each time memory runs out.

        Args:
            remedy: what to do where one row is too much, for the message.

        Raises:
            TrainingError: memory runs out at one row.
        """
        while True:
            try:
                return attempt()
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if self.rows == 1:
                    raise TrainingError(
                        f"out of memory with one row of {self.row_tokens} tokens at a time: {remedy}"
                    ) from error
                self.rows //= 2
                self.progress.say(f"  out of memory: going on with {self.rows} rows per microbatch")
            free_memory()

    @torch.no_grad()
    def _infer(self, module: nn.Module, bundles: Sequence[RowBundle], start: int) -> tuple[int, RowBatch, Tensor]:
        end = self._end(bundles, start)
        batch = self._batch(bundles[start:end])
        return end, batch, self.forward(module, batch)

    def _end(self, bundles: Sequence[RowBundle], start: int) -> int:
        return microbatch_end(bundles, start=start, rows=self.rows, row_tokens=self.row_tokens)

    def _batch(self, bundles: Sequence[RowBundle]) -> RowBatch:
        # The kernels of an accelerator are compiled for a length: few lengths, few compilations.
        multiple = 1 if self.device.type == "cpu" else self.row_tokens
        batch = collate(bundles, pad_token_id=self.pad_token_id, mode=self.mode, length_multiple=multiple)
        return batch.to(self.device)


def _blocks(groups: Sequence[PromptGroup]) -> Iterator[range]:
    for first in range(0, len(groups), BLOCK_GROUPS):
        yield range(first, min(first + BLOCK_GROUPS, len(groups)))


# ---- over processes -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Microbatch:
    """A batch of rows of this process's share of a step.

    Attributes:
        counts: False for a row that is only run to keep step with the other processes.
        is_last: no more of this step comes, in any process.
    """

    batch: RowBatch
    counts: bool
    is_last: bool


def shares(bundles: Sequence[RowBundle], *, count: int) -> list[list[RowBundle]]:
    """Bundles for each of `count` processes, by tokens as even as longest-first makes them, in the order they come."""
    shared: list[list[RowBundle]] = [[] for _ in range(count)]
    lightest = [(0, rank) for rank in range(count)]
    for bundle in bundles:
        tokens, rank = heapq.heappop(lightest)
        shared[rank].append(bundle)
        heapq.heappush(lightest, (tokens + bundle.num_tokens * len(bundle.rows), rank))
    return shared


def num_microbatches(bundles: Sequence[RowBundle], *, rows: int, row_tokens: int) -> int:
    """How many batches `RowRunner.microbatches` makes of them."""
    start = count = 0
    while start < len(bundles):
        start = microbatch_end(bundles, start=start, rows=rows, row_tokens=row_tokens)
        count += 1
    return count


def shared_microbatches(
    runner: RowRunner, groups: Sequence[PromptGroup], *, processes: Processes
) -> Iterator[Microbatch]:
    """This process's batches of a step, as many as every other process has."""
    bundles = runner.pack(groups)
    shared = shares(bundles, count=processes.count)
    most = max(num_microbatches(share, rows=runner.rows, row_tokens=runner.row_tokens) for share in shared)
    done = 0
    for batch in runner.microbatches(shared[processes.rank]):
        done += 1
        yield Microbatch(batch, counts=True, is_last=done == most)
    for number in range(done + 1, most + 1):
        (filler,) = runner.microbatches([min(bundles, key=lambda bundle: bundle.num_tokens)])
        yield Microbatch(filler, counts=False, is_last=number == most)


class Outputs(Protocol):
    """Forward passes without gradients over any number of groups: `RowRunner`, or this process's share of it."""

    @property
    def progress(self) -> Progress: ...

    def outputs(self, module: nn.Module, groups: Sequence[PromptGroup]) -> Iterator[tuple[RowBatch, Tensor, range]]: ...


def outputs_of(runner: RowRunner, *, processes: Processes) -> Outputs:
    """Whose `outputs` to go through: the runner's own, which backs off in place, where there is one process."""
    return runner if processes.alone else _SharedOutputs(runner, processes)


@dataclass(frozen=True)
class _SharedOutputs:
    """`RowRunner.outputs` over several processes: yields this process's share of the batches.

    All of them must be taken, by every process. Running out of memory is not caught in here, as between processes it
    cannot be.
    """

    runner: RowRunner
    processes: Processes

    @property
    def progress(self) -> Progress:
        return _ShareOfProgress(self.runner.progress, self.processes.count)

    @torch.no_grad()
    def outputs(self, module: nn.Module, groups: Sequence[PromptGroup]) -> Iterator[tuple[RowBatch, Tensor, range]]:
        for numbers in _blocks(groups):
            block = [groups[number] for number in numbers]
            for microbatch in shared_microbatches(self.runner, block, processes=self.processes):
                output = self.runner.forward(module, microbatch.batch)
                if microbatch.counts:
                    yield microbatch.batch, output, numbers


@dataclass(frozen=True)
class _ShareOfProgress:
    """Tells of one process's share as if it were all: the others are as far."""

    progress: Progress
    count: int

    def task(self, label: str, *, total: int, unit: str) -> AbstractContextManager[Advance]:
        return self.progress.task(f"{label}, 1 of {self.count} processes", total=-(-total // self.count), unit=unit)

    def say(self, line: str) -> None:
        self.progress.say(line)


# ---- where fewer rows would not help --------------------------------------------------------------------------------


@contextmanager
def loading_memory(checkpoint: Path, *, dtype: torch.dtype, device: torch.device, remedy: str) -> Iterator[None]:
    """Around what loads a model and moves it to its device.

    Args:
        remedy: what to do, beside taking a smaller model.

    Raises:
        ModelError: memory ran out; it names the model and its size.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        raise ModelError(
            f"out of memory while {checkpoint} was loaded: {_size(checkpoint, dtype)}, {_device_memory(device)}. "
            f"{remedy}{'use' if remedy else 'Use'} a smaller model"
        ) from error


@contextmanager
def stepping_memory(job: TrainJob, module: nn.Module, *, device: torch.device, place: str) -> Iterator[None]:
    """Around the optimiser's step, the first of which makes its moments.

    Raises:
        TrainingError: memory ran out; it says how much training takes.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        count = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
        num = job.training.num_processes
        shared = f" (over {num} processes)" if num > 1 and job.training.accelerate != "ddp" else ""
        raise TrainingError(
            f"{job.objective}: out of memory in the optimiser's update at {place}: {count:,} weights train, which take "
            f"{count * TRAINED_BYTES / GB:,.1f} GB with gradients and moments{shared}, {_device_memory(device)}. "
            f"{remedy_of(job)}use a smaller model"
        ) from error


def out_of_memory_elsewhere(job: TrainJob, error: BaseException, *, device: torch.device) -> TrainingError:
    """For memory that ran out anywhere else in a training."""
    words = str(error).strip().splitlines()
    size = _size(job.checkpoint, torch.float32)
    return TrainingError(
        f"{job.objective}: out of memory: {job.checkpoint} ({size}), {_device_memory(device)}; "
        f"torch says: {words[0] if words else type(error).__name__}. {remedy_of(job)}use a smaller model"
    )


def remedy_of(job: TrainJob) -> str:
    """What of this training's settings would take less memory; to be followed by `use a smaller model`."""
    ways = []
    lora, training = job.config.lora, job.training
    if lora is None:
        ways.append(f"Train adapters ({job.objective}.lora: {{}})")
    elif lora.quantize == "none":
        ways.append(f"Hold the frozen weights in 4 bits ({job.objective}.lora.quantize: nf4, needs a GPU)")
    if training.num_processes == 1 or training.accelerate == "ddp":
        ways.append("shard the model over several GPUs (training.num_processes, training.accelerate: fsdp2)")
    else:
        ways.append("shard it over more GPUs (training.num_processes)")
    if not job.config.gradient_checkpointing:
        ways.append(f"set {job.objective}.gradient_checkpointing: true")
    text = ", ".join(ways)
    return f"{text[0].upper()}{text[1:]}, or "


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or is_out_of_memory(error)


def _size(checkpoint: Path, dtype: torch.dtype) -> str:
    name = str(dtype).removeprefix("torch.")
    try:
        count = num_parameters(checkpoint)
    except ModelError:  # pickled weights tell no sizes
        return f"its weights are held in {name}"
    return f"{count:,} weights take {count * dtype.itemsize / GB:,.1f} GB in {name}"


def _device_memory(device: torch.device) -> str:
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        return f"{torch.cuda.get_device_name(device)} has {total / GB:,.0f} GB"
    if device.type == "cpu":
        return f"this machine has {os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / GB:,.0f} GB"
    return f"on {device}"
