"""Rewards of candidates: one prompt, K completions, the prompt computed once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from alignloop.packing.groups import PromptGroup
from alignloop.progress import Progress
from alignloop.training.forward import CompletionRewards
from alignloop.training.frozen_pass import frozen_pass
from alignloop.training.models import Dtype, load_reward_model
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
    return frozen_pass(
        groups,
        checkpoint=reward_model,
        load=lambda weights: load_reward_model(reward_model, seed=0, dtype=weights, must_have_head=True),
        wrap=CompletionRewards,
        read=_scores,
        rows_per_microbatch=rows_per_microbatch,
        dtype=dtype,
        progress=progress,
    )


def _scores(module: CompletionRewards, groups: Sequence[PromptGroup], runner: RowRunner) -> list[list[float]]:
    rewards = [[0.0] * len(group.completions) for group in groups]
    num_candidates = sum(len(group.completions) for group in groups)
    with runner.progress.task("score", total=num_candidates, unit="candidates") as advance:
        for batch, output, numbers in runner.outputs(module, groups):
            places = zip(batch.completion_group.tolist(), batch.completion_number.tolist(), strict=True)
            for (group, completion), reward in zip(places, output.tolist(), strict=True):
                rewards[numbers[group]][completion] = reward
            advance(len(output))
    return rewards
