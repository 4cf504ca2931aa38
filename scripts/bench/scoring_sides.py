"""Both sides of scoring: `score_groups`, and separate rows as a careful engineer writes them with transformers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignloop.packing.groups import PromptGroup
from alignloop.training.scoring import score_groups
from scripts.bench.stopwatch import MemoryWatch, StopwatchProgress
from scripts.bench.training_cases import Measurement, Request


def measure_ours(request: Request, *, warm_up: Sequence[PromptGroup], groups: Sequence[PromptGroup]) -> Measurement:
    """`score_groups` on `groups`, after a pass over `warm_up`. Loading the model is not counted."""

    def score(some: Sequence[PromptGroup], progress: StopwatchProgress) -> list[list[float]]:
        return score_groups(
            some,
            reward_model=Path(request.work) / request.size / "reward",
            progress=progress,
            rows_per_microbatch=request.setting.rows,
            dtype="float32",
        )

    score(warm_up, StopwatchProgress())
    watch, progress = MemoryWatch(), StopwatchProgress()
    rewards = score(groups, progress)
    return _measurement(groups, rewards, seconds=progress.total(), watch=watch, num_tokens=_num_packed(groups))


def measure_separate_rows(
    request: Request, *, warm_up: Sequence[PromptGroup], groups: Sequence[PromptGroup]
) -> Measurement:
    """Each candidate a row with its prompt, in batches of like length; head on the last token alone."""
    from transformers import AutoModelForSequenceClassification

    def load() -> Any:
        return AutoModelForSequenceClassification.from_pretrained(
            Path(request.work) / request.size / "reward", num_labels=1, dtype=torch.float32, attn_implementation="sdpa"
        ).eval()

    _separate_rewards(load(), warm_up, rows=request.setting.rows)
    watch = MemoryWatch()
    model = load()
    started = time.perf_counter()
    rewards, num_tokens = _separate_rewards(model, groups, rows=request.setting.rows)
    seconds = time.perf_counter() - started
    return _measurement(groups, rewards, seconds=seconds, watch=watch, num_tokens=num_tokens)


@torch.inference_mode()
def _separate_rewards(model: Any, groups: Sequence[PromptGroup], *, rows: int) -> tuple[list[list[float]], int]:
    """Rewards by group, and the positions computed."""
    whole = [
        (number, slot, [*group.prompt_ids, *completion.token_ids])
        for number, group in enumerate(groups)
        for slot, completion in enumerate(group.completions)
    ]
    whole.sort(key=lambda row: -len(row[2]))
    rewards = [[0.0] * len(group.completions) for group in groups]
    num_tokens = 0
    for first in range(0, len(whole), rows):
        batch = whole[first : first + rows]
        values = _batch_rewards(model, [ids for _, _, ids in batch])
        num_tokens += len(batch) * len(batch[0][2])
        for (number, slot, _), value in zip(batch, values.tolist(), strict=True):
            rewards[number][slot] = value
    return rewards, num_tokens


def _batch_rewards(model: Any, rows: Sequence[Sequence[int]]) -> Tensor:
    """[B] rewards of rows sorted longest first; no mask where nothing is padded, which lets SDPA skip it."""
    lengths = torch.tensor([len(ids) for ids in rows])
    longest = len(rows[0])
    input_ids = torch.zeros(len(rows), longest, dtype=torch.long)
    for number, ids in enumerate(rows):
        input_ids[number, : len(ids)] = torch.tensor(ids)
    mask = None if int(lengths.min()) == longest else (torch.arange(longest) < lengths[:, None]).long()
    hidden = model.base_model(input_ids=input_ids, attention_mask=mask, use_cache=False).last_hidden_state
    last = hidden[torch.arange(len(rows)), lengths - 1]
    rewards: Tensor = model.score(last).squeeze(-1)
    return rewards


def _num_packed(groups: Sequence[PromptGroup]) -> int:
    """Tokens with every prompt once: a bound that copies of long prompts exceed."""
    return sum(group.num_tokens for group in groups)


def _measurement(
    groups: Sequence[PromptGroup],
    rewards: Sequence[Sequence[float]],
    *,
    seconds: float,
    watch: MemoryWatch,
    num_tokens: int,
) -> Measurement:
    return Measurement(
        examples=sum(len(group.completions) for group in groups),
        seconds=seconds,
        tokens=num_tokens,
        memory_mib=watch.above_mib(),
        peak_mib=watch.peak_mib(),
        rewards=tuple(tuple(row) for row in rewards),
    )
