"""The course of a training, from its config, groups and seed alone: in which order, at which rate, what is kept.

Nothing of it is saved or restored: a resumed training computes it again. Torch-free.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path

from alignloop.config.rloo import RlooConfig
from alignloop.config.training import ObjectiveName, OptimizerConfig, PolicyTraining, RewardConfig, TrainingConfig
from alignloop.packing.groups import PromptGroup
from alignloop.packing.layout import packed_num_tokens
from alignloop.progress import Progress

TRAINER_VERSION = 3
"""Raise when the same arguments give other weights: older resume points are then not used."""
OPTIMIZER = "optimizer.safetensors"
REFERENCE_CACHE = "reference_logprobs.json"
"""In a training's folder: the reference model's sums for DPO, and the key of what they depend on."""

Dropped = tuple[tuple[str, str], ...]
"""(group id, reason)."""


@dataclass(frozen=True)
class TrainJob:
    """One training; `groups` and `eval_groups` are screened before its first step.

    Attributes:
        groups: reward: two or more ranked completions each; SFT: one; DPO: chosen and rejected.
        eval_groups: held out, of the same form; may be empty.
        checkpoint: a complete Hugging Face directory. For `reward` a policy or base will do: it gets a new head.
        reference: DPO's frozen model; None for the other two, and for a loss that has none.
        out_dir: gets `checkpoints/step-XXXXXX`, `train_log.jsonl`, and while it runs `resume/` and `launch/`.
        seed: of the data order and of a new reward head.
        training: processes and trackers; what is trained does not depend on it, but for rounding.
        run_name: the stage, for trackers.
        max_rows: at most so many rows a microbatch: what memory has shown to hold; None: as the config says.
        optimizer: the state that an earlier training of the same parameters ended with; None: a new one.
        keeps_optimizer: write the state at the end, to `OPTIMIZER` in `out_dir`.
    """

    objective: ObjectiveName
    groups: Sequence[PromptGroup]
    eval_groups: Sequence[PromptGroup]
    checkpoint: Path
    reference: Path | None
    out_dir: Path
    config: OptimizerConfig
    seed: int
    progress: Progress
    training: TrainingConfig = field(default_factory=TrainingConfig)
    run_name: str = ""
    max_rows: int | None = None
    optimizer: Path | None = None
    keeps_optimizer: bool = False

    @property
    def all_groups(self) -> list[PromptGroup]:
        """Training groups, then held-out ones."""
        return [*self.groups, *self.eval_groups]

    @property
    def rows(self) -> int:
        """Per microbatch, to begin with."""
        return min(self.config.rows_per_microbatch, self.max_rows or self.config.rows_per_microbatch)

    @property
    def isolate(self) -> bool:
        """Whether the completions of a prompt do not see each other."""
        return not isinstance(self.config, RewardConfig) or self.config.isolate

    def batches(self) -> list[list[int]]:
        """The groups of each step, by number."""
        tokens = [packed_num_tokens(group) for group in self.groups]
        return step_batches(tokens, config=self.config, seed=self.seed)

    def kept_steps(self) -> tuple[int, ...]:
        """Steps after which a checkpoint is kept."""
        config = self.config
        return checkpoint_steps(len(self.batches()), num_checkpoints=config.num_checkpoints, span=config.average_span)

    def checkpoint_path(self, step: int) -> Path:
        return self.out_dir / "checkpoints" / f"step-{step:06d}"


@dataclass(frozen=True)
class TrainResult:
    """What a training made.

    Attributes:
        checkpoints: complete Hugging Face directories, oldest first, the last step's at the end.
        metrics: `train_*` means over the last steps, `eval_*` on the held-out groups at the end, `step_0_dpo_loss`.
        num_tokens: tokens of packed rows over all steps, padding not counted.
        dropped: training groups that were left out.
        checkpoint_metrics: `loss`, ... of each checkpoint on the held-out groups; empty without such groups.
    """

    checkpoints: tuple[Path, ...]
    metrics: dict[str, float]
    num_steps: int
    num_tokens: int
    dropped: Dropped
    checkpoint_metrics: tuple[dict[str, float], ...] = ()


def step_sizes(num_groups: int, *, batch_groups: int, epochs: int, max_steps: int | None) -> list[int]:
    """Groups of each optimiser step: in an epoch they differ by at most one, the larger ones first.

    An epoch has as few steps as batches of at most `batch_groups` allow, and shares its groups out over them. Cut into
    full batches it would end with what is left over: one group perhaps, at the learning rate of a whole batch.
    `max_steps` changes no batch; later steps are left out.
    """
    num_steps = -(-num_groups // batch_groups)
    sizes = [(num_groups + step) // num_steps for step in reversed(range(num_steps))] * epochs
    return sizes if max_steps is None else sizes[:max_steps]


def step_batches(tokens: Sequence[int], *, config: OptimizerConfig, seed: int) -> list[list[int]]:
    """Group indices of every optimiser step, from the tokens of each group. Each epoch is its own permutation; batches
    do not cross epochs. With `train_tokens` there are as many epochs as it takes, and the step that reaches them is the
    last."""
    wanted = train_tokens(config)
    epochs = range(config.epochs) if wanted is None else count()
    sizes = step_sizes(len(tokens), batch_groups=config.batch_groups, epochs=1, max_steps=None)
    batches: list[list[int]] = []
    num_passed = 0
    for epoch in epochs if sizes else ():
        order = iter(shuffled(len(tokens), key=f"{seed}/epoch/{epoch}"))
        for size in sizes:
            if len(batches) == config.max_steps or (wanted is not None and num_passed >= wanted):
                return batches
            batches.append(list(islice(order, size)))
            num_passed += sum(tokens[index] for index in batches[-1])
    return batches


Batches = Sequence[Sequence[Sequence[int]]]
"""Of RLOO: for each batch that is sampled together the prompts of its optimiser steps, by number."""


def prompt_batches(num_prompts: int, *, config: RlooConfig, seed: int) -> list[list[list[int]]]:
    """As `Batches`. Every epoch goes through all prompts in an order of its own, `num_minibatches` steps are sampled
    for together, within an epoch, and come `num_iterations` times; `max_steps` counts them all."""
    plain = config.model_copy(update={"max_steps": None})
    steps = step_batches([1] * num_prompts, config=plain, seed=seed)
    of_epoch = len(steps) // config.epochs
    batches: list[list[list[int]]] = []
    left = len(steps) * config.num_iterations if config.max_steps is None else config.max_steps
    for epoch in range(config.epochs):
        own = steps[epoch * of_epoch : (epoch + 1) * of_epoch]
        for first in range(0, len(own), config.num_minibatches):
            minibatches = own[first : first + config.num_minibatches] * config.num_iterations
            if left > 0:
                batches.append(minibatches[:left])
                left -= len(minibatches)
    return batches


def train_tokens(config: OptimizerConfig) -> int | None:
    """After how many tokens a training ends; None: after its epochs."""
    return config.train_tokens if isinstance(config, PolicyTraining) else None


def shuffled(count: int, *, key: str) -> list[int]:
    """0 .. count - 1, in the order that the key determines."""
    order = list(range(count))
    random.Random(key).shuffle(order)
    return order


def learning_rate(step: int, *, num_steps: int, config: OptimizerConfig) -> float:
    """Linear warm-up, then cosine to `final_lr_fraction` of the peak at the last step; `step` is 0-based."""
    num_warmup = int(config.warmup_fraction * num_steps)
    if step < num_warmup:
        return config.learning_rate * (step + 1) / (num_warmup + 1)
    progress = (step - num_warmup) / max(1, num_steps - 1 - num_warmup)
    cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
    return config.learning_rate * (config.final_lr_fraction + (1.0 - config.final_lr_fraction) * cosine)


def checkpoint_steps(num_steps: int, *, num_checkpoints: int, span: float) -> tuple[int, ...]:
    """Steps (1-based) after which a checkpoint is kept: evenly spaced over the last `span`, both ends included.

    Fewer where the span has fewer steps than checkpoints.
    """
    if num_checkpoints == 1:
        return (num_steps,)
    first = num_steps * (1.0 - span)
    gap = (num_steps - first) / (num_checkpoints - 1)
    return tuple(sorted({max(1, round(num_steps - i * gap)) for i in range(num_checkpoints)}))


def weights_digest(checkpoint: Path) -> str:
    """sha256 over a checkpoint's safetensors files and its config: equal where the models are equal."""
    digest = hashlib.sha256()
    for path in [checkpoint / "config.json", *sorted(checkpoint.glob("*.safetensors"))]:
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()


def groups_digest(groups: Sequence[PromptGroup]) -> str:
    """sha256 over ids, tokens, masks, ranks, strengths and reward gaps, in order."""
    digest = hashlib.sha256()
    for group in groups:
        completions = [(c.token_ids, c.formatting_mask) for c in group.completions]
        row = (group.id, group.prompt_ids, completions, group.ranks, group.prompt_loss_mask, group.strength)
        digest.update(json.dumps((*row, group.reward_gap)).encode())
    return digest.hexdigest()


def key_of(**parts: object) -> str:
    """One digest of named values that JSON can hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
