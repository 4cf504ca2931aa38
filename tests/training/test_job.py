"""What a training goes through: order, rate, kept steps by hand; what cannot train, by `train()` and row by row."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from alignloop.chat.tokens import CompletionTokens
from alignloop.config.training import SftConfig
from alignloop.errors import TrainingError
from alignloop.packing.groups import PromptGroup
from alignloop.training.job import checkpoint_steps, groups_digest, learning_rate, step_batches
from alignloop.training.objectives import count_step, drop_reason, screen

EMPTY = CompletionTokens((), ())
ENDING_ONLY = CompletionTokens((1,), (True,))
"""What a text that the tokenizer has no token for comes to: the end of turn alone."""


def batches_of(num_groups: int, *, seed: int = 3, **knobs: Any) -> list[list[int]]:
    return step_batches([10] * num_groups, config=SftConfig(**knobs), seed=seed)


def test_every_epoch_sees_every_group_once_in_an_order_of_its_own() -> None:
    batches = batches_of(10, batch_groups=4, epochs=2)
    assert [len(batch) for batch in batches] == [4, 3, 3, 4, 3, 3]
    first, second = list(chain(*batches[:3])), list(chain(*batches[3:]))
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    # A limit of steps leaves later batches out and changes none.
    assert batches_of(10, batch_groups=4, epochs=2, max_steps=5) == batches[:5]
    assert batches_of(10, batch_groups=4, epochs=2, seed=4) != batches


def test_train_tokens_pass_over_the_rows_until_they_are_reached() -> None:
    """Five groups of 10 tokens in steps of 3 and 2: 30, 50, 80, 100, 130 tokens after each step."""
    knobs: dict[str, Any] = {"batch_groups": 3, "epochs": 2}
    for wanted, num_steps in ((1, 1), (30, 1), (31, 2), (100, 4), (101, 5), (130, 5)):
        batches = batches_of(5, train_tokens=wanted, **knobs)
        assert [len(batch) for batch in batches] == [3, 2, 3, 2, 3][:num_steps]
    # As many passes as it takes, in the orders that so many epochs have; a limit of steps ends them still.
    assert batches_of(5, train_tokens=250, batch_groups=3) == batches_of(5, batch_groups=3, epochs=5)
    assert batches_of(5, train_tokens=250, max_steps=4, **knobs) == batches_of(5, **knobs)
    uneven = step_batches([1, 50, 1], config=SftConfig(train_tokens=60, batch_groups=1), seed=3)
    assert len(uneven) == 3 + [*chain(*uneven[3:])].index(1) + 1  # 52 a pass, and the row of 50 once more
    assert batches_of(0, train_tokens=10) == []


@pytest.mark.parametrize(
    ("num_groups", "batch_groups", "expected"),
    [(65, 64, [33, 32]), (129, 64, [43, 43, 43]), (64, 64, [64]), (3, 64, [3]), (5, 2, [2, 2, 1]), (0, 4, [])],
)
def test_no_step_of_an_epoch_is_left_with_a_rest(num_groups: int, batch_groups: int, expected: list[int]) -> None:
    """65 groups in batches of 64 were 64 and one, which moved the weights as far as the 64 did."""
    batches = batches_of(num_groups, batch_groups=batch_groups)
    assert [len(batch) for batch in batches] == expected
    assert sorted(chain(*batches)) == list(range(num_groups))


def test_learning_rate_by_hand() -> None:
    # 12 steps, 3 of warm-up: 1/4, 2/4, 3/4 of the peak, then a cosine from the peak to a tenth of it.
    config = SftConfig(learning_rate=4.0, warmup_fraction=0.25, final_lr_fraction=0.1)
    rates = [learning_rate(step, num_steps=12, config=config) for step in range(12)]
    assert rates[:4] == [1.0, 2.0, 3.0, 4.0]
    assert rates[7] == pytest.approx(4.0 * (0.1 + 0.9 * 0.5))
    assert rates[11] == pytest.approx(0.4)
    assert learning_rate(0, num_steps=1, config=config) == 4.0


@pytest.mark.parametrize(
    ("num_steps", "count", "expected"),
    [(100, 1, (100,)), (100, 2, (75, 100)), (100, 3, (75, 88, 100)), (2, 4, (2,)), (1, 3, (1,))],
)
def test_checkpoints_are_spread_over_the_last_quarter(num_steps: int, count: int, expected: tuple[int, ...]) -> None:
    assert checkpoint_steps(num_steps, num_checkpoints=count, span=0.25) == expected


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


def test_what_a_reward_model_compares() -> None:
    equal = drop_reason(group("b", ranks=(1, 1)), objective="reward", max_length=10)
    assert "all its completions have the same rank" in str(equal)
    # An empty answer is an answer: it is read at its end of turn.
    assert drop_reason(group("a", lengths=(2, 1)), objective="reward", max_length=10) is None
    # 3 + 2 and 3 + 1 tokens apart, 3 + 2 + 1 in one row.
    assert drop_reason(group("a", lengths=(2, 1)), objective="reward", max_length=5) is None
    whole = drop_reason(group("a", lengths=(2, 1)), objective="reward", max_length=5, isolate=False)
    assert whole == "prompt and all completions in one row have 6 tokens, max_length is 5"


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


@pytest.mark.parametrize(
    ("objective", "completions", "last", "reason"),
    [
        ("reward", 2, EMPTY, "completion 1 has no token to train on"),
        ("sft", 1, EMPTY, "completion 0 has no token to train on"),
        ("dpo", 2, EMPTY, "completion 1 has no token to train on"),
        ("sft", 1, ENDING_ONLY, "completion 0 has formatting tokens only: its text comes to no token"),
        ("dpo", 2, ENDING_ONLY, "completion 1 has formatting tokens only: its text comes to no token"),
        ("reward", 1, None, "it has one ranked completion: a reward model learns from two or more"),
        ("dpo", 1, None, "DPO needs one chosen and one rejected completion, found ranks [0]"),
    ],
)
def test_rows_of_which_none_can_train(
    run: Any, make_groups: Any, tmp_path: Path, objective: str, completions: int, last: Any, reason: str
) -> None:
    """No model is loaded for them, and nothing is written."""
    (row,) = make_groups(1, completions=completions)
    if last is not None:
        row = replace(row, completions=(*row.completions[:-1], last))
    with pytest.raises(TrainingError) as caught:
        run(objective, tmp_path / "out", groups=[row], eval_groups=[], max_length=64)
    expected = f"{objective}: no row is left to train on: all 1 were dropped. The first, row-0: {reason}"
    assert str(caught.value) == expected
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_no_rows_at_all_are_an_error() -> None:
    with pytest.raises(TrainingError, match="given none"):
        screen([], objective="sft", max_length=4)
