"""Values of packed completions, rewards and logprobs, equal those of each completion in a row of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from alignloop.chat.tokens import CompletionTokens
from alignloop.errors import ModelError
from alignloop.packing.groups import PromptGroup
from alignloop.progress import QuietProgress
from alignloop.training.scoring import completion_logprobs, score_groups, split_group

MakeGroups = Callable[..., list[PromptGroup]]


@pytest.fixture
def reward_model(run: Any, tmp_path: Path, make_groups: MakeGroups) -> Path:
    checkpoint: Path = run("reward", tmp_path / "reward", groups=make_groups(16, completions=2)).checkpoints[-1]
    return checkpoint


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
    assert split_group(group, capacity=17) == [group]
    first, second = split_group(group, capacity=11)
    assert (first.completions, second.completions) == (completions[:2], completions[2:])
    assert first.prompt_ids == second.prompt_ids == group.prompt_ids
    alone = split_group(group, capacity=1)
    assert [piece.completions for piece in alone] == [(completion,) for completion in completions]


def group(name: str, prompt: tuple[int, ...], *completions: tuple[int, ...]) -> PromptGroup:
    # The last token of each is formatting: it has its logprob all the same.
    tokens = tuple(CompletionTokens(ids, (False,) * (len(ids) - 1) + (True,)) for ids in completions)
    return PromptGroup(name, prompt, tokens, tuple(range(len(tokens))))


GROUPS = [
    group("a", (5, 6, 7), (8, 9, 1), (10, 1), (11, 12, 13, 14, 1)),
    group("b", (20,), (21, 1)),
    group("c", (30, 31, 32, 33, 34, 35), (36, 37, 1), (36, 38, 39, 1)),
]


@pytest.mark.parametrize("rows_per_microbatch", [1, 16])
def test_equal_to_separate_rows(policy: Path, rows_per_microbatch: int) -> None:
    found = completion_logprobs(
        GROUPS,
        checkpoint=policy,
        progress=QuietProgress(),
        rows_per_microbatch=rows_per_microbatch,
        dtype="float32",
    )
    model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32)
    for own, each in zip(found, GROUPS, strict=True):
        for logprobs, completion in zip(own, each.completions, strict=True):
            row = torch.tensor([each.prompt_ids + completion.token_ids])
            with torch.no_grad():
                table = model(row).logits[0].log_softmax(-1)
            start = len(each.prompt_ids)
            expected = [table[start - 1 + k, token].item() for k, token in enumerate(completion.token_ids)]
            assert logprobs == pytest.approx(expected, abs=1e-5)


def test_no_group_no_model_and_no_policy_for_a_reward_model(policy: Path, tmp_path: Path) -> None:
    quiet = QuietProgress()
    assert completion_logprobs([], checkpoint=tmp_path / "nothing", progress=quiet) == []
    assert score_groups([], reward_model=tmp_path / "nothing", progress=quiet) == []
    with pytest.raises(ModelError, match=r"no config\.json"):
        completion_logprobs(GROUPS, checkpoint=tmp_path / "nothing", progress=quiet)
    with pytest.raises(ModelError, match="this is not a reward model"):
        score_groups(GROUPS, reward_model=policy, progress=quiet)
