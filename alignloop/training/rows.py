"""Rows of prompt groups through a model: cut into microbatches, shared out over processes, fewer where memory runs out.

Every process lays out the same rows and computes the same shares without communication. All run the same number of
forward passes, because a pass that one process leaves out would leave the others waiting: where a share is used up its
process runs the shortest row once more, and what comes out counts nothing.
"""

from __future__ import annotations

import gc
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


class ForwardPasses(Protocol):
    """Forward passes without gradients over any number of groups."""

    @property
    def progress(self) -> Progress: ...

    def outputs(self, module: nn.Module, groups: Sequence[PromptGroup]) -> Iterator[tuple[RowBatch, Tensor, range]]:
        """Yields (batch, output, numbers): `batch.completion_group` g is group `numbers[g]` of `groups`."""


@dataclass
class RowRunner:
    """How groups become microbatches, and in which precision they run.

    Attributes:
        rows: packed rows per forward pass; halved where memory runs out.
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

    def cuts(self, bundles: Sequence[RowBundle]) -> Iterator[Sequence[RowBundle]]:
        """The bundles of each microbatch, in order."""
        start = 0
        while start < len(bundles):
            end = microbatch_end(bundles, start=start, rows=self.rows, row_tokens=self.row_tokens)
            yield bundles[start:end]
            start = end

    def batch(self, bundles: Sequence[RowBundle]) -> RowBatch:
        """On the device."""
        # The kernels of an accelerator are compiled for a length: few lengths, few compilations.
        multiple = 1 if self.device.type == "cpu" else self.row_tokens
        batch = collate(bundles, pad_token_id=self.pad_token_id, mode=self.mode, length_multiple=multiple)
        return batch.to(self.device)

    def forward(self, module: nn.Module, batch: RowBatch) -> Tensor:
        with torch.autocast(device_type=self.device.type, dtype=torch.bfloat16, enabled=self.bfloat16):
            output: Tensor = module(batch)
        return output

    def outputs(self, module: nn.Module, groups: Sequence[PromptGroup]) -> Iterator[tuple[RowBatch, Tensor, range]]:
        """As `ForwardPasses`; rows are halved where memory runs out."""

        @torch.no_grad()
        def infer() -> tuple[int, RowBatch, Tensor]:
            cut = next(self.cuts(bundles[start:]))
            batch = self.batch(cut)
            return len(cut), batch, self.forward(module, batch)

        for numbers in _blocks(groups):
            bundles, start = self.pack([groups[number] for number in numbers]), 0
            while start < len(bundles):
                done, batch, output = self.backing_off(infer)
                yield batch, output, numbers
                start += done

    def backing_off(self, attempt: Callable[[], Result], *, remedy: str = REMEDY) -> Result:
        """`attempt()`, again with half the rows each time memory runs out.

        Raises:
            TrainingError: memory runs out at one row; the message ends in `remedy`, what to do then.
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


def _blocks(groups: Sequence[PromptGroup]) -> Iterator[range]:
    for first in range(0, len(groups), BLOCK_GROUPS):
        yield range(first, min(first + BLOCK_GROUPS, len(groups)))


# ---- over processes -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Microbatch:
    """A batch of rows of this process's share of a step.

    Attributes:
        counts: False for a row that is only run to keep in step with the other processes.
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


def shared_microbatches(
    runner: RowRunner, groups: Sequence[PromptGroup], *, processes: Processes
) -> Iterator[Microbatch]:
    """This process's batches of a step, as many as every other process has."""
    bundles = runner.pack(groups)
    cut = [list(runner.cuts(share)) for share in shares(bundles, count=processes.count)]
    own, most = cut[processes.rank], max(map(len, cut))
    filler = [min(bundles, key=lambda bundle: bundle.num_tokens)]
    for number in range(most):
        counts = number < len(own)
        yield Microbatch(runner.batch(own[number] if counts else filler), counts, is_last=number == most - 1)


def forward_passes(runner: RowRunner, *, processes: Processes) -> ForwardPasses:
    """The runner's own, which backs off in place, where there is one process; otherwise this process's share."""
    return runner if processes.alone else _SharedPasses(runner, processes)


@dataclass(frozen=True)
class _SharedPasses:
    """`RowRunner.outputs` over several processes: yields this process's share of the batches.

    Every process must take all of them. Running out of memory is not caught here: between processes it cannot be.
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
    """Shows one process's share as if it were all: the others are as far."""

    progress: Progress
    count: int

    def task(self, label: str, *, total: int, unit: str) -> AbstractContextManager[Advance]:
        return self.progress.task(f"{label}, 1 of {self.count} processes", total=-(-total // self.count), unit=unit)

    def say(self, line: str) -> None:
        self.progress.say(line)


# ---- memory that runs out: given back, or explained ------------------------------------------------------------------


def free_memory() -> None:
    """Release what dropped models held, on every device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def loading_memory(checkpoint: Path, *, dtype: torch.dtype, device: torch.device, remedy: str) -> Iterator[None]:
    """Around what loads a model and moves it to its device; `remedy` is what to do, beside taking a smaller model.

    Raises:
        ModelError: memory ran out; it names the model and its size.
    """
    with _explained(
        lambda: ModelError(
            f"out of memory while {checkpoint} was loaded: {_size(checkpoint, dtype)}, {_device_memory(device)}. "
            f"{remedy}{'use' if remedy else 'Use'} a smaller model"
        )
    ):
        yield


@contextmanager
def stepping_memory(job: TrainJob, module: nn.Module, *, device: torch.device, step: str) -> Iterator[None]:
    """Around the optimiser's step, the first of which makes its moments.

    Raises:
        TrainingError: memory ran out; it says how much training takes.
    """

    def explain() -> TrainingError:
        count = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
        num = job.training.num_processes
        shared = f" (over {num} processes)" if num > 1 and job.training.accelerate != "ddp" else ""
        return TrainingError(
            f"{job.objective}: out of memory in the optimiser's update at {step}: {count:,} weights train, which take "
            f"{count * TRAINED_BYTES / GB:,.1f} GB with gradients and moments{shared}, {_device_memory(device)}. "
            f"{remedy_of(job)}use a smaller model"
        )

    with _explained(explain):
        yield


@contextmanager
def _explained(explain: Callable[[], Exception]) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not (isinstance(error, MemoryError) or is_out_of_memory(error)):
            raise
        raise explain() from error


def out_of_memory_elsewhere(job: TrainJob, error: BaseException, *, device: torch.device) -> TrainingError:
    """For memory that ran out anywhere else in a training."""
    words = str(error).strip().splitlines()
    return TrainingError(
        f"{job.objective}: out of memory: {job.checkpoint} ({_size(job.checkpoint, torch.float32)}), "
        f"{_device_memory(device)}; torch says: {words[0] if words else type(error).__name__}. "
        f"{remedy_of(job)}use a smaller model"
    )


def remedy_of(job: TrainJob) -> str:
    """Settings of this training that would take less memory; to be followed by `use a smaller model`."""
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
