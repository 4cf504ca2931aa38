"""TRL's side of the training cases: its three trainers, with what costs time for nothing switched off.

Rows come tokenised, so that lengths are those of our side. Reward and SFT trainers take such rows; `DPOTrainer` always
tokenises, so its preparation is passed over.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Sequence
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

from datasets import Dataset, disable_progress_bars
from transformers import TrainerCallback
from transformers.utils import logging as transformers_logging
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from alignloop.packing.groups import PromptGroup
from alignloop.packing.layout import first_fit_decreasing
from scripts.bench.training import Request
from scripts.bench.training_rows import MAX_LENGTH, load_groups
from scripts.bench.training_sides import (
    BETA,
    LEARNING_RATE,
    MAX_GRAD_NORM,
    NLL_COEFFICIENT,
    WEIGHT_DECAY,
    Passed,
    model_of,
    warm_up_groups,
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


def train_trl(request: Request, groups: Sequence[PromptGroup]) -> Passed:
    """One epoch. Loading and preparing are not counted; DPO's reference is, whenever it is computed."""
    kind = request.spec.kind
    trainer_class = {"reward": RewardTrainer, "dpo": _PreTokenisedDpo, "sft": SFTTrainer}[kind]
    rows = {"reward": _reward_rows, "dpo": _dpo_rows, "sft": _sft_rows}[kind](groups)
    watch = _Watch()
    trainer = trainer_class(
        model=str(model_of(request)), args=_arguments(request), train_dataset=Dataset.from_list(rows), callbacks=[watch]
    )
    counting = trainer.data_collator = _CountingCollator(trainer.data_collator)
    output = trainer.train()
    seconds = watch.ended - watch.started + getattr(trainer, "reference_seconds", 0.0)
    return [output.training_loss], seconds, counting.num_tokens


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
        "output_dir": str(Path(request.work) / "trl"),
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
    if request.spec.kind == "reward":
        return RewardConfig(**shared)
    if request.spec.kind == "sft":
        return SFTConfig(**shared, packing=True, packing_strategy=request.extra)
    if request.spec.grouped:
        # The sampler reads the `length` column, which would be taken away as unused.
        shared |= {"train_sampling_strategy": "group_by_length", "remove_unused_columns": False}
    return DPOConfig(
        **shared,
        beta=BETA,
        loss_type=["sigmoid", "sft"],
        loss_weights=[1.0, NLL_COEFFICIENT],
        precompute_ref_log_probs=bool(request.extra),
    )


def _rows_per_step(request: Request) -> int:
    """Rows of TRL's dataset that make a step; of SFT the packed rows that the warm-up's groups, one step's, fill."""
    groups = load_groups(Path(request.work), request.spec.rows, amount=request.amount, short=request.short)
    warm_up = warm_up_groups(groups, count=request.batch_groups)
    if request.spec.kind == "sft":
        filled = len(first_fit_decreasing([group.num_tokens for group in warm_up], capacity=MAX_LENGTH))
        return -(-filled // request.num_rows) * request.num_rows
    num_completions = len(warm_up[0].completions)
    return request.batch_groups * num_completions * (num_completions - 1) // 2


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
