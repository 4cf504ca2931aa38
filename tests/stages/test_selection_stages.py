"""select, the pairs of collect, and build_pairs on rows small enough to follow by hand, odd ones among them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from stage_case import ASK, Listening, candidate, context, preference, written

from alignloop.artifacts import derive_seed
from alignloop.config import load_recipe
from alignloop.config.pruning import CleanConfig
from alignloop.config.sampling import SelectConfig
from alignloop.data.jsonl import load_jsonl
from alignloop.errors import DataError
from alignloop.progress import QuietProgress
from alignloop.pruning.decontaminate import benchmark_texts
from alignloop.records import CandidateRow, DroppedRow, Message, PairRow, PreferenceRow, SelectedRow, Source
from alignloop.stages import build_pairs, select
from alignloop.stages.collect import pairs_to_annotate
from alignloop.stages.train_reward import of_strengths


def selected(
    folder: Path, rows: list[CandidateRow], progress: QuietProgress | None = None, **config: Any
) -> tuple[select.Outputs, list[SelectedRow]]:
    folder.mkdir(exist_ok=True)
    scored = written(folder / "scored.jsonl", rows)
    outputs = select.run(SelectConfig(**config), select.Inputs(scored), context(folder, progress=progress))
    return outputs, list(load_jsonl(outputs.selected.path, SelectedRow))


def test_the_total_reward_decides_and_the_raw_one_where_there_is_no_total(tmp_path: Path) -> None:
    rows = [
        candidate("p", 0, "red", 5.0, total_reward=1.0),
        candidate("p", 1, "blue", 0.0, total_reward=3.0),
        candidate("q", 0, "red", 5.0),
        candidate("q", 1, "blue", 0.0),
    ]
    _, picked = selected(tmp_path, rows)
    assert [(row.id, row.reward, row.rewards) for row in picked] == [
        ("p/1/1", 3.0, [1.0, 3.0]),
        ("q/1/0", 5.0, [5.0, 0.0]),
    ]


def test_empty_and_truncated_candidates_are_best_only_among_their_like(tmp_path: Path) -> None:
    heard = Listening()
    rows = [
        candidate("p", 0, " ", 9.0),
        candidate("p", 1, "red and", 8.0, finish_reason="length"),
        candidate("p", 2, "blue", 1.0),
        candidate("q", 0, "red and", 2.0, finish_reason="length"),
        candidate("q", 1, "blue or", 3.0, finish_reason="length"),
    ]
    outputs, picked = selected(tmp_path, rows, heard)
    assert [(row.id, row.finish_reason) for row in picked] == [("p/1/2", "stop"), ("q/1/1", "length")]
    assert picked[0].random_reward == 1.0  # drawn from those the best is picked from: there is one
    assert outputs.metrics["only_truncated"] == 0.5
    (line,) = heard.lines
    assert "1 of 2 prompts have no candidate that ends within sample.max_tokens" in line
    outputs, _ = selected(tmp_path, rows[:3], heard)
    assert outputs.metrics["only_truncated"] == 0.0
    assert len(heard.lines) == 1


def test_ties_and_copies_go_to_the_first(tmp_path: Path) -> None:
    _, picked = selected(tmp_path, [candidate("p", k, "red", 2.0) for k in range(4)])
    assert picked[0].id == "p/1/0"
    assert picked[0].pass_rate == 1.0


def test_nothing_to_select_from_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no candidate to select from"):
        selected(tmp_path, [])
    with pytest.raises(DataError, match="p/1/0 has no reward: run the score stage"):
        selected(tmp_path, [candidate("p", 0, "red", None)])
    with pytest.raises(DataError, match="candidate p/1/0 has the reward nan"):
        select.reward_of(candidate("p", 0, "red", 1.0).model_copy(update={"total_reward": float("nan")}))


def paired(
    folder: Path,
    rows: list[CandidateRow],
    preferences: list[PreferenceRow],
    progress: QuietProgress | None = None,
    **config: Any,
) -> tuple[build_pairs.Outputs, list[PairRow], dict[str, str]]:
    folder.mkdir(exist_ok=True)
    inputs = build_pairs.Inputs(
        written(folder / "scored.jsonl", rows), (written(folder / "preferences.jsonl", preferences),)
    )
    outputs = build_pairs.run(
        build_pairs.Settings(**{"min_gap_quantile": 0.0, **config}), inputs, context(folder, progress=progress)
    )
    assert outputs.counts["in"] == outputs.counts["kept"] + outputs.counts["dropped"]
    drops = {row.id: f"{row.rule}: {row.reason}" for row in load_jsonl(outputs.dropped.path, DroppedRow)}
    return outputs, list(load_jsonl(outputs.pairs.path, PairRow)), drops


def test_pairs_go_by_the_total_reward_and_carry_what_training_sees(tmp_path: Path) -> None:
    steered = [Message(role="system", content="Be kind."), *ASK]
    rows = [
        candidate("p", 0, "red", 5.0, total_reward=1.0, messages=steered),
        candidate("p", 1, "blue", 0.0, total_reward=3.0, messages=steered),
        candidate("q", 0, "red", 4.0, system_prompt="Be kind."),
        candidate("q", 1, "blue", 0.0, system_prompt="Be kind."),
    ]
    outputs, pairs, drops = paired(tmp_path, rows, [])
    assert [(p.id, p.chosen, p.rejected, p.reward_gap) for p in pairs] == [
        ("p/1/1>0", "blue", "red", 2.0),
        ("q/1/0>1", "red", "blue", 4.0),
    ]
    assert [p.messages for p in pairs] == [steered, ASK]
    assert drops == {}
    assert outputs.metrics == {"least_gap": 2.0, "mean_gap": 3.0}


def test_the_random_other_is_drawn_with_the_prompts_seed_alone(tmp_path: Path) -> None:
    def rows(prompt: str) -> list[CandidateRow]:
        return [candidate(prompt, k, f"text {k}", float(-k)) for k in range(6)]

    _, alone, _ = paired(tmp_path / "a", rows("p"), [], pairing="best_random")
    _, more, _ = paired(tmp_path / "b", [*rows("x"), *rows("p"), *rows("y")], [], pairing="best_random")
    assert next(pair for pair in more if pair.id.startswith("p/")).rejected == alone[0].rejected
    drawn = random.Random(derive_seed(7, "p")).choice((1, 2, 3, 4, 5))
    assert alone[0].rejected == f"text {drawn}"


def test_every_pairing_and_least_gap_reaches_the_pairs(tmp_path: Path) -> None:
    rows = [candidate("p", k, f"text {k}", reward) for k, reward in enumerate([10.0, 0.0, 6.0])]
    rows += [candidate("q", k, f"text {k}", reward) for k, reward in enumerate([1.0, 0.0])]
    # Widest gaps 10 and 1; their lower quantile 0 is 1, so p takes its 4 and q its 1.
    _, pairs, _ = paired(tmp_path / "gap", rows, [], pairing="gap", target_gap_quantile=0.0)
    assert [pair.reward_gap for pair in pairs] == [4.0, 1.0]
    _, pairs, drops = paired(tmp_path / "least", rows, [], min_gap=2.0)
    assert [pair.reward_gap for pair in pairs] == [10.0]
    assert drops == {"q": "min_gap: gap 1 is under the least gap 2"}


def test_an_edit_that_says_what_was_rejected_is_no_pair(tmp_path: Path) -> None:
    same = preference("same", edited=" Seven.\n", strength="better")
    outputs, pairs, drops = paired(tmp_path, [], [same, preference("good", strength="better")], sources=("file",))
    assert [pair.id for pair in pairs] == ["good"]
    assert drops == {"same": "same_text: edited and rejected are the same text"}
    assert outputs.counts["preference_pairs"] == 1


def test_select_keeps_the_best_and_a_matched_random_reward(tmp_path: Path) -> None:
    rows = [
        candidate("p", 0, "red", 1.0),
        candidate("p", 1, "blue", 3.0),
        candidate("p", 2, "green and", 9.0, finish_reason="length"),  # best reward, but cut off: never picked
        candidate("q", 0, "one", -1.0),
        candidate("q", 1, "two", -2.0),
        candidate("q", 2, "three", -3.0),
    ]
    outputs, picked = selected(tmp_path, rows, pass_quantile=0.5)
    assert [row.id for row in picked] == ["p/1/1", "q/1/0"]
    assert [row.rewards for row in picked] == [[1.0, 3.0, 9.0], [-1.0, -2.0, -3.0]]
    # The median of -3 -2 -1 1 3 9 is 0: all of p's candidates pass, none of q's.
    assert [row.pass_rate for row in picked] == [1.0, 0.0]
    assert outputs.counts == {"in": 6, "kept": 2, "dropped": 4, "truncated": 1, "empty": 0}
    assert outputs.metrics["mean_reward_best"] == pytest.approx((3.0 - 1.0) / 2)
    assert all(row.random_reward in row.rewards for row in picked)


def test_annotation_sets_the_reward_models_pick_against_another_text() -> None:
    rows = [candidate("p", 0, "red", 1.0), candidate("p", 1, "blue", 3.0), candidate("p", 2, "blue ", 2.0)]
    rows += [candidate("q", k, "same", float(k)) for k in range(3)]  # nothing to compare
    ((prompt, first, second),) = pairs_to_annotate(rows, seed=1)
    assert prompt.id == "p"
    assert {first.id, second.id} == {"p/1/1", "p/1/0"}
    assert pairs_to_annotate(rows, seed=1) == pairs_to_annotate(rows, seed=1)


def test_a_random_pick_is_the_yardstick_in_place_of_the_best(tmp_path: Path) -> None:
    rows = [candidate(f"p{n}", k, f"text {k}", float(k)) for n in range(8) for k in range(4)]
    rows += [candidate("q", 0, "cut", 9.0, finish_reason="length"), candidate("q", 1, "whole", 0.0)]
    outputs, best = selected(tmp_path / "best", rows)
    random_outputs, picked = selected(tmp_path / "random", rows, pick="random")
    assert (
        [row.reward for row in picked] == [row.random_reward for row in picked] == [row.random_reward for row in best]
    )
    assert len({row.id.rpartition("/")[2] for row in picked}) > 1
    assert picked[-1].id == "q/1/1"  # a truncated one is no more picked at random than as the best
    assert [row.pass_rate for row in picked] == [row.pass_rate for row in best]
    assert random_outputs.metrics == outputs.metrics  # what the best would have had stays known


def test_random_pairing_asks_the_reward_model_nothing() -> None:
    rows = [candidate(f"p{n}", k, f"text {k}", float(k)) for n in range(40) for k in range(5)]
    rows += [candidate("one", 0, "red", 1.0), candidate("one", 1, "red ", 2.0)]
    rows += [candidate("cut", 0, "red", 1.0), candidate("cut", 1, "blue", 2.0, finish_reason="length")]
    pairs = pairs_to_annotate(rows, seed=1, pairing="random")
    assert {prompt.id for prompt, _, _ in pairs} == {f"p{n}" for n in range(40)}
    assert all(first.completion != second.completion for _, first, second in pairs)
    # Two of five at random hold the best in two of five pairs, about 16 of 40; best_random in all.
    with_best = sum("text 4" in (first.completion, second.completion) for _, first, second in pairs)
    assert 8 <= with_best <= 24
    unscored = [row.model_copy(update={"reward": None}) for row in rows]
    named = [(first.id, second.id) for _, first, second in pairs_to_annotate(unscored, seed=1, pairing="random")]
    assert named == [(first.id, second.id) for _, first, second in pairs]
    assert all("text 4" in (a.completion, b.completion) for _, a, b in pairs_to_annotate(rows[:200], seed=1))


def test_more_pairs_of_a_prompt_share_no_candidate_and_come_after_every_first_pair() -> None:
    rows = [candidate(f"p{n}", k, f"text {k}", float(k)) for n in range(20) for k in range(5)]
    rows += [candidate("few", k, text, 0.0) for k, text in enumerate(("red", "blue", "red"))]  # red is left, alone
    pairs = pairs_to_annotate(rows, seed=1, pairs_per_prompt=3)
    # Five candidates give two pairs that share none, three give one.
    assert len(pairs) == 20 * 2 + 1
    assert {prompt.id for prompt, _, _ in pairs[:21]} == {"few", *(f"p{n}" for n in range(20))}
    first, second = pairs[:21], pairs[21:]
    ids = [candidate.id for _, *two in pairs for candidate in two]
    assert len(set(ids)) == len(ids)
    bests = {f"p{n}/1/4" for n in range(20)}
    assert bests <= {candidate.id for _, *two in first for candidate in two}
    assert not bests & {candidate.id for _, *two in second for candidate in two}
    assert pairs == pairs_to_annotate(rows, seed=1, pairs_per_prompt=3)


def test_the_pairs_that_an_ensemble_agrees_on_least_are_annotated_first() -> None:
    # The best is k = 1 in each; its gap to the other by three members, and the standard deviation of the gaps:
    # p 1, 1, 1 -> 0; q 4, 1, 1 -> sqrt 2; r 4, -2, 1 -> sqrt 6; s as p, on very different levels -> 0.
    members = {
        "p": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        "q": ((0.0, 0.0, 0.0), (4.0, 1.0, 1.0)),
        "r": ((0.0, 2.0, 0.0), (4.0, 0.0, 1.0)),
        "s": ((-9.0, 0.0, 9.0), (-8.0, 1.0, 10.0)),
    }
    rows = [
        candidate(name, k, f"text {k}", sum(rewards) / 3, member_rewards=list(rewards))
        for name, two in members.items()
        for k, rewards in enumerate(two)
    ]
    for seed in range(8):
        pairs = pairs_to_annotate(rows, seed=seed, choose_by="spread")
        assert [prompt.id for prompt, _, _ in pairs[:2]] == ["r", "q"]
        # Only the order of the prompts changes, and pairs of one spread keep the drawn one.
        by_chance = pairs_to_annotate(rows, seed=seed)
        assert [pair for pair in by_chance if pair[0].id in "ps"] == pairs[2:]
        assert sorted(by_chance, key=lambda pair: pair[0].id) == sorted(pairs, key=lambda pair: pair[0].id)
    assert len({tuple(pair[0].id for pair in pairs_to_annotate(rows, seed=seed)) for seed in range(8)}) > 2


def test_the_widest_spread_comes_first_within_each_turn() -> None:
    rows = [
        candidate(f"p{n}", k, f"text {k}", float(k), member_rewards=[float(k), float(k) + n * (k % 2)])
        for n in range(6)
        for k in range(4)
    ]
    pairs = pairs_to_annotate(rows, seed=1, pairs_per_prompt=2, choose_by="spread")
    assert {pair[0].id for pair in pairs[:6]} == {pair[0].id for pair in pairs[6:]} == {f"p{n}" for n in range(6)}


def test_a_spread_without_members_is_named() -> None:
    rows = [candidate("p", k, f"text {k}", float(k)) for k in range(2)]
    said = r"candidate p/1/. has no member_rewards, and collect\.choose_by is spread: score the candidates with"
    with pytest.raises(DataError, match=said):
        pairs_to_annotate(rows, seed=1, choose_by="spread")


def test_only_named_strengths_train_and_silent_rows_do() -> None:
    rows = [preference("a", strength="better"), preference("b", strength="slightly_better"), preference("c")]
    assert [row.id for row in of_strengths(rows, ["better"])] == ["a", "c"]


def test_build_pairs_accounts_for_every_row_and_prompt(tmp_path: Path) -> None:
    preferences = [
        preference("a", strength="better", edited="Deep blue."),
        preference("b", strength="marginally_better"),
    ]
    rows = [
        candidate("p", 0, "red", 1.0),
        candidate("p", 1, "blue", 3.0),
        candidate("q", 0, "same", 1.0),
        candidate("q", 1, "same", 2.0),
    ]
    outputs, pairs, drops = paired(tmp_path, rows, preferences)
    assert [(pair.origin, pair.chosen, pair.rejected) for pair in pairs] == [
        ("preference", "Deep blue.", "Seven."),
        ("on_policy", "blue", "red"),
    ]
    assert pairs[1].reward_gap == pytest.approx(2.0)
    assert {row_id: text.partition(":")[0] for row_id, text in drops.items()} == {"b": "strength", "q": "pairs"}
    assert outputs.counts["in"] == 4


SOURCES = {
    ("file",): ["f"],
    ("annotated",): ["annotated/p/1/0/p/1/1"],
    ("on_policy",): ["p/1/1>0"],
    ("on_policy", "file"): ["f", "p/1/1>0"],
    ("file", "annotated", "on_policy"): ["f", "annotated/p/1/0/p/1/1", "p/1/1>0"],
}


@pytest.mark.parametrize("sources", SOURCES)
def test_pairs_come_of_the_named_sources_alone(tmp_path: Path, sources: tuple[str, ...]) -> None:
    preferences = [preference("f"), preference("annotated/p/1/0/p/1/1", source=Source.of_round(1), annotator="judge")]
    rows = [candidate("p", 0, "red", 1.0), candidate("p", 1, "blue", 3.0)]
    _, pairs, drops = paired(tmp_path, rows, preferences, sources=sources)
    assert [pair.id for pair in pairs] == SOURCES[sources]
    named = {row.origin for row in preferences if row.origin not in sources}
    assert set(drops.values()) == {f"sources: pairs.sources does not name {origin}" for origin in named}


def test_sources_that_a_round_has_none_of_make_no_pair_and_say_so(tmp_path: Path) -> None:
    rows = [candidate("p", 0, "red", 1.0), candidate("p", 1, "blue", 3.0)]
    for name, sources in (("none", ()), ("annotated", ("annotated",))):
        heard = Listening()
        outputs, pairs, drops = paired(tmp_path / name, rows, [preference("f")], sources=sources, progress=heard)
        assert pairs == []
        assert outputs.pairs.rows == 0
        assert drops == {"f": "sources: pairs.sources does not name file"}
        assert heard.lines == [f"  no pair for DPO: pairs.sources is [{', '.join(sources)}], and the round has none"]


def gaps(*values: float) -> list[CandidateRow]:
    """Two candidates a prompt, `p0`, `p1`, ..., told apart by so much."""
    return [
        candidate(f"p{n}", k, f"text {k} of {n}", reward)
        for n, gap in enumerate(values)
        for k, reward in enumerate((gap, 0.0))
    ]


def test_each_limit_is_counted_by_its_name(tmp_path: Path) -> None:
    rows = [
        *gaps(1.0, 9.0, 4.0),
        candidate("short", 0, "text", 5.0, completion_ids=[1, 2]),
        candidate("short", 1, "t", 2.0, completion_ids=[1]),
    ]
    rows = [row if row.prompt_id == "short" else row.model_copy(update={"completion_ids": [1, 2]}) for row in rows]
    outputs, pairs, drops = paired(tmp_path, rows, [], min_gap=2.0, max_gap=5.0, min_rejected_length=2)
    assert [pair.id for pair in pairs] == ["p2/1/0>1"]
    assert {row_id: text.partition(":")[0] for row_id, text in drops.items()} == {
        "p0": "min_gap",
        "p1": "max_gap",
        "short": "min_rejected_length",
    }
    counts = {name: num for name, num in outputs.counts.items() if name.startswith("dropped_by")}
    assert counts == {"dropped_by_min_gap": 1, "dropped_by_max_gap": 1, "dropped_by_min_rejected_length": 1}
    assert outputs.metrics == {"least_gap": 2.0, "widest_gap": 5.0, "least_rejected_length": 2.0, "mean_gap": 4.0}


def test_a_later_pair_of_a_prompt_is_dropped_by_its_own_name(tmp_path: Path) -> None:
    rows = [candidate("p", k, f"text {k}", reward) for k, reward in enumerate([5.0, 1.0, 4.0, 2.0])]
    _, pairs, drops = paired(tmp_path / "two", rows, [], pairs_per_prompt=2)
    assert [pair.id for pair in pairs] == ["p/1/0>1", "p/1/2>3"]
    assert drops == {}
    outputs, pairs, drops = paired(tmp_path / "one", rows, [], pairs_per_prompt=2, min_gap=3.0)
    assert [pair.id for pair in pairs] == ["p/1/0>1"]
    assert drops == {"p/1/2>3": "min_gap: gap 2 is under the least gap 3"}
    assert outputs.counts["in"] == 2


def test_the_share_of_on_policy_pairs(tmp_path: Path) -> None:
    rows = gaps(1.0, 9.0, 4.0, 6.0)
    preferences = [preference(f"f{n}") for n in range(2)]
    outputs, pairs, drops = paired(tmp_path / "half", rows, preferences, on_policy_share=0.5)
    assert [pair.id for pair in pairs] == ["f0", "f1", "p1/1/0>1", "p3/1/0>1"]
    assert drops == {
        name: f"on_policy_share: gap {gap} is not among the 2 widest that keep the share (pairs.on_policy_share)"
        for name, gap in (("p0", 1), ("p2", 4))
    }
    assert outputs.metrics["mean_gap"] == 7.5
    # 4 of 5 on-policy: the four, and one of the two preferences by the round's seed.
    _, pairs, drops = paired(tmp_path / "most", rows, preferences, on_policy_share=0.8)
    assert [pair.origin for pair in pairs] == ["preference", *["on_policy"] * 4]
    assert list(drops.values()) == ["on_policy_share: not among those drawn to keep the share (pairs.on_policy_share)"]


def test_in_a_round_of_one_side_alone_the_share_gives_way_and_says_so(tmp_path: Path) -> None:
    heard = Listening()
    _, pairs, drops = paired(tmp_path, gaps(1.0, 2.0), [], on_policy_share=0.5, progress=heard)
    assert (len(pairs), drops) == (2, {})
    assert heard.lines == ["  pairs.on_policy_share: the round has on-policy pairs alone, and all of them train"]


def test_pairs_are_cleaned_by_the_rules_of_sft(tmp_path: Path) -> None:
    """By their chosen completion: what is rejected may shout. Of two apologies in four one goes, the narrower gap."""
    loud = "Stop!!! Now!!!"
    rows = [
        candidate("loud", 0, loud, 5.0),
        candidate("loud", 1, "Stop.", 1.0),
        candidate("quiet", 0, "Stop.", 5.0),
        candidate("quiet", 1, loud, 1.0),
        candidate("sorry", 0, "I am sorry, but no.", 5.0),
        candidate("sorry", 1, "No.", 1.0),
        candidate("sorrier", 0, "I am sorry, but no.", 3.0),
        candidate("sorrier", 1, "No.", 1.0),
    ]
    people = preference("f")
    _, pairs, drops = paired(tmp_path / "off", rows, [people])
    assert (len(pairs), drops) == (5, {})
    rules = CleanConfig(max_apology_share=0.34)
    _, pairs, drops = paired(tmp_path / "on", rows, [people], clean=True, cleaning=rules)
    assert [pair.id for pair in pairs] == ["f", "quiet/1/0>1", "sorry/1/0>1"]
    assert drops == {
        "loud": "clean: exclamations: 300 per 100 words, the limit is 10",
        "sorrier": "clean: apology: 50.0% of the rows open with an apology, the limit is 34.0%",
    }


def test_what_the_policy_wrote_of_a_benchmark_trains_no_pair(tmp_path: Path) -> None:
    """Rows of files were looked at when they came in."""
    recipe = load_recipe({"preferences": ["quickstart"], "evaluate": {"include_path": "quickstart"}})
    config = build_pairs.settings(recipe).model_copy(update={"min_gap_quantile": 0.0})
    assert config.keep_out is not None
    question = benchmark_texts(config.keep_out.tasks, config.keep_out.include_path)[0]
    rows = [
        candidate("p", 0, "Blue.", 2.0),
        candidate("p", 1, f"{question.text} I do not know.", 1.0),
        candidate("q", 0, "Blue.", 2.0),
        candidate("q", 1, "Red.", 1.0),
    ]
    of_file = preference("f", chosen=question.text)
    annotated = preference("annotated/p/1/0/p/1/1", chosen=question.text, source=Source.of_round(1), annotator="judge")
    heard = Listening()
    inputs = build_pairs.inputs(
        recipe, written(tmp_path / "scored.jsonl", rows), (written(tmp_path / "rows.jsonl", [of_file, annotated]),)
    )
    assert inputs.benchmarks
    outputs = build_pairs.run(config, inputs, context(tmp_path / "a", progress=heard))
    assert [row.id for row in load_jsonl(outputs.pairs.path, PairRow)] == ["f", "q/1/0>1"]
    drops = {row.id: (row.stage, row.rule, row.twin) for row in load_jsonl(outputs.dropped.path, DroppedRow)}
    assert drops == dict.fromkeys([annotated.id, "p"], ("build_pairs", "decontaminate", question.name))
    assert "2 of 3 pairs of the policy hold a question" in heard.lines[0]
    off = load_recipe({"preferences": ["quickstart"], "prune": {"decontaminate": {"enabled": False}}})
    assert build_pairs.settings(off).keep_out is None
    assert build_pairs.inputs(off, inputs.scored, inputs.preferences).benchmarks == ()


def test_limits_that_leave_nothing_are_named_with_their_counts(tmp_path: Path) -> None:
    said = (
        r"no pair for DPO: 1 preferences and 4 prompts gave none; dropped by strength 1, min_gap 1, max_gap 2, "
        r"max_on_policy 1; the first: b: strength marginally_better. Loosen `pairs`"
    )
    with pytest.raises(DataError, match=said):
        paired(
            tmp_path,
            gaps(1.0, 9.0, 4.0, 6.0),
            [preference("b", strength="marginally_better")],
            min_gap=2.0,
            max_gap=5.0,
            max_on_policy=0,
        )


def test_build_pairs_with_nothing_left_names_the_counts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1 preferences and 1 prompts gave none"):
        paired(tmp_path, [candidate("q", 0, "same", 1.0)], [preference("b", strength="marginally_better")])
