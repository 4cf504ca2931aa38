"""Both sides of training and scoring, measured in the process that calls: TRL's side only once in each.

One optimiser step on warm-up rows, then one timed pass from the same start.
"""

from __future__ import annotations

import gc
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from alignloop.config.training import DpoConfig, RewardConfig, SftConfig
from alignloop.packing.groups import PromptGroup
from alignloop.training import loop
from alignloop.training.checkpoints import save_checkpoint
from alignloop.training.job import TrainJob
from alignloop.training.loop import train
from alignloop.training.scoring import score_groups
from scripts.bench.case import Reading
from scripts.bench.processes import MemoryWatch
from scripts.bench.training import Request
from scripts.bench.training_rows import MAX_LENGTH, load_groups

LEARNING_RATE, WEIGHT_DECAY, MAX_GRAD_NORM = 1e-5, 0.01, 1.0
BETA, NLL_COEFFICIENT = 0.1, 0.2
Passed = tuple[list[float], float, int]
"""What must be the same on both sides (first loss or rewards), seconds, positions that went through the model."""


def measure(request: Request) -> Reading:
    """Rate, memory above the level before the timed pass, and positions computed of one side."""
    groups = load_groups(Path(request.work), request.spec.rows, amount=request.amount, short=request.short)
    side: Callable[[Request, Sequence[PromptGroup]], Passed]
    if request.spec.kind == "score":
        side = _score_ours if request.side == "ours" else _score_separate_rows
    elif request.side == "ours":
        side = _train_ours
    else:
        from scripts.bench.training_trl import train_trl as side
    first, _, _ = side(request, warm_up_groups(groups, count=request.batch_groups))
    gc.collect()
    watch = MemoryWatch()
    rewards, seconds, num_tokens = side(request, groups)
    is_score = request.spec.kind == "score"
    examples = sum(len(group.completions) for group in groups) if is_score else len(groups)
    return {
        "rate": examples / seconds,
        "memory": watch.above_mib(),
        "tokens": num_tokens,
        "same": rewards if is_score else first[:1],
    }


def warm_up_groups(groups: Sequence[PromptGroup], *, count: int) -> list[PromptGroup]:
    """One step's groups, the longest of all among them: memory has then been asked for once."""
    longest = max(range(len(groups)), key=lambda number: groups[number].num_tokens)
    numbers = [longest, *(number for number in range(len(groups)) if number != longest)]
    return [groups[number] for number in sorted(numbers[:count])]


def model_of(request: Request) -> Path:
    return Path(request.work) / request.size / ("reward" if request.spec.kind in ("reward", "score") else "policy")


class Stopwatch:
    """A `Progress` that notes how long each task took, from its start to its last unit, but for pauses."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.paused = 0.0

    @contextmanager
    def task(self, label: str, *, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        started, paused = time.perf_counter(), self.paused

        def advance(num_done: int) -> None:
            self.seconds[label] = time.perf_counter() - started - (self.paused - paused)

        yield advance

    def say(self, line: str) -> None:
        print(line, flush=True)

    def pausing(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose time counts for nothing."""

        def paused(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.paused += time.perf_counter() - started

        return paused


def _train_ours(request: Request, groups: Sequence[PromptGroup]) -> Passed:
    """The trainer always keeps its last checkpoint; TRL keeps none here, so writing it stops the watch."""
    watch = Stopwatch()
    saving = patch.object(loop, "save_checkpoint", watch.pausing(save_checkpoint))
    with saving, tempfile.TemporaryDirectory(prefix="bench-ours-") as out_dir:
        job = TrainJob(
            request.spec.kind,  # type: ignore[arg-type]  # scoring is not trained
            groups=groups,
            eval_groups=[],
            checkpoint=model_of(request),
            reference=model_of(request) if request.spec.kind == "dpo" else None,
            out_dir=Path(out_dir),
            config=_config(request),
            seed=0,
            progress=watch,
        )
        result = train(job)
        with Path(out_dir, "train_log.jsonl").open() as log:
            first_loss = json.loads(log.readline())["loss"]
    if result.dropped:
        raise RuntimeError(f"alignloop dropped {len(result.dropped)} rows: {result.dropped[0]}")
    return [first_loss], sum(watch.seconds.values()), result.num_tokens


def _config(request: Request) -> RewardConfig | SftConfig | DpoConfig:
    shared: dict[str, Any] = {
        "learning_rate": LEARNING_RATE,
        "weight_decay": WEIGHT_DECAY,
        "max_grad_norm": MAX_GRAD_NORM,
        "batch_groups": request.batch_groups,
        "rows_per_microbatch": request.num_rows,
        "max_length": MAX_LENGTH,
        "dtype": "float32",
        "warmup_fraction": 0.0,
    }
    if request.spec.kind == "reward":
        return RewardConfig(**shared)
    if request.spec.kind == "sft":
        return SftConfig(**shared)
    # TRL has one mask for both terms: without the formatting mask both sides have the same loss.
    return DpoConfig(**shared, beta=BETA, nll_coefficient=NLL_COEFFICIENT, mask_formatting_tokens=False)


def _score_ours(request: Request, groups: Sequence[PromptGroup]) -> Passed:
    """`score_groups`; tokens with every prompt once, a bound that copies of long prompts exceed."""
    watch = Stopwatch()
    rewards = score_groups(
        groups,
        reward_model=model_of(request),
        progress=watch,
        rows_per_microbatch=request.num_rows,
        dtype="float32",
    )
    flat = [reward for row in rewards for reward in row]
    return flat, sum(watch.seconds.values()), sum(group.num_tokens for group in groups)


@torch.inference_mode()
def _score_separate_rows(request: Request, groups: Sequence[PromptGroup]) -> Passed:
    """Each candidate a row with its prompt, as a careful engineer writes it: batches of like length, longest first."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(
        model_of(request), num_labels=1, dtype=torch.float32, attn_implementation="sdpa"
    ).eval()
    rows = [[*group.prompt_ids, *one.token_ids] for group in groups for one in group.completions]
    order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
    rewards, num_tokens = [0.0] * len(rows), 0
    started = time.perf_counter()
    for first in range(0, len(order), request.num_rows):
        batch = order[first : first + request.num_rows]
        num_tokens += len(batch) * len(rows[batch[0]])
        values = _batch_rewards(model, [rows[row] for row in batch]).tolist()
        for row, value in zip(batch, values, strict=True):
            rewards[row] = value
    return rewards, time.perf_counter() - started, num_tokens


def _batch_rewards(model: Any, rows: Sequence[Sequence[int]]) -> Tensor:
    """[B] rewards of rows sorted longest first; no mask where nothing is padded, which lets SDPA skip it."""
    lengths = torch.tensor([len(ids) for ids in rows])
    longest = len(rows[0])
    input_ids = torch.zeros(len(rows), longest, dtype=torch.long)
    for number, ids in enumerate(rows):
        input_ids[number, : len(ids)] = torch.tensor(ids)
    mask = None if int(lengths.min()) == longest else (torch.arange(longest) < lengths[:, None]).long()
    hidden = model.base_model(input_ids=input_ids, attention_mask=mask, use_cache=False).last_hidden_state
    rewards: Tensor = model.score(hidden[torch.arange(len(rows)), lengths - 1]).squeeze(-1)
    return rewards
