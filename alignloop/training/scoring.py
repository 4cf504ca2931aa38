"""Values of completions under a model that is not trained: rewards, or the logprob of every token.

checkpoint --load, wrap--> module --RowRunner, groups in pieces--> outputs --read--> a value for each completion

A plain forward pass, not the engine's: the same bytes whatever the engine has served before, and no weights swapped. A
prompt is computed once for all its completions, which do not see each other, whatever a reward model was trained with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from alignloop.packing.batch import RowBatch
from alignloop.packing.check import choose_layout
from alignloop.packing.groups import PromptGroup
from alignloop.packing.layout import LayoutMode, auto_row_tokens
from alignloop.progress import Progress
from alignloop.training.model import (
    CompletionRewards,
    Dtype,
    TokenLogprobs,
    backbone_of,
    check_head,
    check_vocabulary,
    load_policy,
    load_reward_model,
    pad_token_id_of,
    uses_bfloat16,
)
from alignloop.training.rows import RowRunner, free_memory, loading_memory

T = TypeVar("T")


@dataclass(frozen=True)
class Value(Generic[T]):
    """What is computed of each completion.

    Attributes:
        load: (checkpoint, precision of the weights) -> the module whose outputs are read.
        read: a batch and the module's output -> a value for each completion of the batch.
        label: of the progress, and its unit.
    """

    load: Callable[[Path, torch.dtype], CompletionRewards | TokenLogprobs]
    read: Callable[[RowBatch, Tensor], list[T]]
    label: tuple[str, str]


def score_groups(
    groups: Sequence[PromptGroup],
    *,
    reward_model: Path,
    progress: Progress,
    rows_per_microbatch: int = 16,
    dtype: Dtype = "bfloat16",
) -> list[list[float]]:
    """Raw rewards, never normalised: for N prompts N lists of K, in the order of the completions (K may differ).

    Ranks are ignored. `reward_model` is a sequence classifier with one label, as `train("reward")` saves it.

    Raises:
        ModelError: no reward model at the path, no memory for it, or token ids outside its vocabulary.
        TrainingError: no memory for a single row.
    """
    return _frozen_pass(groups, reward_model, REWARD, rows=rows_per_microbatch, dtype=dtype, progress=progress)


def completion_logprobs(
    groups: Sequence[PromptGroup],
    *,
    checkpoint: Path,
    progress: Progress,
    rows_per_microbatch: int = 16,
    dtype: Dtype = "bfloat16",
) -> list[list[list[float]]]:
    """Natural-log probability of every token of every completion under a causal language model.

    For N prompts N lists of K lists of T logprobs, formatting tokens included, in order (K may differ; ranks are
    ignored). Raises as `score_groups`.
    """
    return _frozen_pass(groups, checkpoint, LOGPROBS, rows=rows_per_microbatch, dtype=dtype, progress=progress)


def _rewards(checkpoint: Path, dtype: torch.dtype) -> CompletionRewards:
    return CompletionRewards(load_reward_model(checkpoint, seed=0, dtype=dtype, must_have_head=True))


def _token_logprobs(checkpoint: Path, dtype: torch.dtype) -> TokenLogprobs:
    return TokenLogprobs(load_policy(checkpoint, dtype=dtype))


def _by_completion(batch: RowBatch, output: Tensor) -> list[list[float]]:
    """The [T] logprobs of a batch, a list for each of its completions."""
    found: list[list[float]] = [[] for _ in batch.completion_group.tolist()]
    # A completion's targets stand in the order of its tokens, whatever lies between.
    order = torch.argsort(batch.trained_index, stable=True)
    for completion, logprob in zip(batch.completion_index[order].tolist(), output[order].tolist(), strict=True):
        found[completion].append(logprob)
    return found


REWARD = Value[float](_rewards, lambda batch, output: output.tolist(), ("score", "candidates"))
LOGPROBS = Value[list[float]](_token_logprobs, _by_completion, ("logprobs", "completions"))


class FrozenModel(Generic[T]):
    """A model that stays loaded from call to call: groups in, a value for each of their completions out.

    `what` is `REWARD` or `LOGPROBS`. Raises as `score_groups`, in making it and in calling it.
    """

    def __init__(self, checkpoint: Path, what: Value[T], *, rows: int, dtype: Dtype, progress: Progress) -> None:
        self._checkpoint, self._what, self._rows, self._progress = checkpoint, what, rows, progress
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._bfloat16 = uses_bfloat16(dtype, device=self._device, progress=progress)
        # On a GPU frozen weights need no more than the precision they are used in: an 8B model is 16 GB instead of 32.
        weights = torch.bfloat16 if self._bfloat16 and self._device.type != "cpu" else torch.float32
        with loading_memory(checkpoint, dtype=weights, device=self._device, remedy=""):
            self._module = what.load(checkpoint, weights).to(self._device)
            if isinstance(self._module, TokenLogprobs):
                check_head(self._module)
        self._mode: LayoutMode = "packed"
        self._longest = 0

    def __call__(self, groups: Sequence[PromptGroup]) -> list[list[T]]:
        if not groups:
            return []
        check_vocabulary(self._module.model, groups, checkpoint=self._checkpoint)
        longest = max(group.longest for group in groups)
        if longest > self._longest and self._mode == "packed":
            self._longest = longest
            self._mode = choose_layout(backbone_of(self._module.model), longest=longest, progress=self._progress)
        runner = RowRunner(
            mode=self._mode,
            row_tokens=auto_row_tokens(longest),
            rows=self._rows,
            pad_token_id=pad_token_id_of(self._module.model),
            device=self._device,
            bfloat16=self._bfloat16,
            progress=self._progress,
        )
        # A prompt with all its completions may be many times a row: it never takes more memory than the microbatch.
        pieces = [split_group(group, capacity=self._rows * runner.row_tokens) for group in groups]
        values = _values(self._module, [piece for own in pieces for piece in own], runner, self._what)
        return [[next(values) for _ in group.completions] for group in groups]


def _frozen_pass(
    groups: Sequence[PromptGroup], checkpoint: Path, what: Value[T], *, rows: int, dtype: Dtype, progress: Progress
) -> list[list[T]]:
    if not groups:
        return []
    model = FrozenModel(checkpoint, what, rows=rows, dtype=dtype, progress=progress)
    try:
        return model(groups)
    finally:
        del model
        if torch.cuda.is_available():
            # On a CPU the weights go with their last name; a whole collection takes longer than a small model's pass.
            free_memory()


def _values(module: nn.Module, groups: Sequence[PromptGroup], runner: RowRunner, value: Value[T]) -> Iterator[T]:
    """A value for each completion of each group, in order."""
    found: dict[tuple[int, int], T] = {}
    name, unit = value.label
    with runner.progress.task(name, total=sum(len(group.completions) for group in groups), unit=unit) as advance:
        for batch, output, numbers in runner.outputs(module, groups):
            owners = batch.owners()
            for (group, completion), each in zip(owners, value.read(batch, output), strict=True):
                found[numbers[group], completion] = each
            advance(len(owners))
    return (found[key] for key in sorted(found))


def split_group(group: PromptGroup, *, capacity: int) -> list[PromptGroup]:
    """A group in pieces of at most `capacity` tokens, or of one candidate: some of its candidates, in order.

    Every piece has the prompt again, so a group that fits stays whole.
    """
    starts, used = [0], 0
    for number, completion in enumerate(group.completions):
        size = len(completion.token_ids) + 1  # its own copy of the prompt's last token
        if number > starts[-1] and len(group.prompt_ids) + used + size > capacity:
            starts.append(number)
            used = 0
        used += size
    return [
        replace(group, completions=group.completions[begin:end], ranks=group.ranks[begin:end])
        for begin, end in pairwise([*starts, len(group.completions)])
    ]
