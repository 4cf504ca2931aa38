"""TRL's side of the training benchmark: its three trainers, with what costs time for nothing switched off.

Rows come tokenised, so that lengths are those of our side. Reward and SFT trainers take such rows; `DPOTrainer` always
tokenises, so its preparation is passed over.
"""

from __future__ import annotations

import gc
import logging
import tempfile
import time
import warnings
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from datasets import Dataset, disable_progress_bars
from transformers import TrainerCallback
from transformers.utils import logging as transformers_logging
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from alignloop.packing.groups import PromptGroup
from alignloop.packing.layout import first_fit_decreasing
from scripts.bench.stopwatch import MemoryWatch
from scripts.bench.training_cases import (
    BETA,
    CASES,
    LEARNING_RATE,
    MAX_GRAD_NORM,
    MAX_LENGTH,
    NLL_COEFFICIENT,
    WEIGHT_DECAY,
    Measurement,
    Request,
)


class _Watch(TrainerCallback):
    """Seconds from the start of the epoch, before its first batch is collated, to the end of the last step."""

    def __init__(self) -> None:
        self.started = self.ended = 0.0

    def on_epoch_begin(self, *args: Any, **kwargs: Any) -> None:
        self.started = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.ended = time.perf_counter()


class _CountingCollator:
    """Counts the positions of every batch, padding included."""

    def __init__(self, collator: Any) -> None:
        self.collator, self.num_tokens = collator, 0

    def __call__(self, rows: Any) -> Any:
        batch = self.collator(rows)
        self.num_tokens += batch["input_ids"].numel()
        return batch


class _PreTokenisedDpo(DPOTrainer):
    """`DPOTrainer` on rows that are token ids already; notes what precomputing the reference takes."""

    reference_seconds = 0.0

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def _precompute_ref_logps(self, *args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        dataset = super()._precompute_ref_logps(*args, **kwargs)
        self.reference_seconds += time.perf_counter() - started
        return dataset


def measure(request: Request, *, warm_up: Sequence[PromptGroup], groups: Sequence[PromptGroup]) -> Measurement:
    """One optimiser step on `warm_up`, then one timed pass over `groups` from the same start."""
    warnings.simplefilter("ignore")
    logging.getLogger("trl").setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()
    disable_progress_bars()
    with tempfile.TemporaryDirectory(prefix="bench-trl-") as folder:
        # One for both passes: a second one would break the first trainer of the process.
        args = _arguments(request, warm_up=warm_up, out_dir=folder)
        first_loss, _, _ = _train(request, warm_up, args=args)
        gc.collect()
        watch = MemoryWatch()
        _, seconds, num_tokens = _train(request, groups, args=args)
        return Measurement(
            examples=len(groups),
            seconds=seconds,
            tokens=num_tokens,
            memory_mib=watch.above_mib(),
            peak_mib=watch.peak_mib(),
            first_loss=first_loss,
        )


def _train(request: Request, groups: Sequence[PromptGroup], *, args: Any) -> tuple[float, float, int]:
    """(mean loss of the steps, seconds, positions) of one epoch. Loading and preparing are not counted."""
    case = CASES[request.case]
    models = Path(request.work) / request.size
    trainer_class = {"reward": RewardTrainer, "dpo": _PreTokenisedDpo, "sft": SFTTrainer}[case.kind]
    rows = {"reward": _reward_rows, "dpo": _dpo_rows, "sft": _sft_rows}[case.kind](groups)
    watch = _Watch()
    trainer = trainer_class(
        model=str(models / ("reward" if case.kind == "reward" else "policy")),
        args=args,
        train_dataset=Dataset.from_list(rows),
        callbacks=[watch],
    )
    counting = trainer.data_collator = _CountingCollator(trainer.data_collator)
    output = trainer.train()
    seconds = watch.ended - watch.started + getattr(trainer, "reference_seconds", 0.0)
    return output.training_loss, seconds, counting.num_tokens


def _arguments(request: Request, *, warm_up: Sequence[PromptGroup], out_dir: str) -> Any:
    case, setting = CASES[request.case], request.setting
    rows_per_step = _rows_per_step(request, warm_up=warm_up)
    # Whole forward passes make a step: with a remainder the step would be smaller than ours.
    per_forward = next(rows for rows in range(min(setting.rows, rows_per_step), 0, -1) if rows_per_step % rows == 0)
    shared: dict[str, Any] = {
        "output_dir": out_dir,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "num_train_epochs": 1,
        "per_device_train_batch_size": per_forward,
        "gradient_accumulation_steps": rows_per_step // per_forward,
        "learning_rate": LEARNING_RATE,
        "weight_decay": WEIGHT_DECAY,
        "max_grad_norm": MAX_GRAD_NORM,
        "lr_scheduler_type": "cosine",
        "optim": "adamw_torch_fused",
        "max_length": MAX_LENGTH,
        "report_to": "none",
        "logging_strategy": "no",
        "save_strategy": "no",
        "eval_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "model_init_kwargs": {"dtype": "float32", "attn_implementation": "sdpa"},
        "seed": 0,
    }
    if case.kind == "reward":
        return RewardConfig(**shared)
    if case.kind == "sft":
        return SFTConfig(**shared, packing=True, packing_strategy=setting.packing)
    if case.grouped:
        # The sampler reads the `length` column, which would be taken away as unused.
        shared |= {"train_sampling_strategy": "group_by_length", "remove_unused_columns": False}
    return DPOConfig(
        **shared,
        beta=BETA,
        loss_type=["sigmoid", "sft"],
        loss_weights=[1.0, NLL_COEFFICIENT],
        precompute_ref_log_probs=setting.precompute_ref,
    )


def _rows_per_step(request: Request, *, warm_up: Sequence[PromptGroup]) -> int:
    """Rows of TRL's dataset that make a step; of SFT the packed rows that the warm-up's groups, one step's, fill."""
    batch_groups = request.amount.batch_groups
    kind = CASES[request.case].kind
    if kind == "reward":
        num_completions = len(warm_up[0].completions)
        return batch_groups * num_completions * (num_completions - 1) // 2
    if kind == "dpo":
        return batch_groups
    sizes = [group.num_tokens for group in warm_up]
    rows = len(first_fit_decreasing(sizes, capacity=MAX_LENGTH))
    return -(-rows // request.setting.rows) * request.setting.rows


def _reward_rows(groups: Sequence[PromptGroup]) -> list[dict[str, Any]]:
    """Every ordered pair of a group is a row: three of a three-way ranking."""
    rows = []
    for group in groups:
        whole = [[*group.prompt_ids, *completion.token_ids] for completion in group.completions]
        rows += [{"chosen_ids": whole[i], "rejected_ids": whole[j]} for i, j in combinations(range(len(whole)), 2)]
    return rows


def _dpo_rows(groups: Sequence[PromptGroup]) -> list[dict[str, Any]]:
    return [
        {
            "prompt": "",
            "prompt_ids": list(group.prompt_ids),
            "chosen_ids": list(group.completions[0].token_ids),
            "rejected_ids": list(group.completions[1].token_ids),
            "length": group.longest,
        }
        for group in groups
    ]


def _sft_rows(groups: Sequence[PromptGroup]) -> list[dict[str, Any]]:
    return [
        {
            "input_ids": [*group.prompt_ids, *group.completions[0].token_ids],
            "labels": [-100] * len(group.prompt_ids) + list(group.completions[0].token_ids),
        }
        for group in groups
    ]
