"""Both sides of training and scoring, measured in the calling process: TRL's side only once in each.

One optimiser step on warm-up rows, then one timed pass from the same start. TRL's rows come tokenised, so that lengths
equal ours, and what costs it time for nothing is switched off.
"""

from __future__ import annotations

import gc
import json
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from datasets import Dataset, disable_progress_bars
from torch import Tensor
from transformers import AutoModelForSequenceClassification, TrainerCallback
from transformers.utils import logging as transformers_logging
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from alignloop.config import training as config
from alignloop.packing.groups import PromptGroup
from alignloop.packing.layout import first_fit_decreasing
from alignloop.training import loop
from alignloop.training.checkpoints import save_checkpoint
from alignloop.training.job import TrainJob
from alignloop.training.scoring import score_groups
from scripts.bench.case import Reading
from scripts.bench.processes import MemoryWatch
from scripts.bench.training import Request
from scripts.bench.training_rows import MAX_LENGTH, load_groups

BETA, NLL_COEFFICIENT = 0.1, 0.2
SHARED = {"learning_rate": 1e-5, "weight_decay": 0.01, "max_grad_norm": 1.0, "max_length": MAX_LENGTH}
Groups = Sequence[PromptGroup]
Passed = tuple[list[float], float, int]
"""What must be the same on both sides (first loss or rewards), seconds, positions that went through the model."""


def measure(request: Request) -> Reading:
    """Rate, memory above the level before the timed pass, and positions computed of one side."""
    groups, is_score = _groups(request), request.spec.kind == "score"
    ours, peer = (_score_ours, _score_separate_rows) if is_score else (_train_ours, _train_trl)
    side = ours if request.side == "ours" else peer
    first, _, _ = side(request, _warm_up(groups, count=request.batch_groups))
    gc.collect()
    watch = MemoryWatch()
    rewards, seconds, num_tokens = side(request, groups)
    examples = sum(len(group.completions) for group in groups) if is_score else len(groups)
    same = rewards if is_score else first[:1]
    return {"rate": examples / seconds, "memory": watch.above_mib(), "tokens": num_tokens, "same": same}


def _groups(request: Request) -> list[PromptGroup]:
    return load_groups(request.work, request.spec.rows, amount=request.amount, short=request.short)


def _warm_up(groups: Groups, *, count: int) -> list[PromptGroup]:
    """One step's groups, the longest of all among them, so that memory is allocated."""
    longest = max(range(len(groups)), key=lambda number: groups[number].num_tokens)
    numbers = [longest, *(number for number in range(len(groups)) if number != longest)]
    return [groups[number] for number in sorted(numbers[:count])]


def _model(request: Request) -> Path:
    return request.work / request.size / ("reward" if request.spec.kind in ("reward", "score") else "policy")


class _Stopwatch:
    """A `Progress` that notes how long each task took, from its start to its last unit, without pauses."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._paused = 0.0

    @contextmanager
    def task(self, label: str, *, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        started, paused = time.perf_counter(), self._paused

        def advance(num_done: int) -> None:
            self.seconds[label] = time.perf_counter() - started - (self._paused - paused)

        yield advance

    def say(self, line: str) -> None:
        print(line, flush=True)

    def pausing(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with its time left out."""

        def paused(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self._paused += time.perf_counter() - started

        return paused


def _train_ours(request: Request, groups: Groups) -> Passed:
    """The trainer always keeps its last checkpoint; TRL keeps none here, so writing it stops the watch."""
    watch = _Stopwatch()
    saving = patch.object(loop, "save_checkpoint", watch.pausing(save_checkpoint))
    with saving, tempfile.TemporaryDirectory(prefix="bench-ours-") as out_dir:
        job = TrainJob(
            request.spec.kind,  # type: ignore[arg-type]  # scoring is not trained
            groups=groups,
            eval_groups=[],
            checkpoint=_model(request),
            reference=_model(request) if request.spec.kind == "dpo" else None,
            out_dir=Path(out_dir),
            config=_config(request),
            seed=0,
            progress=watch,
        )
        result = loop.train(job)
        with Path(out_dir, "train_log.jsonl").open() as log:
            first_loss = json.loads(log.readline())["loss"]
    if result.dropped:
        raise RuntimeError(f"alignloop dropped {len(result.dropped)} rows: {result.dropped[0]}")
    return [first_loss], sum(watch.seconds.values()), result.num_tokens


def _config(request: Request) -> config.RewardConfig | config.SftConfig | config.DpoConfig:
    much = {"batch_groups": request.batch_groups, "rows_per_microbatch": request.num_rows}
    shared: dict[str, Any] = {**SHARED, **much, "dtype": "float32", "warmup_fraction": 0.0}
    if request.spec.kind == "reward":
        return config.RewardConfig(**shared)
    if request.spec.kind == "sft":
        return config.SftConfig(**shared)
    # TRL has one mask for both terms: without the formatting mask both sides have the same loss.
    return config.DpoConfig(**shared, beta=BETA, nll_coefficient=NLL_COEFFICIENT, mask_formatting_tokens=False)


def _score_ours(request: Request, groups: Groups) -> Passed:
    """`score_groups`; counts every prompt once, a bound that copies of long prompts exceed."""
    watch, model, rows = _Stopwatch(), _model(request), request.num_rows
    rewards = score_groups(groups, reward_model=model, progress=watch, rows_per_microbatch=rows, dtype="float32")
    flat = [reward for row in rewards for reward in row]
    return flat, sum(watch.seconds.values()), sum(group.num_tokens for group in groups)


@torch.inference_mode()
def _score_separate_rows(request: Request, groups: Groups) -> Passed:
    """Each candidate a row with its prompt, as a careful engineer writes it: batches of like length, longest first."""
    model = AutoModelForSequenceClassification.from_pretrained(
        _model(request), num_labels=1, dtype=torch.float32, attn_implementation="sdpa"
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


# ---- TRL --------------------------------------------------------------------------------------------------------


class _Watch(TrainerCallback):
    """Seconds from the start of the epoch, before its first batch is collated, to the end of the last step."""

    def on_epoch_begin(self, *args: Any, **kwargs: Any) -> None:
        self.started = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds = time.perf_counter() - self.started


class _CountingCollator:
    """Counts the positions of every batch, padding included."""

    def __init__(self, collator: Any) -> None:
        self.collator, self.num_tokens = collator, 0

    def __call__(self, rows: Any) -> Any:
        batch = self.collator(rows)
        self.num_tokens += batch["input_ids"].numel()
        return batch


class _PreTokenisedDpo(DPOTrainer):
    """`DPOTrainer`, which always tokenises, on rows that are token ids; times the precomputing of the reference."""

    reference_seconds = 0.0

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def _precompute_ref_logps(self, *args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        dataset = super()._precompute_ref_logps(*args, **kwargs)
        self.reference_seconds += time.perf_counter() - started
        return dataset


def _train_trl(request: Request, groups: Groups) -> Passed:
    """One epoch. Loading and preparing are not counted; DPO's reference is, whenever it is computed."""
    trainer_class = {"reward": RewardTrainer, "dpo": _PreTokenisedDpo, "sft": SFTTrainer}[request.spec.kind]
    rows, watch = [row for group in groups for row in _trl_rows(request.spec.kind, group)], _Watch()
    trainer = trainer_class(
        model=str(_model(request)), args=_arguments(request), train_dataset=Dataset.from_list(rows), callbacks=[watch]
    )
    counting = trainer.data_collator = _CountingCollator(trainer.data_collator)
    output = trainer.train()
    seconds = watch.seconds + getattr(trainer, "reference_seconds", 0.0)
    return [output.training_loss], seconds, counting.num_tokens


def _trl_rows(kind: str, group: PromptGroup) -> list[dict[str, Any]]:
    """A group as rows of token ids; of a ranking every ordered pair is a row, three of a three-way one."""
    prompt, completions = list(group.prompt_ids), [list(one.token_ids) for one in group.completions]
    if kind == "reward":
        return [{"chosen_ids": prompt + a, "rejected_ids": prompt + b} for a, b in combinations(completions, 2)]
    if kind == "sft":
        return [{"input_ids": prompt + completions[0], "labels": [-100] * len(prompt) + completions[0]}]
    chosen, rejected = completions
    ids = {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
    return [{"prompt": "", **ids, "length": group.longest}]


@cache
def _arguments(request: Request) -> Any:
    """Of both passes, made once: a second one would break the first trainer of the process."""
    warnings.simplefilter("ignore")
    logging.getLogger("trl").setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()
    disable_progress_bars()
    rows_per_step = _rows_per_step(request)
    # Whole forward passes make a step: with a remainder the step would be smaller than ours.
    per_forward = next(n for n in range(min(request.num_rows, rows_per_step), 0, -1) if rows_per_step % n == 0)
    shared: dict[str, Any] = {
        **SHARED,
        "output_dir": str(request.work / "trl"),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "num_train_epochs": 1,
        "per_device_train_batch_size": per_forward,
        "gradient_accumulation_steps": rows_per_step // per_forward,
        "lr_scheduler_type": "cosine",
        "optim": "adamw_torch_fused",
        "report_to": "none",
        **dict.fromkeys(("logging_strategy", "save_strategy", "eval_strategy"), "no"),
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "model_init_kwargs": {"dtype": "float32", "attn_implementation": "sdpa"},
        "seed": 0,
    }
    if request.spec.kind == "reward":
        return RewardConfig(**shared)
    if request.spec.kind == "sft":
        return SFTConfig(**shared, packing=True, packing_strategy=request.extra)
    if request.spec.grouped:
        # The sampler reads the `length` column, which would be taken away as unused.
        shared |= {"train_sampling_strategy": "group_by_length", "remove_unused_columns": False}
    losses = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, NLL_COEFFICIENT]}
    return DPOConfig(**shared, beta=BETA, **losses, precompute_ref_log_probs=bool(request.extra))


def _rows_per_step(request: Request) -> int:
    """Rows of TRL's dataset in a step; of SFT the packed rows that the warm-up's groups, one step's, fill."""
    warm_up = _warm_up(_groups(request), count=request.batch_groups)
    if request.spec.kind == "sft":
        filled = len(first_fit_decreasing([group.num_tokens for group in warm_up], capacity=MAX_LENGTH))
        return -(-filled // request.num_rows) * request.num_rows
    num_completions = len(warm_up[0].completions)
    return request.batch_groups * num_completions * (num_completions - 1) // 2
