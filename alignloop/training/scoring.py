"""Rewards of candidates: one prompt, K completions, the prompt computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch

from alignloop.packing.check import choose_layout
from alignloop.packing.groups import PromptGroup
from alignloop.packing.layout import auto_row_tokens
from alignloop.progress import Progress
from alignloop.training.forward import CompletionRewards, backbone_of
from alignloop.training.memory import loading_memory
from alignloop.training.models import Dtype, check_vocabulary, free_memory, load_reward_model, pad_token_id_of
from alignloop.training.precision import uses_bfloat16
from alignloop.training.row_runner import RowRunner


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
        N lists of K rewards, in the order of the completions. Candidates do not see each other, whatever the reward
        model was trained with.

    Raises:
        ModelError: no reward model at the path, no memory for it, or token ids outside its vocabulary.
        TrainingError: no memory for a single row.
    """
    if not groups:
        return []
    device = _device()
    bfloat16 = uses_bfloat16(dtype, device=device, progress=progress)
    # On a GPU frozen weights need no more than the precision they are used in: an 8B model is 16 GB instead of 32.
    weights = torch.bfloat16 if bfloat16 and device.type != "cpu" else torch.float32
    with loading_memory(reward_model, dtype=weights, device=device, remedy=""):
        model = load_reward_model(reward_model, seed=0, dtype=weights, must_have_head=True)
        module = CompletionRewards(model).to(device)
    check_vocabulary(model, groups, checkpoint=reward_model)
    longest = max(group.longest for group in groups)
    row_tokens = auto_row_tokens(longest)
    runner = RowRunner(
        mode=choose_layout(backbone_of(module.model), longest=longest, progress=progress),
        row_tokens=row_tokens,
        rows=rows_per_microbatch,
        pad_token_id=pad_token_id_of(model),
        device=device,
        bfloat16=bfloat16,
        progress=progress,
    )
    try:
        # A prompt with all its candidates may be many times a row: it never takes more memory than the microbatch.
        pieces = split_groups(groups, capacity=rows_per_microbatch * row_tokens)
        scored = iter(_scores(module, [piece for own in pieces for piece in own], runner=runner))
        return [[reward for _ in own for reward in next(scored)] for own in pieces]
    finally:
        del model, module
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


def _scores(module: CompletionRewards, groups: Sequence[PromptGroup], *, runner: RowRunner) -> list[list[float]]:
    rewards = [[0.0] * len(group.completions) for group in groups]
    num_candidates = sum(len(group.completions) for group in groups)
    with runner.progress.task("score", total=num_candidates, unit="candidates") as advance:
        for batch, output, numbers in runner.outputs(module, groups):
            places = zip(batch.completion_group.tolist(), batch.completion_number.tolist(), strict=True)
            for (group, completion), reward in zip(places, output.tolist(), strict=True):
                rewards[numbers[group]][completion] = reward
            advance(len(output))
    return rewards


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
