"""The pipeline on rows small enough to follow by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pruning_rows import ask, preference_row, selected_row

from alignloop.config.pruning import PruneConfig
from alignloop.errors import DataError
from alignloop.pruning.benchmark_index import BenchmarkText
from alignloop.pruning.items import Item, as_preference, as_sft, item_of_preference, item_of_selected, item_of_sft
from alignloop.pruning.models import by_vectors, read_vectors
from alignloop.pruning.pipeline import Pruning, funnel_lines, prune
from alignloop.pruning.quality import priorities_of
from alignloop.pruning.step import Tools
from alignloop.records import SftRow, Source

OFF: dict[str, Any] = {
    name: {"enabled": False}
    for name in ("clean", "quality", "difficulty", "near_duplicates", "semantic_dedup", "decontaminate")
}


def selected(row_id: str, reward: float, pass_rate: float = 0.5, *, text: str = "A plain answer.", **more: Any) -> Item:
    return item_of_selected(selected_row(row_id, reward, pass_rate=pass_rate, completion=text, **more))


def preference(row_id: str, *, from_people: bool = True, **values: Any) -> Item:
    item = item_of_preference(preference_row(row_id, **values))
    return replace(item, from_people=from_people, as_target=from_people)


def pruned(items: list[Item], *, lenient: bool = False, tools: dict[str, Any] | None = None, **config: Any) -> Pruning:
    wanted = PruneConfig.model_validate({**OFF, **config})
    result = prune(items, Tools(config=wanted, seed=7, lenient=lenient, **(tools or {})))
    assert len(items) == result.num_kept + len(result.dropped)
    assert result.counts["in"] == result.counts["kept"] + result.counts["dropped"]
    return result


def ids(result: Pruning) -> list[str]:
    return [item.id for item in result.kept]


def skips(result: Pruning) -> dict[str, str]:
    return {line.step: line.skipped for line in result.funnel if line.skipped is not None}


def test_the_steps_run_in_the_papers_order_and_none_is_left_out_in_silence() -> None:
    result = pruned([selected("a", 1.0)])
    order = "clean topic quality difficulty near_duplicates semantic_dedup decontaminate mix"
    assert [line.step for line in result.funnel] == order.split()
    assert len(skips(result)) == 8
    assert "prune.topic.by is off" in "\n".join(funnel_lines(result.funnel, num_in=1))


def test_quality_is_the_top_of_the_round_and_people_pass() -> None:
    items = [selected("a", 1.0), preference("human"), selected("b", 4.0), selected("c", 2.0), selected("d", 3.0)]
    result = pruned(items, quality={"top_fraction": 0.5})
    assert ids(result) == ["human", "b", "d"]
    assert {(row.id, row.rule) for row in result.dropped} == {("a", "quality"), ("c", "quality")}
    assert result.counts == {"in": 5, "kept": 3, "dropped": 2, "dropped_by_quality": 2}


def test_balanced_patterns_and_languages_come_from_the_config() -> None:
    items = [selected(str(n), float(n), text="Certainly! A number.") for n in range(4)]
    items.append(selected("zh", 9.0, text="这是一个很长的中文回答\uff0c它和问题的语言不一样。"))
    clean = {"enabled": True, "balance": [{"name": "certainly", "regex": "^Certainly", "max_share": 0.0}]}
    result = pruned(items, clean=clean)
    assert ids(result) == []
    assert sorted({row.reason.partition(":")[0] for row in result.dropped}) == ["certainly", "language"]


def test_priorities_are_quality_times_difficulty_and_people_first() -> None:
    items = [selected("a", -5.0, 0.0), selected("b", 10.0, 0.5), preference("human")]
    # Quality is the place among rewards: 1/2 and 2/2; difficulty 1 - pass rate: 1 and 0.5.
    assert priorities_of(items, by_reward=True) == [0.5, 0.5, 2.0]
    judged = replace(items[0], best_rating=1.0, priority_difficulty=1 / 3)
    assert priorities_of([judged, items[1]], by_reward=True) == pytest.approx(
        [1 / 3, 0.5]
    )  # 3 of 3 points, 1 of 3 for difficulty
    assert priorities_of([preference("alone", from_people=False)], by_reward=True) == [1.0]


def test_the_nearest_and_worse_row_loses_with_its_twin_and_cosine() -> None:
    items = [selected("a", 1.0), selected("b", 3.0), selected("c", 2.0)]
    vectors = np.array([[1.0, 0.0], [0.9999, 0.01414], [0.0, 1.0]], dtype=np.float32)
    embedding = by_vectors(vectors, {"a": 0, "b": 1, "c": 2})
    result = pruned(items, semantic_dedup={"threshold": 0.99}, tools={"embedding": embedding})
    assert ids(result) == ["b", "c"]
    (drop,) = result.dropped
    assert (drop.rule, drop.id, drop.twin) == ("semantic_dedup", "a", "b")
    assert drop.cosine == pytest.approx(0.9999, abs=1e-4)
    assert all(item.cluster is not None for item in result.kept)
    assert as_sft(result.kept[0]).cluster == result.kept[0].cluster


def test_near_prompts_keep_the_better_row() -> None:
    text = "Write a short story about a fox that lives near the old mill by the river and likes to sing at night"
    items = [selected("a", 1.0, messages=ask(text)), selected("b", 3.0, messages=ask(f" {text.upper()} "))]
    result = pruned(items, near_duplicates={"enabled": True})
    assert ids(result) == ["b"]
    assert result.dropped[0].twin == "b"


def test_a_row_that_holds_a_benchmarks_question_is_dropped_in_prompt_or_completion() -> None:
    question = "Which of the seven bridges of the town was built by the blind mason in winter?"
    items = [
        selected("asks", 1.0, messages=ask(f"Tell me: {question} Thank you.")),
        selected("tells", 1.0, text=f"An old riddle goes so: {question} Nobody knows."),
        selected("other", 1.0, text="An old riddle goes so: which of the seven bridges is the longest?"),
    ]
    tools = {"benchmarks": lambda: [BenchmarkText("riddles", "0", question)]}
    result = pruned(items, decontaminate={"enabled": True}, tools=tools)
    assert ids(result) == ["other"]
    assert all("riddles 0" in row.reason and row.twin == "riddles 0" for row in result.dropped)
    assert result.metrics["decontaminate_num_questions"] == 1
    assert any("only words were compared" in note for note in result.notes)


def test_topics_of_a_column_make_the_mix_by_share_and_by_epochs() -> None:
    items = [selected(f"c{n}", 1.0, meta={"topic": "code"}) for n in range(2)]
    items += [selected(f"t{n}", 1.0, meta={"topic": "chat"}) for n in range(6)]
    topic = {"by": "column"}
    result = pruned(items, topic=topic, mix={"shares": {"code": 0.5, "chat": 0.5}})
    assert [item.topic for item in result.kept] == ["code", "code", "chat", "chat"]
    assert all(row.rule == "mix" for row in result.dropped)
    result = pruned(items, topic=topic, mix={"epochs": {"code": 2, "chat": 0.5}})
    assert ids(result)[:4] == ["c0", "c0~2", "c1", "c1~2"]
    counts = {"in": 8, "kept": 5, "dropped": 3, "repeated": 2, "dropped_by_topic": 0, "dropped_by_mix": 3}
    assert result.counts == counts
    assert as_sft(result.kept[1]).id == "c0~2"


def test_an_unknown_topic_names_the_known_ones() -> None:
    items = [selected("a", 1.0, meta={"topic": "code"})]
    with pytest.raises(DataError, match="no row is of topic 'coed'; did you mean 'code'\\? known: code"):
        pruned(items, lenient=True, topic={"by": "column"}, mix={"epochs": {"coed": 2}})
    # A round may lack a topic that the run has: the checks know those.
    result = pruned(items, topic={"by": "column"}, mix={"shares": {"code": 0.5, "chat": 0.5}})
    assert (ids(result), result.notes) == (["a"], ("mix: no row is of topic 'chat', which the recipe names",))


def test_sources_are_files_and_what_the_loop_made() -> None:
    items = [selected("a", 1.0), preference("b"), preference("c", source=Source(file="round-02"))]
    shares = {"sampled": 0.25, "given.jsonl": 0.25, "annotated": 0.5}
    result = pruned(items, lenient=True, mix={"by": "source", "shares": shares})
    # One annotated row is half of two: then a quarter of two is none.
    assert ids(result) == ["c"]


@pytest.mark.parametrize(
    ("step", "config", "why"),
    [
        ("quality", {"enabled": True}, "no row has a reward"),
        ("semantic_dedup", {"enabled": True}, "nothing embeds the rows"),
        ("topic", {"by": "column"}, "no row has a column 'topic'"),
        ("topic", {"by": "judge"}, "there is no `judge` section"),
        ("quality", {"enabled": True, "by": "judge"}, "there is no `judge` section"),
        ("difficulty", {"enabled": True, "by": "intentions"}, "there is no `judge` section"),
    ],
)
def test_what_a_step_lacks_is_an_error_in_a_run_and_a_named_skip_alone(step: str, config: Any, why: str) -> None:
    items = [preference("a", from_people=False)]
    with pytest.raises(DataError, match=f"prune.{step}: .*{why}"):
        pruned(items, **{step: config})
    assert why in skips(pruned(items, lenient=True, **{step: config}))[step]


def test_nothing_left_is_said_by_the_steps_after() -> None:
    result = pruned([selected("a", 1.0, text="")], clean={"enabled": True}, quality={"enabled": True})
    assert result.kept == []
    assert skips(result)["quality"] == "no row is left"


def test_lineage_is_on_every_row() -> None:
    item = selected("a", 1.5, 0.25, meta={"topic": "code"})
    row = as_sft(pruned([item], topic={"by": "column"}).kept[0])
    assert (row.origin, row.prompt_id, row.round, row.policy) == ("best_of_k", "p-a", 2, "sha256:x")
    assert (row.rewards, row.topic, row.quality_score, row.difficulty_score) == ([1.5, -9.0], "code", 1.5, 0.75)
    assert row.source == Source(file="round-02")
    human = as_sft(preference("h", edited="Deep blue."))
    assert (human.origin, human.messages[-1].content, human.round) == ("preference", "Deep blue.", None)
    again = item_of_sft(SftRow.model_validate_json(row.model_dump_json()))
    assert (again.id, again.completion, again.topic) == ("a", "A plain answer.", "code")


def test_preferences_come_out_as_preferences() -> None:
    item = preference("a", meta={"topic": "colour", "x": 1})
    same = as_preference(item)
    assert same == item.row
    found = as_preference(pruned([item], topic={"by": "column"}).kept[0])
    assert found.meta == {"topic": "colour", "x": 1, "pruning": {"topic": "colour"}}
    assert (found.chosen, found.rejected) == ("Blue.", "Seven.")


@pytest.mark.parametrize(("centred", "kept"), [(False, ["b"]), (True, ["a", "b"])])
def test_a_policys_vectors_are_compared_without_their_shared_direction(centred: bool, kept: list[str]) -> None:
    vectors = np.array([[10.0, 1.0], [10.0, -1.0]], dtype=np.float32)  # cosine 0.98; without their mean -1
    embedding = replace(by_vectors(vectors, {"a": 0, "b": 1}), centred=centred)
    items = [selected("a", 1.0), selected("b", 2.0)]
    assert ids(pruned(items, semantic_dedup={"threshold": 0.9}, tools={"embedding": embedding})) == kept


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(3, dtype=np.float32), r"shape \(3,\)"),
        (np.zeros((3, 2), dtype=np.int64), "int64"),
        ("no", "v.npy: no .npy file of vectors"),
        (None, "v.npy: no .npy file of vectors"),
    ],
)
def test_vectors_that_are_none(tmp_path: Path, array: Any, message: str) -> None:
    if isinstance(array, str):
        (tmp_path / "v.npy").write_text(array)
    elif array is not None:
        np.save(tmp_path / "v.npy", array)
    with pytest.raises(DataError, match=message):
        read_vectors(tmp_path / "v.npy")
