"""Values of completions under a model that is not trained: rewards, or the logprob of every token.

checkpoint --load, wrap--> module --RowRunner, groups in pieces--> outputs --read--> a value for each completion

A plain forward pass, not the engine's: the same bytes whatever the engine has served before, and no weights swapped. A
prompt is computed once for all its completions, which do not see each other, whatever a reward model was trained with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from alignloop.packing.batch import RowBatch
from alignloop.packing.check import choose_layout
from alignloop.packing.groups import PromptGroup
from alignloop.packing.layout import auto_row_tokens
from alignloop.progress import Progress
from alignloop.training.model import (
    CompletionRewards,
    Dtype,
    TokenLogprobs,
    backbone_of,
    check_head,
    check_vocabulary,
    free_memory,
    load_policy,
    load_reward_model,
    pad_token_id_of,
    uses_bfloat16,
)
from alignloop.training.rows import RowRunner, loading_memory

T = TypeVar("T")


def score_groups(
    groups: Sequence[PromptGroup],
    *,
    reward_model: Path,
    progress: Progress,
    rows_per_microbatch: int = 16,
    dtype: Dtype = "bfloat16",
) -> list[list[float]]:
    """Raw rewards, never normalised.

    Args:
        groups: N prompts with K completions each (K may differ); ranks are not looked at.
        reward_model: a sequence classifier with one label, as `train("reward")` saves it.

    Returns:
        N lists of K rewards, in the order of the completions.

    Raises:
        ModelError: no reward model at the path, no memory for it, or token ids outside its vocabulary.
        TrainingError: no memory for a single row.
    """
    return _frozen_pass(
        groups,
        checkpoint=reward_model,
        load=lambda weights: load_reward_model(reward_model, seed=0, dtype=weights, must_have_head=True),
        wrap=CompletionRewards,
        read=lambda batch, output: output.tolist(),
        label=("score", "candidates"),
        rows_per_microbatch=rows_per_microbatch,
        dtype=dtype,
        progress=progress,
    )


def completion_logprobs(
    groups: Sequence[PromptGroup],
    *,
    checkpoint: Path,
    progress: Progress,
    rows_per_microbatch: int = 16,
    dtype: Dtype = "bfloat16",
) -> list[list[list[float]]]:
    """Natural-log probability of every token of every completion.

    Args:
        groups: N prompts with K completions each (K may differ); ranks are not looked at.
        checkpoint: a causal language model.

    Returns:
        N lists of K lists of T logprobs, formatting tokens included, in order.

    Raises:
        ModelError: no model at the path, no memory for it, or token ids outside its vocabulary.
        TrainingError: no memory for a single row.
    """
    return _frozen_pass(
        groups,
        checkpoint=checkpoint,
        load=lambda weights: load_policy(checkpoint, dtype=weights),
        wrap=_token_logprobs,
        read=_by_completion,
        label=("logprobs", "completions"),
        rows_per_microbatch=rows_per_microbatch,
        dtype=dtype,
        progress=progress,
    )


def _token_logprobs(model: PreTrainedModel) -> TokenLogprobs:
    module = TokenLogprobs(model)
    check_head(module)
    return module


def _by_completion(batch: RowBatch, output: Tensor) -> list[list[float]]:
    """The [T] logprobs of a batch, a list for each of its completions."""
    found: list[list[float]] = [[] for _ in batch.completion_group.tolist()]
    # A completion's targets stand in the order of its tokens, whatever lies between.
    order = torch.argsort(batch.trained_index, stable=True)
    for completion, logprob in zip(batch.completion_index[order].tolist(), output[order].tolist(), strict=True):
        found[completion].append(logprob)
    return found


def _frozen_pass(
    groups: Sequence[PromptGroup],
    *,
    checkpoint: Path,
    load: Callable[[torch.dtype], PreTrainedModel],
    wrap: Callable[[PreTrainedModel], nn.Module],
    read: Callable[[RowBatch, Tensor], list[T]],
    label: tuple[str, str],
    rows_per_microbatch: int,
    dtype: Dtype,
    progress: Progress,
) -> list[list[T]]:
    """What `read` makes of every completion, in the groups' order.

    Args:
        load: the model in the precision of its weights.
        wrap: the module whose outputs are wanted.
        read: a batch and the module's output -> a value for each completion of the batch.
        label: of the progress, and its unit.
    """
    if not groups:
        return []
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bfloat16 = uses_bfloat16(dtype, device=device, progress=progress)
    # On a GPU frozen weights need no more than the precision they are used in: an 8B model is 16 GB instead of 32.
    weights = torch.bfloat16 if bfloat16 and device.type != "cpu" else torch.float32
    with loading_memory(checkpoint, dtype=weights, device=device, remedy=""):
        model = load(weights).to(device)
        module = wrap(model)
    check_vocabulary(model, groups, checkpoint=checkpoint)
    longest = max(group.longest for group in groups)
    row_tokens = auto_row_tokens(longest)
    runner = RowRunner(
        mode=choose_layout(backbone_of(model), longest=longest, progress=progress),
        row_tokens=row_tokens,
        rows=rows_per_microbatch,
        pad_token_id=pad_token_id_of(model),
        device=device,
        bfloat16=bfloat16,
        progress=progress,
    )
    try:
        # A prompt with all its completions may be many times a row: it never takes more memory than the microbatch.
        pieces = [split_group(group, capacity=rows_per_microbatch * row_tokens) for group in groups]
        values = _values(module, [piece for own in pieces for piece in own], runner, read=read, label=label)
        return [[next(values) for _ in group.completions] for group in groups]
    finally:
        del model, module
        if device.type != "cpu":
            # On a CPU the weights go with their last name; a whole collection takes longer than a small model's pass.
            free_memory()


def _values(
    module: nn.Module,
    groups: Sequence[PromptGroup],
    runner: RowRunner,
    *,
    read: Callable[[RowBatch, Tensor], list[T]],
    label: tuple[str, str],
) -> Iterator[T]:
    """A value for each completion of each group, in order."""
    found: dict[tuple[int, int], T] = {}
    name, unit = label
    with runner.progress.task(name, total=sum(len(group.completions) for group in groups), unit=unit) as advance:
        for batch, output, numbers in runner.outputs(module, groups):
            owners = list(zip(batch.completion_group.tolist(), batch.completion_number.tolist(), strict=True))
            for (group, completion), value in zip(owners, read(batch, output), strict=True):
                found[numbers[group], completion] = value
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
