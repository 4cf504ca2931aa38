"""`collect` with a judge: what becomes a preference, what is counted, and how a broken run goes on."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from collect_case import CANDIDATES, HUMAN, by_length, candidate, config, ran
from judge_peer import Peer

from alignloop.data.jsonl import load_jsonl
from alignloop.errors import DriftError, EngineError, UserError
from alignloop.records import PreferenceRow, VerdictRow
from alignloop.stages import collect


@pytest.mark.parametrize("both_orders", [True, False])
def test_verdicts_become_preferences(peer: Peer, tmp_path: Path, both_orders: bool) -> None:
    peer.reply = by_length
    manifest = ran(tmp_path, config(peer.url, both_orders=both_orders))
    assert manifest.counts == {
        "preferences": 1,
        "annotated": 2,
        "judged": 4,
        "ties": 1,
        "unreadable": 1,
        "prompts_without_pair": 1,
        "truncated_candidates": 0,
        "empty_candidates": 1,
    }
    assert manifest.metrics == {"ties_share": 0.25, "unreadable_share": 0.25}
    folder = tmp_path / "round-02" / "01_collect"
    human, *rows = load_jsonl(folder / "preferences.jsonl", PreferenceRow)
    assert human == HUMAN
    assert {(row.chosen, row.rejected) for row in rows} == {("It is an elm.", "An oak."), ("It is an oak.", "An elm.")}
    assert {row.messages[0].content: row.strength for row in rows} == {
        "Question 1?": "slightly_better",
        "Question 5?": "significantly_better",
    }
    for row in rows:
        told = (row.annotator, row.compared_by, row.meta, row.source.file)
        assert told == ("m", "judge", {"topic": "trees"}, "round-01")
        assert (row.chosen_ids, row.chosen_finish_reason, row.rejected_ids) == ([7], "stop", [7])
    strengths = {row.strength for row in load_jsonl(folder / "verdicts.jsonl", VerdictRow)}
    assert strengths == {"slightly_better", "significantly_better", None}
    winners = sorted(row.winner for row in load_jsonl(folder / "verdicts.jsonl", VerdictRow))
    assert winners in (["first", "first", "tie", "unreadable"], ["first", "second", "tie", "unreadable"]) or (
        winners == ["second", "second", "tie", "unreadable"]
    )
    assert sorted(path.name for path in folder.iterdir()) == [
        ".fingerprint",
        "manifest.json",
        "preferences.jsonl",
        "verdicts.jsonl",
    ]


WITHOUT_STRENGTHS = """
kind: pairwise
user: "{conversation}\\n[answer A #x]\\n{first}\\n[answer B #x]\\n{second}"
verdict: {field: verdict, first: A, second: B, tie: tie}
schema:
  type: object
  properties: {verdict: {type: string, enum: [A, B, tie]}}
  required: [verdict]
"""


@pytest.mark.parametrize(("both_orders", "strength"), [(True, "better"), (False, None)])
def test_a_prompt_that_asks_for_no_strength_still_compares(
    peer: Peer, tmp_path: Path, both_orders: bool, strength: str | None
) -> None:
    """Said twice, in both orders, it is `better`; said once it is not known. Both train."""
    prompt = tmp_path / "mine.yaml"
    prompt.write_text(WITHOUT_STRENGTHS, encoding="utf-8")

    def by_length_alone(body: dict[str, Any], number: int) -> Any:
        a, b = re.findall(r"\[answer [AB] #\w+\]\n(.*)", body["messages"][-1]["content"])
        said = json.dumps({"verdict": "tie" if len(a) == len(b) else "A" if len(a) > len(b) else "B"})
        return 200, {"choices": [{"message": {"content": said}}]}, {}

    peer.reply = by_length_alone
    manifest = ran(tmp_path, config(peer.url, both_orders=both_orders, prompt=str(prompt)))
    assert manifest.counts["annotated"] == 3
    _, *rows = load_jsonl(tmp_path / "round-02" / "01_collect" / "preferences.jsonl", PreferenceRow)
    assert [row.strength for row in rows] == [strength] * 3


def test_the_judge_is_shown_answers_without_their_reasoning(peer: Peer, tmp_path: Path) -> None:
    peer.reply = by_length
    thought = "<think>\nA tree, and a long thought about it.\n</think>\n\n"
    candidates = [
        *(candidate(1, 0, f"{thought}An oak."), candidate(1, 1, "It is an elm.")),
        *(candidate(2, 0, f"{thought}An oak."), candidate(2, 1, "An oak.")),  # the same answer: nothing to compare
    ]
    counts = ran(tmp_path, config(peer.url), candidates=candidates).counts
    assert (counts["judged"], counts["prompts_without_pair"]) == (1, 1)
    assert not any("thought" in json.dumps(body) for body in peer.bodies)
    _, row = load_jsonl(tmp_path / "round-02" / "01_collect" / "preferences.jsonl", PreferenceRow)
    assert (row.chosen, row.rejected) == ("It is an elm.", f"{thought}An oak.")


def test_at_most_so_many_pairs_are_asked(peer: Peer, tmp_path: Path) -> None:
    peer.reply = by_length
    # Whichever two are drawn, both are asked about and can be read.
    readable = [row for row in CANDIDATES if row.prompt_id in ("q1", "q2", "q5")]
    ran(tmp_path, config(peer.url, num=2, both_orders=False), candidates=readable)
    assert len(peer.bodies) == 2


def test_a_judge_that_says_nothing_readable_stops_the_run(peer: Peer, tmp_path: Path) -> None:
    peer.reply = lambda body, number: (200, {"choices": [{"message": {"content": "A"}}]}, {})
    with pytest.raises(UserError, match=r"none of its 4 answers can be read\. The first: "):
        ran(tmp_path, config(peer.url))
    # Its server put right, under the same name: what could not be read is asked anew.
    peer.reply = by_length
    assert ran(tmp_path, config(peer.url)).counts["unreadable"] == 1


def test_truncated_candidates_are_not_compared(peer: Peer, tmp_path: Path) -> None:
    peer.reply = by_length
    longest = candidate(5, 2, "It is an oak as tall as").model_copy(update={"finish_reason": "length", "reward": 9.0})
    cut = longest.model_copy(update={"total_reward": 9.0})
    alone = candidate(1, 1, "It is an elm.").model_copy(update={"finish_reason": "length"})
    kept = [row for row in CANDIDATES if row.id != alone.id]
    assert ran(tmp_path, config(peer.url), candidates=[*kept, alone, cut]).counts["judged"] == 3
    _, row = load_jsonl(tmp_path / "round-02" / "01_collect" / "preferences.jsonl", PreferenceRow)
    assert (row.chosen, row.rejected) == ("It is an oak.", "An elm.")


def test_a_broken_run_goes_on_elsewhere_and_ends_with_the_same_bytes(peer: Peer, tmp_path: Path) -> None:
    peer.reply = by_length
    unbroken = ran(tmp_path / "unbroken", config(peer.url))
    peer.reply = lambda body, number: by_length(body, number) if number < 6 else (500, "gone", {})
    with peer.lock:
        peer.bodies.clear()
    with pytest.raises(EngineError, match=r"[23] of 4 comparisons are finished and kept in"):
        ran(tmp_path / "broken", config(peer.url, concurrency=1))
    asked = len(peer.bodies)
    peer.reply = by_length
    elsewhere = peer.url.replace("127.0.0.1", "localhost")
    resumed = ran(tmp_path / "broken", config(elsewhere, timeout_seconds=7, concurrency=2, api_key_variable="NO_KEY"))
    assert resumed.outputs == unbroken.outputs
    assert len(peer.bodies) - asked < 8 + 2  # two orders, and question 3 asked twice in each
    bytes_of = {
        name: (tmp_path / name / "round-02/01_collect/preferences.jsonl").read_bytes()
        for name in ("unbroken", "broken")
    }
    assert bytes_of["unbroken"] == bytes_of["broken"]


def test_a_prompt_that_changes_under_its_name_is_drift(peer: Peer, tmp_path: Path) -> None:
    peer.reply = by_length
    bundled = Path(collect.__file__).parents[1] / "judging/prompts/pairwise.yaml"
    mine = tmp_path / "mine.yaml"
    mine.write_text(bundled.read_text(encoding="utf-8"), encoding="utf-8")
    ran(tmp_path, config(peer.url, prompt=str(mine)))
    mine.write_text(bundled.read_text(encoding="utf-8").replace("say which one", "tell which one"), encoding="utf-8")
    with pytest.raises(DriftError, match="judge_prompt"):
        ran(tmp_path, config(peer.url, prompt=str(mine)))
