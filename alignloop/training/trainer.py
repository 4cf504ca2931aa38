"""One trainer for the three objectives.

    groups ─► screen ─► step batches ─► packed rows ─► model ─► objective ─► step ─► checkpoints
                                                                  ▲
                     reference model ─► logprobs, once (DPO) ─────┘

`run.py` is that training in one process; `launch.py` starts several of them, which share out the rows of each step.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from alignloop.config.training import RewardConfig, TrainingConfig
from alignloop.errors import TrainingError
from alignloop.packing.groups import PromptGroup
from alignloop.packing.layout import packed_num_tokens
from alignloop.progress import Progress
from alignloop.training.accelerate_file import check_processes
from alignloop.training.data_order import shuffled_completions
from alignloop.training.processes import this_process
from alignloop.training.run import TRAINER_VERSION, checkpoint_path, kept_steps, planned_batches, run_here
from alignloop.training.screening import Dropped, ObjectiveName, screen
from alignloop.training.setup import TrainConfig, TrainJob
from alignloop.training.worker import LAUNCH_FOLDER

__all__ = ["TRAINER_VERSION", "TrainResult", "train"]


@dataclass(frozen=True)
class TrainResult:
    """What a training stage made.

    Attributes:
        checkpoints: complete Hugging Face directories, oldest first, the last step's at the end.
        metrics: `train_*` means over the last steps, `eval_*` on the held-out groups at the end, `step_0_dpo_loss`.
        num_tokens: tokens of packed rows over all steps, padding not counted.
        dropped: (group id, reason) of training groups that were left out.
        checkpoint_metrics: `loss`, `accuracy`, ... on the held-out groups of each checkpoint; empty where there are no
            such groups.
    """

    checkpoints: tuple[Path, ...]
    metrics: dict[str, float]
    num_steps: int
    num_tokens: int
    dropped: Dropped
    checkpoint_metrics: tuple[dict[str, float], ...] = ()


def train(
    objective: ObjectiveName,
    *,
    groups: Sequence[PromptGroup],
    eval_groups: Sequence[PromptGroup],
    checkpoint: Path,
    reference: Path | None,
    out_dir: Path,
    config: TrainConfig,
    seed: int,
    progress: Progress,
    training: TrainingConfig = TrainingConfig(),  # noqa: B008 - frozen
    run_name: str = "",
) -> TrainResult:
    """Train `checkpoint` on prompt groups.

    Args:
        groups: reward: two or more ranked completions each; SFT: one; DPO: chosen and rejected.
        eval_groups: held out, of the same form; may be empty.
        checkpoint: a complete Hugging Face directory. For `reward` a policy or base will do: it gets a new head.
        reference: DPO's frozen model; None for the other two.
        out_dir: gets `checkpoints/step-XXXXXX`, `train_log.jsonl`, and while it runs `resume/` and `launch/`.
        seed: of the data order and of a new reward head.
        training: processes and trackers; what is trained does not depend on it, but for rounding.
        run_name: the stage, for trackers.

    Raises:
        TrainingError: nothing to train on, a non-finite loss, no memory for one row, DPO not starting at ln 2.
        ModelError: a checkpoint that cannot be loaded or does not fit the token ids.
        UserError: it cannot be trained on the processes that `training` asks for.
    """
    check_processes(training, config=config, name=objective)
    kept, dropped = screen(groups, objective=objective, max_length=config.max_length)
    held_out = _screen_held_out(eval_groups, objective=objective, config=config, progress=progress)
    if objective == "reward" and isinstance(config, RewardConfig) and not config.isolate:
        kept, held_out = _shuffle(kept, seed=seed), _shuffle(held_out, seed=seed)
    job = TrainJob(
        objective, kept, held_out, checkpoint, reference, out_dir, config, seed, progress, training, run_name
    )
    shutil.rmtree(out_dir / LAUNCH_FOLDER, ignore_errors=True)  # what a failed start left
    if training.num_processes == 1:
        result = run_here(job, processes=this_process())
    else:
        from alignloop.training.launch import run_launched

        (result,) = run_launched([job], training=training, progress=progress)
    batches = planned_batches(job)
    return TrainResult(
        checkpoints=tuple(checkpoint_path(job, step) for step in kept_steps(job)),
        metrics=result.metrics,
        num_steps=len(batches),
        num_tokens=sum(packed_num_tokens(kept[number]) for batch in batches for number in batch),
        dropped=dropped,
        checkpoint_metrics=result.checkpoint_metrics,
    )


def _screen_held_out(
    groups: Sequence[PromptGroup], *, objective: ObjectiveName, config: TrainConfig, progress: Progress
) -> list[PromptGroup]:
    if not groups:
        return []
    try:
        kept, dropped = screen(groups, objective=objective, max_length=config.max_length)
    except TrainingError as error:
        progress.say(f"  held-out rows: {error}; nothing is measured on them")
        return []
    if dropped:
        progress.say(f"  {len(dropped)} of {len(groups)} held-out rows are left out; the first: {dropped[0][1]}")
    return kept


def _shuffle(groups: Sequence[PromptGroup], *, seed: int) -> list[PromptGroup]:
    shuffled = []
    for group in groups:
        order = shuffled_completions(len(group.completions), group_id=group.id, seed=seed)
        completions = tuple(group.completions[number] for number in order)
        shuffled.append(replace(group, completions=completions, ranks=tuple(group.ranks[number] for number in order)))
    return shuffled
