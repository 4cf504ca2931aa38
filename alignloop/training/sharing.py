"""Shares the rows of a step out over the processes.

Every process lays out the same rows and comes to the same shares without a word to the others. All run the same number
of forward passes, because a pass that one process leaves out would leave the others waiting: where a share is used up
its process runs the shortest row once more, and what comes out counts nothing.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from alignloop.packing.batch import RowBatch
from alignloop.packing.groups import PromptGroup
from alignloop.packing.layout import RowBundle, microbatch_end
from alignloop.progress import Advance, Progress
from alignloop.training.processes import Processes
from alignloop.training.row_runner import BLOCK_GROUPS, RowRunner


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
    """Bundles for each of `count` processes, by tokens as even as longest-first makes them; each in the given order."""
    given: list[list[RowBundle]] = [[] for _ in range(count)]
    lightest = [(0, rank) for rank in range(count)]
    for bundle in bundles:
        tokens, rank = heapq.heappop(lightest)
        given[rank].append(bundle)
        heapq.heappush(lightest, (tokens + bundle.num_tokens * len(bundle.rows), rank))
    return given


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
    given = shares(bundles, count=processes.count)
    most = max(num_microbatches(share, rows=runner.rows, row_tokens=runner.row_tokens) for share in given)
    own = given[processes.rank]
    done = 0
    for batch in runner.microbatches(own):
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


@dataclass(frozen=True)
class SharedOutputs:
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
        for first in range(0, len(groups), BLOCK_GROUPS):
            numbers = range(first, min(first + BLOCK_GROUPS, len(groups)))
            block = [groups[number] for number in numbers]
            for microbatch in shared_microbatches(self.runner, block, processes=self.processes):
                output = self.runner.forward(module, microbatch.batch)
                if microbatch.counts:
                    yield microbatch.batch, output, numbers


def outputs_of(runner: RowRunner, *, processes: Processes) -> Outputs:
    """Whose `outputs` to go through: the runner's own, which backs off in place, where there is one process."""
    return runner if processes.alone else SharedOutputs(runner, processes)


@dataclass(frozen=True)
class _ShareOfProgress:
    """Tells of one process's share as if it were all: the others are as far."""

    progress: Progress
    count: int

    def task(self, label: str, *, total: int, unit: str) -> AbstractContextManager[Advance]:
        return self.progress.task(f"{label}, 1 of {self.count} processes", total=-(-total // self.count), unit=unit)

    def say(self, line: str) -> None:
        self.progress.say(line)
