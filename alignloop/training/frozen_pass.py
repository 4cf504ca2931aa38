"""A model that is not trained, over prompt groups: loaded, run in packed rows, put away.

checkpoint --load, wrap--> module --RowRunner, groups in pieces--> outputs --read--> a value for each completion
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel

from alignloop.packing.check import choose_layout
from alignloop.packing.groups import PromptGroup
from alignloop.packing.layout import auto_row_tokens
from alignloop.progress import Progress
from alignloop.training.forward import backbone_of
from alignloop.training.memory import loading_memory
from alignloop.training.models import Dtype, check_vocabulary, free_memory, pad_token_id_of
from alignloop.training.precision import uses_bfloat16
from alignloop.training.row_runner import RowRunner

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)


def frozen_pass(
    groups: Sequence[PromptGroup],
    *,
    checkpoint: Path,
    load: Callable[[torch.dtype], PreTrainedModel],
    wrap: Callable[[PreTrainedModel], M],
    read: Callable[[M, Sequence[PromptGroup], RowRunner], list[list[T]]],
    rows_per_microbatch: int,
    dtype: Dtype,
    progress: Progress,
) -> list[list[T]]:
    """What `read` makes of every completion.

    Args:
        groups: N prompts with K completions each (K may differ).
        load: the model in the precision of its weights.
        wrap: the module whose outputs are wanted.
        read: module, pieces of groups, runner -> for each piece a value for each of its completions.

    Returns:
        N lists of K values, in the order of the completions.

    Raises:
        ModelError: no model at the path, no memory for it, or token ids outside its vocabulary.
        TrainingError: no memory for a single row.
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
        pieces = split_groups(groups, capacity=rows_per_microbatch * row_tokens)
        found = iter(read(module, [piece for own in pieces for piece in own], runner))
        return [[value for _ in own for value in next(found)] for own in pieces]
    finally:
        del model, module
        if device.type != "cpu":
            # On a CPU the weights go with their last name; a whole collection takes longer than a small model's pass.
            free_memory()


def split_groups(groups: Sequence[PromptGroup], *, capacity: int) -> list[list[PromptGroup]]:
    """Each group in pieces of at most `capacity` tokens, or of one candidate: some of its candidates, in order.

    Every piece has the prompt again, so a group that fits stays whole.
    """
    return [_pieces(group, capacity=capacity) for group in groups]


def _pieces(group: PromptGroup, *, capacity: int) -> list[PromptGroup]:
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
