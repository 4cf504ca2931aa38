"""collect, select, build_pairs on rows small enough to follow by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignloop.artifacts import Artifact
from alignloop.config.sampling import PairsConfig, SelectConfig
from alignloop.data.jsonl import dump_jsonl, load_jsonl
from alignloop.errors import DataError
from alignloop.progress import QuietProgress
from alignloop.records import CandidateRow, DroppedRow, Message, PairRow, PreferenceRow, SelectedRow, Source
from alignloop.run_dir.stage import StageContext
from alignloop.stages import build_pairs, select
from alignloop.stages.collect import pairs_to_annotate
from alignloop.stages.train_reward import of_strengths

ASK = [Message(role="user", content="Name a colour.")]


def context(folder: Path) -> StageContext:
    return StageContext(dir=folder, seed=7, round=1, engine=None, progress=QuietProgress())  # type: ignore[arg-type]


def candidate(prompt: str, k: int, text: str, reward: float | None, *, finish: str = "stop") -> CandidateRow:
    return CandidateRow(
        id=f"{prompt}/1/{k}",
        prompt_id=prompt,
        messages=ASK,
        completion=text,
        completion_ids=[1, 2],
        finish_reason=finish,  # type: ignore[arg-type]
        round=1,
        policy="sha256:x",
        reward=reward,
    )


def preference(row_id: str, strength: str | None, *, edited: str | None = None) -> PreferenceRow:
    return PreferenceRow(
        id=row_id,
        messages=ASK,
        chosen="Blue.",
        rejected="Seven.",
        edited=edited,
        strength=strength,  # type: ignore[arg-type]
        source=Source(file="f"),
    )


def written(folder: Path, name: str, rows: list[CandidateRow] | list[PreferenceRow]) -> Artifact:
    dump_jsonl(folder / name, rows)
    return Artifact.of(folder / name)


def test_select_keeps_the_best_and_a_matched_random_reward(tmp_path: Path) -> None:
    rows = [
        candidate("p", 0, "red", 1.0),
        candidate("p", 1, "blue", 3.0),
        candidate("p", 2, "green and", 9.0, finish="length"),  # best reward, but cut off: never picked
        candidate("q", 0, "one", -1.0),
        candidate("q", 1, "two", -2.0),
        candidate("q", 2, "three", -3.0),
    ]
    scored = written(tmp_path, "scored.jsonl", rows)
    outputs = select.run(SelectConfig(pass_quantile=0.5), select.Inputs(scored), context(tmp_path))
    picked = list(load_jsonl(outputs.selected.path, SelectedRow))
    assert [row.id for row in picked] == ["p/1/1", "q/1/0"]
    assert [row.rewards for row in picked] == [[1.0, 3.0, 9.0], [-1.0, -2.0, -3.0]]
    # The median of -3 -2 -1 1 3 9 is 0: all of p's candidates pass, none of q's.
    assert [row.pass_rate for row in picked] == [1.0, 0.0]
    assert outputs.counts == {"in": 6, "kept": 2, "dropped": 4, "truncated": 1, "empty": 0}
    assert outputs.metrics["mean_reward_best"] == pytest.approx((3.0 - 1.0) / 2)
    assert all(row.random_reward in row.rewards for row in picked)


def test_select_without_rewards_says_which_stage_is_missing(tmp_path: Path) -> None:
    scored = written(tmp_path, "scored.jsonl", [candidate("p", 0, "red", None)])
    with pytest.raises(DataError, match="p/1/0 has no reward: run the score stage"):
        select.run(SelectConfig(), select.Inputs(scored), context(tmp_path))


def test_annotation_sets_the_reward_models_pick_against_another_text() -> None:
    rows = [candidate("p", 0, "red", 1.0), candidate("p", 1, "blue", 3.0), candidate("p", 2, "blue ", 2.0)]
    rows += [candidate("q", k, "same", float(k)) for k in range(3)]  # nothing to compare
    ((prompt, first, second),) = pairs_to_annotate(rows, seed=1)
    assert prompt.id == "p"
    assert {first.id, second.id} == {"p/1/1", "p/1/0"}
    assert pairs_to_annotate(rows, seed=1) == pairs_to_annotate(rows, seed=1)


def test_only_named_strengths_train_and_silent_rows_do() -> None:
    rows = [preference("a", "better"), preference("b", "slightly_better"), preference("c", None)]
    assert [row.id for row in of_strengths(rows, ["better"])] == ["a", "c"]


def test_build_pairs_accounts_for_every_row_and_prompt(tmp_path: Path) -> None:
    preferences = [preference("a", "better", edited="Deep blue."), preference("b", "marginally_better")]
    rows = [
        candidate("p", 0, "red", 1.0),
        candidate("p", 1, "blue", 3.0),
        candidate("q", 0, "same", 1.0),
        candidate("q", 1, "same", 2.0),
    ]
    inputs = build_pairs.Inputs(
        written(tmp_path, "scored.jsonl", rows), (written(tmp_path, "preferences.jsonl", preferences),)
    )
    outputs = build_pairs.run(PairsConfig(min_gap_quantile=0.0), inputs, context(tmp_path))
    pairs = list(load_jsonl(outputs.pairs.path, PairRow))
    assert [(pair.origin, pair.chosen, pair.rejected) for pair in pairs] == [
        ("preference", "Deep blue.", "Seven."),
        ("on_policy", "blue", "red"),
    ]
    assert pairs[1].reward_gap == pytest.approx(2.0)
    drops = {row.id: row.rule for row in load_jsonl(outputs.dropped.path, DroppedRow)}
    assert drops == {"b": "strength", "q": "pairs"}
    assert outputs.counts["in"] == outputs.counts["kept"] + outputs.counts["dropped"] == 4


def test_build_pairs_with_nothing_left_names_the_counts(tmp_path: Path) -> None:
    inputs = build_pairs.Inputs(
        written(tmp_path, "scored.jsonl", [candidate("q", 0, "same", 1.0)]),
        (written(tmp_path, "preferences.jsonl", [preference("b", "marginally_better")]),),
    )
    with pytest.raises(DataError, match="1 preferences and 1 prompts gave none"):
        build_pairs.run(PairsConfig(), inputs, context(tmp_path))
