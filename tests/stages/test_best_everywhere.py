"""The best of K where some are cut off or empty: select, pairs, collect and measure pick the same one, and count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from stage_case import candidate, context, written

from alignloop.chat.load import load_format
from alignloop.config.bundled import QUICKSTART
from alignloop.config.recipe import Recipe
from alignloop.config.sampling import PairsConfig, SelectConfig
from alignloop.data.jsonl import load_jsonl
from alignloop.engines.base import Completion
from alignloop.records import CandidateRow, Message, PreferenceRow, SelectedRow, Source
from alignloop.stages import collect, select
from alignloop.stages.build_pairs import pair_candidates
from alignloop.stages.measured_answers import GeneratedText, HeldoutAnswers
from alignloop.stages.measured_rewards import HeldoutRewards

ASK = [Message(role="user", content="Where does the otter live?")]
META = {"answer": "river", "options": ["river", "cave"]}
# text, reward, finish reason: the highest three may not be picked, the fourth is the best.
SAMPLED = [
    ("", 9.0, "stop"),
    ("<think>\nOtters swim.\n</think>\n\n", 8.5, "stop"),
    ("In the river, where it", 8.0, "length"),
    ("In the cave.", 3.0, "stop"),
    ("In the river.", 1.0, "stop"),
]


def candidates(sampled: Any = SAMPLED) -> list[CandidateRow]:
    return [
        candidate("p", k, text, reward, messages=ASK, completion_ids=[k + 1], finish_reason=reason, meta=META)
        for k, (text, reward, reason) in enumerate(sampled)
    ]


def test_select_picks_the_fourth_and_counts_what_it_passed_over(tmp_path: Path) -> None:
    scored = written(tmp_path / "scored.jsonl", candidates())
    outputs = select.run(SelectConfig(), select.Inputs(scored), context(tmp_path / "a", number=1))
    (row,) = load_jsonl(outputs.selected.path, SelectedRow)
    assert row.id == "p/1/3"
    assert outputs.counts == {"in": 5, "kept": 1, "dropped": 4, "truncated": 1, "empty": 2}


def test_pairs_are_of_the_same_best() -> None:
    (pair,) = pair_candidates({"p": candidates()}, PairsConfig(), seed=1).pairs
    assert (pair.chosen, pair.rejected) == (3, 4)


def test_measure_picks_what_select_would() -> None:
    chat = load_format(QUICKSTART / "base")
    row = PreferenceRow(id="h", messages=ASK, chosen="In the river.", rejected="No.", source=Source(file="f"))
    drawn = []
    for text, _, reason in SAMPLED:
        ids = chat.completion(text).token_ids
        drawn.append(GeneratedText.of(Completion(ids if reason == "stop" else ids[:-1], reason), chat))  # type: ignore[arg-type]
    answer = HeldoutAnswers(row, chat.prompt_ids(ASK), drawn[3], tuple(drawn))
    rewards = HeldoutRewards([], [{one.read: r for one, (_, r, _) in zip(drawn, SAMPLED, strict=True)}])
    assert rewards.best_picks([answer]) == [3]


@pytest.mark.parametrize("only_cut", [False, True])
def test_the_simulated_annotator_sees_none_that_is_cut_or_empty(tmp_path: Path, only_cut: bool) -> None:
    """Of a prompt with no two finished answers nothing is compared; that, too, is counted."""
    sampled = [(text, reward, "length") for text, reward, _ in SAMPLED] if only_cut else SAMPLED
    recipe = Recipe.model_validate(
        {"preferences": ["quickstart"], "collect": {"annotator": "simulated", "num_annotations": 5}}
    )
    people = written(tmp_path / "people.jsonl", [])
    scored = written(tmp_path / "scored.jsonl", candidates(sampled=sampled))
    inputs = collect.inputs(recipe, people, scored)
    outputs = collect.run(collect.settings(recipe), inputs, context(tmp_path / "a", number=2))
    rows = [(row.chosen, row.rejected) for row in load_jsonl(outputs.preferences.path, PreferenceRow)]
    assert rows == ([] if only_cut else [("In the river.", "In the cave.")])
    assert outputs.counts == {
        "preferences": 0,
        "annotated": len(rows),
        "ties": 0,
        "prompts_without_pair": int(only_cut),
        "truncated_candidates": 5 if only_cut else 1,
        "empty_candidates": 2,
    }


def test_an_annotated_candidate_keeps_what_is_known_of_it(tmp_path: Path) -> None:
    """Who picked it, its ids, how it ended and its reward, which tell it from what people wrote."""
    ((prompt, first, second),) = collect.pairs_to_annotate(candidates(), seed=1)
    assert {first.id, second.id} == {"p/1/3", "p/1/4"}
    from alignloop.judging.by_function import annotate
    from alignloop.quickstart.annotator import SIMULATED

    (row,) = annotate([(prompt, first, second)], by=SIMULATED, seed=1).rows
    assert (row.annotator, row.compared_by, row.chosen_reward) == ("simulated", "simulated", 1.0)
    assert (row.chosen_ids, row.chosen_finish_reason) == ([5], "stop")
    assert (row.rejected_ids, row.rejected_finish_reason) == ([4], "stop")
