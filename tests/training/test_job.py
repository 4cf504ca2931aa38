"""What a training goes through: order, rate, kept steps by hand; what cannot train, by `train()` and row by row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from alignloop.chat.tokens import CompletionTokens
from alignloop.errors import TrainingError
from alignloop.packing.groups import PromptGroup
from alignloop.training.job import checkpoint_steps, drop_reason, groups_digest, learning_rate, screen, step_batches
from alignloop.training.step import count_step

MakeGroups = Callable[..., list[PromptGroup]]

EMPTY = CompletionTokens((), ())
ENDING_ONLY = CompletionTokens((1,), (True,))
"""What a text that the tokenizer has no token for comes to: the end of turn alone."""


def test_every_epoch_sees_every_group_once_in_an_order_of_its_own() -> None:
    batches = step_batches(10, batch_groups=4, epochs=2, max_steps=None, seed=3)
    assert [len(batch) for batch in batches] == [4, 3, 3, 4, 3, 3]
    first, second = list(chain(*batches[:3])), list(chain(*batches[3:]))
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert step_batches(10, batch_groups=4, epochs=2, max_steps=5, seed=3) == batches[:5]
    assert step_batches(10, batch_groups=4, epochs=2, max_steps=None, seed=4) != batches


@pytest.mark.parametrize(
    ("num_groups", "batch_groups", "expected"),
    [(65, 64, [33, 32]), (129, 64, [43, 43, 43]), (64, 64, [64]), (3, 64, [3]), (5, 2, [2, 2, 1]), (0, 4, [])],
)
def test_no_step_of_an_epoch_is_left_with_a_rest(num_groups: int, batch_groups: int, expected: list[int]) -> None:
    """65 groups in batches of 64 were 64 and one, which moved the weights as far as the 64 did."""
    batches = step_batches(num_groups, batch_groups=batch_groups, epochs=1, max_steps=None, seed=0)
    assert [len(batch) for batch in batches] == expected
    assert sorted(chain(*batches)) == list(range(num_groups))


def test_a_limit_of_steps_leaves_later_batches_out_and_changes_none() -> None:
    batches = step_batches(65, batch_groups=64, epochs=3, max_steps=3, seed=0)
    assert [len(batch) for batch in batches] == [33, 32, 33]
    assert batches == step_batches(65, batch_groups=64, epochs=3, max_steps=None, seed=0)[:3]


def test_learning_rate_by_hand() -> None:
    # 12 steps, 3 of warm-up: 1/4, 2/4, 3/4 of the peak, then a cosine from the peak to a tenth of it.
    rates = [learning_rate(s, num_steps=12, peak=4.0, warmup_fraction=0.25, final_fraction=0.1) for s in range(12)]
    assert rates[:4] == [1.0, 2.0, 3.0, 4.0]
    assert rates[7] == pytest.approx(4.0 * (0.1 + 0.9 * 0.5))
    assert rates[11] == pytest.approx(0.4)
    assert learning_rate(0, num_steps=1, peak=4.0, warmup_fraction=0.05, final_fraction=0.1) == 4.0


@pytest.mark.parametrize(
    ("num_steps", "count", "expected"),
    [(100, 1, (100,)), (100, 2, (75, 100)), (100, 3, (75, 88, 100)), (2, 4, (2,)), (1, 3, (1,))],
)
def test_checkpoints_are_spread_over_the_last_quarter(num_steps: int, count: int, expected: tuple[int, ...]) -> None:
    steps = checkpoint_steps(num_steps, num_checkpoints=count, span=0.25)
    assert steps[-1] == num_steps
    assert steps == expected


def group(name: str, *, lengths: tuple[int, ...] = (2, 2), ranks: tuple[int, ...] = (0, 1)) -> PromptGroup:
    completions = tuple(CompletionTokens((5,) * n, (False,) * max(0, n - 1) + (True,) * min(n, 1)) for n in lengths)
    return PromptGroup(name, (1, 2, 3), completions, ranks)


def test_in_equals_kept_plus_dropped_with_reasons() -> None:
    rows = [
        group("good"),
        group("long", lengths=(2, 8)),
        group("tied", ranks=(0, 0)),
        group("empty", lengths=(2, 0)),
        group("three", lengths=(2, 2, 2), ranks=(0, 1, 2)),
        group("bare", lengths=(2, 1)),
    ]
    kept, dropped = screen(rows, objective="dpo", max_length=10)
    assert [row.id for row in kept] == ["good"]
    reasons = dict(dropped)
    assert "11 tokens, max_length is 10" in reasons["long"]
    assert "ranks [0, 0]" in reasons["tied"]
    assert "completion 1 has no token" in reasons["empty"]
    assert "ranks [0, 1, 2]" in reasons["three"]
    assert "formatting tokens only" in reasons["bare"]
    assert len(kept) + len(dropped) == len(rows)


def test_one_rank_is_nothing_for_a_reward_model() -> None:
    kept, dropped = screen([group("a"), group("b", ranks=(1, 1))], objective="reward", max_length=10)
    assert ([row.id for row in kept], [row for row, _ in dropped]) == (["a"], ["b"])


def test_nothing_left_says_why() -> None:
    with pytest.raises(TrainingError, match=r"all 1 were dropped. The first, x: .*max_length is 4"):
        screen([group("x")], objective="sft", max_length=4)
    with pytest.raises(TrainingError, match="given none"):
        screen([], objective="sft", max_length=4)


def test_counts_of_a_step_by_hand() -> None:
    multi = PromptGroup("m", (1, 2, 3, 4), (CompletionTokens((5, 6), (False, True)),), (0,), (False, True, True, False))
    pair = group("p", lengths=(3, 4), ranks=(1, 0))
    counts = count_step([multi, pair])
    # Two prompt tokens of `multi`; completions 2 + 3 + 4; the best completions have 2 and 4 tokens.
    assert (counts.num_groups, counts.num_target_tokens, counts.num_chosen_tokens) == (2, 11, 6)


def test_groups_digest_sees_masks_and_ranks() -> None:
    plain = group("a")
    other_mask = PromptGroup("a", plain.prompt_ids, (CompletionTokens((5, 5), (False, False)),) * 2, (0, 1))
    digests = {groups_digest([g]) for g in (plain, other_mask, group("a", ranks=(1, 0)), group("b"))}
    assert len(digests) == 4
    assert groups_digest([plain]) == groups_digest([group("a")])


# ---- what cannot train


def refused(run: Any, objective: str, groups: list[PromptGroup], out_dir: Path) -> str:
    """What `train` says of groups of which none can train. No model is loaded for it."""
    with pytest.raises(TrainingError) as caught:
        run(objective, out_dir, groups=groups, eval_groups=[], max_length=64)
    assert not out_dir.exists() or not list(out_dir.iterdir())
    return str(caught.value)


@pytest.mark.parametrize(("objective", "completions"), [("reward", 2), ("sft", 1), ("dpo", 2)])
def test_a_row_with_no_trained_token(
    run: Any, make_groups: MakeGroups, tmp_path: Path, objective: str, completions: int
) -> None:
    (group,) = make_groups(1, completions=completions)
    empty = replace(group, completions=(*group.completions[:-1], EMPTY))
    message = refused(run, objective, [empty], tmp_path / "out")
    assert f"{objective}: no row is left to train on: all 1 were dropped. The first, row-0: " in message
    assert f"completion {completions - 1} has no token to train on" in message


@pytest.mark.parametrize(("objective", "completions"), [("sft", 1), ("dpo", 2)])
def test_a_row_of_formatting_tokens_only(
    run: Any, make_groups: MakeGroups, tmp_path: Path, objective: str, completions: int
) -> None:
    (group,) = make_groups(1, completions=completions)
    ending = replace(group, completions=(*group.completions[:-1], ENDING_ONLY))
    message = refused(run, objective, [ending], tmp_path / "out")
    assert f"completion {completions - 1} has formatting tokens only: its text comes to no token" in message


def test_a_group_with_one_ranked_completion(run: Any, make_groups: MakeGroups, tmp_path: Path) -> None:
    message = refused(run, "reward", make_groups(2, completions=1), tmp_path / "out")
    assert "all 2 were dropped" in message
    assert "it has one ranked completion: a reward model learns from two or more" in message
    message = refused(run, "dpo", make_groups(1, completions=1), tmp_path / "out")
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
