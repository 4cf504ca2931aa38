"""Runs a model over prompt groups, microbatch by microbatch, and backs off where memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from alignloop.errors import TrainingError
from alignloop.packing.batch import RowBatch, collate
from alignloop.packing.check import is_out_of_memory
from alignloop.packing.groups import PromptGroup
from alignloop.packing.layout import LayoutMode, RowBundle, microbatch_end, pack
from alignloop.progress import Progress
from alignloop.training.models import free_memory

Result = TypeVar("Result")

BLOCK_GROUPS = 1024
"""Groups laid out at a time where there is no step to say how many."""
REMEDY = "lower max_length or row_tokens, or use a smaller model"
TRAINING_REMEDY = (
    "lower max_length or row_tokens, set gradient_checkpointing: true, train adapters (lora), shard the model "
    "(training.accelerate: fsdp2), or use a smaller one"
)
"""What to do where one row is too much."""


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
        for first in range(0, len(groups), BLOCK_GROUPS):
            numbers = range(first, min(first + BLOCK_GROUPS, len(groups)))
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
                self._halve(error, remedy=remedy)
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

    def _halve(self, error: RuntimeError, *, remedy: str) -> None:
        if self.rows == 1:
            raise TrainingError(
                f"out of memory with one row of {self.row_tokens} tokens at a time: {remedy}"
            ) from error
        self.rows //= 2
        self.progress.say(f"  out of memory: going on with {self.rows} rows per microbatch")
