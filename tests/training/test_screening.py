"""What cannot train is said so: through `train()`, and row by row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alignloop.chat.tokens import CompletionTokens
from alignloop.config.training import DpoConfig, RewardConfig, SftConfig
from alignloop.errors import TrainingError
from alignloop.packing.groups import PromptGroup
from alignloop.progress import QuietProgress
from alignloop.training.screening import drop_reason, screen
from alignloop.training.trainer import train

MakeGroups = Callable[..., list[PromptGroup]]

EMPTY = CompletionTokens((), ())
ENDING_ONLY = CompletionTokens((1,), (True,))
"""What a text that the tokenizer has no token for comes to: the end of turn alone."""
CONFIGS: dict[str, Any] = {"reward": RewardConfig, "sft": SftConfig, "dpo": DpoConfig}


def refused(objective: Any, groups: list[PromptGroup], *, policy: Path, out_dir: Path) -> str:
    """What `train` says of groups of which none can train. No model is loaded for it."""
    with pytest.raises(TrainingError) as caught:
        train(
            objective,
            groups=groups,
            eval_groups=[],
            checkpoint=policy,
            reference=policy if objective == "dpo" else None,
            out_dir=out_dir,
            config=CONFIGS[objective](dtype="float32", max_length=64),
            seed=0,
            progress=QuietProgress(),
        )
    assert not out_dir.exists() or not list(out_dir.iterdir())
    return str(caught.value)


@pytest.mark.parametrize(("objective", "completions"), [("reward", 2), ("sft", 1), ("dpo", 2)])
def test_a_row_with_no_trained_token(
    policy: Path, make_groups: MakeGroups, tmp_path: Path, objective: str, completions: int
) -> None:
    (group,) = make_groups(1, completions=completions)
    empty = replace(group, completions=(*group.completions[:-1], EMPTY))
    message = refused(objective, [empty], policy=policy, out_dir=tmp_path / "out")
    assert f"{objective}: no row is left to train on: all 1 were dropped. The first, row-0: " in message
    assert f"completion {completions - 1} has no token to train on" in message


@pytest.mark.parametrize(("objective", "completions"), [("sft", 1), ("dpo", 2)])
def test_a_row_of_formatting_tokens_only(
    policy: Path, make_groups: MakeGroups, tmp_path: Path, objective: str, completions: int
) -> None:
    (group,) = make_groups(1, completions=completions)
    ending = replace(group, completions=(*group.completions[:-1], ENDING_ONLY))
    message = refused(objective, [ending], policy=policy, out_dir=tmp_path / "out")
    assert f"completion {completions - 1} has formatting tokens only: its text comes to no token" in message


def test_a_group_with_one_ranked_completion(policy: Path, make_groups: MakeGroups, tmp_path: Path) -> None:
    message = refused("reward", make_groups(2, completions=1), policy=policy, out_dir=tmp_path / "out")
    assert "all 2 were dropped" in message
    assert "it has one ranked completion: a reward model learns from two or more" in message
    message = refused("dpo", make_groups(1, completions=1), policy=policy, out_dir=tmp_path / "out")
    assert "DPO needs one chosen and one rejected completion, found ranks [0]" in message


def test_completions_of_equal_rank(make_groups: MakeGroups) -> None:
    (group,) = make_groups(1, completions=2)
    equal = replace(group, ranks=(0, 0))
    assert "all its completions have the same rank" in str(drop_reason(equal, objective="reward", max_length=64))


def test_a_row_over_the_length_is_dropped_whole_and_counted(make_groups: MakeGroups) -> None:
    groups = make_groups(3, completions=2)
    longest = max(group.longest for group in groups)
    long = replace(groups[1], prompt_ids=(2,) * longest)
    kept, dropped = screen([groups[0], long, groups[2]], objective="dpo", max_length=longest)
    assert kept == [groups[0], groups[2]]
    ((name, reason),) = dropped
    assert name == "row-1"
    assert f"max_length is {longest}" in reason


def test_a_rejected_answer_without_text_still_compares(make_groups: MakeGroups) -> None:
    """For the reward model an empty answer is an answer: it is read at its end of turn."""
    (group,) = make_groups(1, completions=2)
    empty_answer = replace(group, completions=(group.completions[0], ENDING_ONLY))
    assert drop_reason(empty_answer, objective="reward", max_length=64) is None
