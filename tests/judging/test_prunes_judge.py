"""What pruning asks a judge: points by the kind of row, topics among labels, intentions; and answers of all kinds."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from judge_peer import Peer

from alignloop.config.engine import JudgeConfig
from alignloop.config.pruning import PruneConfig
from alignloop.errors import UserError
from alignloop.judging.judge import open_judge
from alignloop.judging.prompt_file import TextsPrompt, load_prompt
from alignloop.judging.reading import UnreadableAnswer, VerdictReader
from alignloop.judging.verdicts import Appraisal
from alignloop.pruning.items import Item, item_of_sft
from alignloop.pruning.models import PruneJudge
from alignloop.pruning.pipeline import Pruning, prune
from alignloop.pruning.step import Tools
from alignloop.records import Message, SftRow, Source

LABELS = ("code", "history")
NO_ENGINE: Any = None  # the judge is behind an endpoint


def item(row_id: str, text: str, *, reward: float | None = None) -> Item:
    messages = [Message(role="user", content=f"Question {row_id}?"), Message(role="assistant", content=text)]
    row = SftRow(id=row_id, messages=messages, origin="given", source=Source(file="f", line=1))
    return item_of_sft(row, reward=reward)


ITEMS = [
    item("a", "Rome was founded by shepherds.", reward=3.0),
    item("b", "Here:\n```python\nprint(1)\n```", reward=1.0),
    item("c", "It was in 1066.", reward=0.0),
    item("d", "I do not know.", reward=-1.0),
]


def answering(answers: dict[str, dict[str, Any]]) -> Any:
    def reply(body: dict[str, Any], number: int) -> tuple[int, Any, dict[str, str]]:
        asked = body["messages"][-1]["content"]
        letter = re.search(r"Question (\w)\?", asked)[1]  # type: ignore[index]
        properties = body["response_format"]["json_schema"]["schema"]["properties"]
        kind = next(name for name in ("coarse", "intentions", "points") if name in properties)
        if kind == "points":
            kind = f"points{max(properties['points']['enum'])}" + ("d" if "difficult" in asked else "")
        text = answers[kind].get(letter, "no answer")
        content = text if isinstance(text, str) else json.dumps(text)
        return 200, {"choices": [{"message": {"content": content}, "finish_reason": "stop"}]}, {}

    return reply


def pruned(peer: Peer, folder: Path, **config: Any) -> Pruning:
    off = {name: {"enabled": False} for name in ("clean", "semantic_dedup", "decontaminate")}
    wanted = PruneConfig.model_validate(
        {**off, "quality": {"enabled": False}, "difficulty": {"enabled": False}, **config}
    )
    judge = PruneJudge(
        JudgeConfig(model="j", endpoint=peer.url, max_retries=0),
        engine=NO_ENGINE,
        dir=folder,
        seed=1,
    )
    return prune(ITEMS, Tools(config=wanted, seed=1, judge=judge))


def points(number: int) -> dict[str, Any]:
    return {"reason": "so", "points": number}


def test_top_reward_or_the_judges_maximum_with_code_on_two_points(peer: Peer, tmp_path: Path) -> None:
    peer.reply = answering({"points3": {"a": points(1), "c": points(3)}, "points2": {"b": points(2)}})
    result = pruned(peer, tmp_path, quality={"by": "either", "top_fraction": 0.25})
    # a by its reward, b by two of two points, c by three of three; d has neither: its answer cannot be read.
    assert [one.id for one in result.kept] == ["a", "b", "c"]
    (drop,) = result.dropped
    assert drop.reason == "score -1 is not in the top 25% (from 3); the judge's answer cannot be read"
    assert [one.judge for one in result.kept] == [{"quality_general": 1}, {"quality_code": 2}, {"quality_general": 3}]
    assert result.metrics["quality_num_unreadable"] == 1
    asked = len(peer.bodies)
    again = pruned(peer, tmp_path, quality={"by": "judge"})
    assert [one.id for one in again.kept] == ["b", "c"]
    assert len(peer.bodies) == asked  # all answers were kept


def test_topics_are_one_of_the_labels_and_make_code(peer: Peer, tmp_path: Path) -> None:
    peer.reply = answering(
        {
            "coarse": {
                "a": {"coarse": "history", "fine": "rome "},
                "b": {"coarse": "code", "fine": "python"},
                "c": {"coarse": "cooking", "fine": "soup"},
            }
        }
    )
    result = pruned(peer, tmp_path, topic={"by": "judge", "labels": LABELS}, mix={"epochs": {"code": 2}})
    assert [(one.id, one.topic, one.fine_topic) for one in result.kept] == [
        ("a", "history", "rome"),
        ("b", "code", "python"),
        ("b~2", "code", "python"),
        ("c", None, None),  # no label: its answer is none
        ("d", None, None),
    ]
    assert result.metrics["topic_num_without"] == 2
    system = peer.bodies[0]["messages"][0]["content"]
    assert "- code\n- history" in re.sub(r"\n +", "\n", system)
    schema = peer.bodies[0]["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["coarse"]["enum"] == list(LABELS)


def test_intentions_are_counted_and_stand_as_tags(peer: Peer, tmp_path: Path) -> None:
    given = {"a": ["Poetry", "poetry", "word limit", "rhyme"], "b": [], "c": ["dates", " "]}
    peer.reply = answering({"intentions": {letter: {"intentions": tags} for letter, tags in given.items()}})
    result = pruned(peer, tmp_path, difficulty={"by": "intentions", "min_intentions": 1, "max_intentions": 2})
    assert {row.id: row.reason for row in result.dropped} == {
        "a": "intentions 3 is over 2 (too hard)",
        "b": "intentions 0 is under 1 (too easy)",
    }
    assert [(one.id, one.tags, one.difficulty_score) for one in result.kept] == [
        ("c", ("dates",), 1.0),
        ("d", None, None),
    ]


def test_difficulty_by_points(peer: Peer, tmp_path: Path) -> None:
    peer.reply = answering({"points3d": {letter: points(n) for letter, n in zip("abcd", (1, 2, 3, 2), strict=True)}})
    result = pruned(peer, tmp_path, difficulty={"by": "judge", "min_points": 2})
    assert [(one.id, one.difficulty_score, one.priority_difficulty) for one in result.kept] == [
        ("b", 2.0, pytest.approx(2 / 3)),
        ("c", 3.0, 1.0),
        ("d", 2.0, pytest.approx(2 / 3)),
    ]
    assert result.kept[0].judge == {"difficulty": 2}


def test_a_judge_that_no_one_can_read_stops_with_its_first_words(peer: Peer, tmp_path: Path) -> None:
    peer.reply = answering({"points3d": {}})
    with pytest.raises(UserError, match="prompt difficulty: none of its 4 answers can be read"):
        pruned(peer, tmp_path, difficulty={"by": "judge"})


def test_texts_of_an_answer() -> None:
    prompt = load_prompt("topic")
    assert isinstance(prompt, TextsPrompt)
    reader = VerdictReader(prompt.with_labels(LABELS))
    assert reader.read('{"coarse": "code", "fine": " c++ "}').value == ("code", "c++")
    for answer in ('{"coarse": "sport", "fine": "x"}', '{"coarse": "code", "fine": "  "}', '{"coarse": "code"}'):
        with pytest.raises(UnreadableAnswer):
            reader.read(answer)
    assert VerdictReader(load_prompt("intentions")).read('{"intentions": []}').value == ()


def test_labels_are_for_prompts_that_choose_and_change_what_is_asked() -> None:
    topic, intentions = load_prompt("topic"), load_prompt("intentions")
    assert isinstance(topic, TextsPrompt)
    assert isinstance(intentions, TextsPrompt)
    assert topic.with_labels(("a", "b")).digest != topic.with_labels(("a", "c")).digest
    assert intentions.with_labels(()) is intentions
    with pytest.raises(UserError, match="wants labels"):
        topic.with_labels(())
    with pytest.raises(UserError, match="takes no labels"):
        intentions.with_labels(("a",))


def test_a_prompt_of_another_kind_is_refused(peer: Peer, tmp_path: Path) -> None:
    config = JudgeConfig(model="j", endpoint=peer.url, prompt="intentions")
    judge = open_judge(config, engine=NO_ENGINE, dir=tmp_path, seed=1)
    asked = [Appraisal("a", (Message(role="user", content="x"),))]
    with pytest.raises(UserError, match="intentions asks for texts; rating wants a points prompt"):
        judge.rate(asked)
    pairwise = open_judge(JudgeConfig(model="j", endpoint=peer.url), engine=NO_ENGINE, dir=tmp_path, seed=1)
    with pytest.raises(UserError, match="pairwise compares two; describing wants a texts prompt"):
        pairwise.describe(asked)
