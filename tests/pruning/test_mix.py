from __future__ import annotations

from collections import Counter

from alignloop.pruning.mix import Mixed, copy_id, mix_by_epochs, mix_by_share

GROUPS = ["code"] * 8 + ["chat"] * 20 + [None] * 4
IDS = [f"r{n}" for n in range(len(GROUPS))]


def kept(mixed: Mixed) -> Counter[str | None]:
    assert len(mixed.pruned.kept) + len(mixed.pruned.dropped) == len(IDS)
    return Counter(GROUPS[index] for index in mixed.pruned.kept)


def test_shares_draw_the_largest_total_that_keeps_them() -> None:
    # 8 code are at most 1/2 of 16, 20 chat of 40, and 4 others 1/5 ... of 20: code's 16 decides where others have none.
    mixed = mix_by_share(IDS, groups=GROUPS, shares={"code": 0.5, "chat": 0.5}, seed=1)
    assert kept(mixed) == {"code": 8, "chat": 8}
    reasons = {drop.reason for drop in mixed.pruned.dropped}
    assert reasons == {
        "'chat' may be 50.00% of the rows: 8 of its 20 are drawn",
        "'(none)' has no share in the mix",
    }
    # With 1/5 left for others: 8 / 0.4 = 20, 20 / 0.4 = 50, 4 / 0.2 = 20, so 20 rows.
    assert kept(mix_by_share(IDS, groups=GROUPS, shares={"code": 0.4, "chat": 0.4}, seed=1)) == {
        "code": 8,
        "chat": 8,
        None: 4,
    }


def test_a_draw_is_the_seeds_and_not_the_other_groups() -> None:
    first = mix_by_share(IDS, groups=GROUPS, shares={"code": 0.5, "chat": 0.5}, seed=1)
    assert first == mix_by_share(IDS, groups=GROUPS, shares={"chat": 0.5, "code": 0.5}, seed=1)
    other = mix_by_share(IDS, groups=GROUPS, shares={"code": 0.5, "chat": 0.5}, seed=2)
    assert first.pruned.kept != other.pruned.kept


def test_absent_groups_leave_the_others_their_proportions() -> None:
    mixed = mix_by_share(IDS, groups=GROUPS, shares={"code": 0.25, "chat": 0.25, "maths": 0.5}, seed=1)
    assert mixed.absent == ("maths",)
    assert kept(mixed) == {"code": 8, "chat": 8}
    nothing = mix_by_share(IDS, groups=GROUPS, shares={"maths": 1.0}, seed=1)
    assert nothing.pruned.kept == ()


def test_epochs_repeat_draw_and_drop() -> None:
    mixed = mix_by_epochs(IDS, groups=GROUPS, epochs={"code": 2.5, "chat": 0.25}, seed=1)
    assert kept(mixed) == {"code": 8, "chat": 5, None: 4}  # 8 twice, half of them three times; a quarter of 20
    assert Counter(mixed.copies.values()) == {2: 4, 3: 4}
    assert mixed.pruned.metrics["num_repeated"] == 12
    assert {drop.reason for drop in mixed.pruned.dropped} == {
        "'chat' occurs for 0.25 epochs: 5 of its 20 rows are drawn"
    }
    assert kept(mix_by_epochs(IDS, groups=GROUPS, epochs={"chat": 0}, seed=1)) == {"code": 8, None: 4}
    assert mix_by_epochs(IDS, groups=GROUPS, epochs={}, seed=1).pruned.dropped == ()


def test_copies_have_ids_that_no_row_has() -> None:
    taken = {"a", "a~2"}
    assert [copy_id("a", 2, taken), copy_id("a", 2, taken)] == ["a~3", "a~4"]
