"""Rewards of candidates; averages of checkpoints on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from alignloop.chat.tokens import CompletionTokens
from alignloop.config.training import RewardConfig
from alignloop.errors import ModelError
from alignloop.packing.groups import PromptGroup
from alignloop.progress import QuietProgress
from alignloop.training.average import average_checkpoints
from alignloop.training.frozen_pass import split_groups
from alignloop.training.scoring import score_groups
from alignloop.training.trainer import train

MakeGroups = Callable[..., list[PromptGroup]]


@pytest.fixture
def reward_model(policy: Path, tmp_path: Path, make_groups: MakeGroups) -> Path:
    config = RewardConfig(dtype="float32", learning_rate=3e-3, batch_groups=8)
    groups = make_groups(16, completions=2)
    result = train(
        "reward",
        groups=groups,
        eval_groups=[],
        checkpoint=policy,
        reference=None,
        out_dir=tmp_path / "reward",
        config=config,
        seed=0,
        progress=QuietProgress(),
    )
    return result.checkpoints[-1]


def candidates(num_candidates: int) -> PromptGroup:
    completions = [tuple(2 + (7 * k + t) % 60 for t in range(1 + k % 5)) for k in range(num_candidates)]
    tokens = tuple(CompletionTokens(ids, (False,) * len(ids)) for ids in completions)
    return PromptGroup(f"k{num_candidates}", (3, 4, 5), tokens, (0,) * num_candidates)


@pytest.mark.parametrize("rows_per_microbatch", [16, 1])
def test_scores_are_transformers_own_in_candidate_order(rows_per_microbatch: int, reward_model: Path) -> None:
    # 200 candidates are more than one row holds: they are scored in pieces.
    groups = [candidates(1), candidates(200), candidates(16)]
    rewards = score_groups(
        groups,
        reward_model=reward_model,
        progress=QuietProgress(),
        dtype="float32",
        rows_per_microbatch=rows_per_microbatch,
    )
    model = AutoModelForSequenceClassification.from_pretrained(reward_model).eval()
    for group, row in zip(groups, rewards, strict=True):
        with torch.no_grad():
            expected = [
                float(model(input_ids=torch.tensor([group.prompt_ids + c.token_ids])).logits) for c in group.completions
            ]
        assert row == pytest.approx(expected, abs=1e-5)


def test_groups_larger_than_a_microbatch_come_in_pieces() -> None:
    """Prompt of 4; candidates of 3, 2 and 5 take 4, 3 and 6: 11 hold the prompt and the first two, not the third."""
    completions = tuple(CompletionTokens((1,) * n, (False,) * n) for n in (3, 2, 5))
    group = PromptGroup("a", (1, 2, 3, 4), completions, (0, 1, 2))
    assert split_groups([group], capacity=17) == [[group]]
    ((first, second),) = split_groups([group], capacity=11)
    assert (first.completions, second.completions) == (completions[:2], completions[2:])
    assert first.prompt_ids == second.prompt_ids == group.prompt_ids
    ((*alone,),) = split_groups([group], capacity=1)
    assert [piece.completions for piece in alone] == [(completion,) for completion in completions]


def test_a_policy_is_not_taken_for_a_reward_model(policy: Path) -> None:
    with pytest.raises(ModelError, match="this is not a reward model"):
        score_groups([candidates(2)], reward_model=policy, progress=QuietProgress())


def test_nothing_to_score_needs_no_model(tmp_path: Path) -> None:
    assert score_groups([], reward_model=tmp_path / "none", progress=QuietProgress()) == []


def shifted(policy: Path, target: Path, *, by: float) -> Path:
    """The policy with `by` added to every weight."""
    average_checkpoints([policy], out_dir=target)
    path = target / "model.safetensors"
    save_file({name: tensor + by for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})
    return target


def test_one_checkpoint_is_copied(policy: Path, tmp_path: Path) -> None:
    average = average_checkpoints([policy], out_dir=tmp_path / "average")
    assert {path.name for path in average.iterdir()} == {path.name for path in policy.iterdir()}
    assert all((average / path.name).read_bytes() == path.read_bytes() for path in policy.iterdir())


def test_weighted_average_on_disk_by_hand(policy: Path, tmp_path: Path) -> None:
    other = shifted(policy, tmp_path / "other", by=4.0)
    average = average_checkpoints([policy, other], out_dir=tmp_path / "average", weights=[3, 1])
    plain, averaged = load_file(policy / "model.safetensors"), load_file(average / "model.safetensors")
    for name in plain:
        torch.testing.assert_close(averaged[name], plain[name] + 1.0, atol=1e-6, rtol=0)
    assert AutoModelForCausalLM.from_pretrained(average).config.vocab_size == 64
    assert (average / "tokenizer.json").is_file()


def test_checkpoints_that_do_not_fit_leave_nothing_behind(policy: Path, reward_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="tensors missing"):
        average_checkpoints([policy, reward_model], out_dir=tmp_path / "average")
    assert not list(tmp_path.glob("average*"))
