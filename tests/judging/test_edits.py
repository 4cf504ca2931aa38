"""The judge improves what it chose, by its own reason: what is asked, what of it becomes a third response."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from collect_case import by_length, candidate, config, ran
from judge_peer import Peer

from alignloop.config.recipe import Recipe
from alignloop.data.jsonl import load_jsonl
from alignloop.errors import EngineError, RecipeError, UserError
from alignloop.judging.prompt_file import EditPrompt, load_prompt
from alignloop.pruning.items import is_peoples
from alignloop.records import PreferenceRow, VerdictRow
from alignloop.stages import collect
from alignloop.stages.facts import Facts, Findings

FOLDER = Path("round-02") / "01_collect"
REASON = "It names one tree only."


def editing(url: str, **judge: Any) -> Recipe:
    recipe = config(url, **judge)
    return recipe.model_copy(update={"collect": recipe.collect.model_copy(update={"edits": "edit"})})


def said(text: str) -> Any:
    return 200, {"choices": [{"message": {"content": text}}]}, {}


def is_edit(body: dict[str, Any]) -> bool:
    return "[criticism #" in body["messages"][-1]["content"]


def question(body: dict[str, Any]) -> int:
    found = re.search(r"Question (\d)", body["messages"][-1]["content"])
    assert found is not None
    return int(found[1])


def judge_and_edit(edits: dict[int, str]) -> Any:
    """Compares by length, with a reason; what it says when asked for an edit, by the question's number."""

    def reply(body: dict[str, Any], number: int) -> Any:
        if is_edit(body):
            return said(edits[question(body)])
        status, answer, headers = by_length(body, number)
        text = answer["choices"][0]["message"]["content"]
        verdict = {**json.loads(text), "reason": REASON} if text.startswith("{") else text
        answer["choices"][0]["message"]["content"] = json.dumps(verdict) if isinstance(verdict, dict) else verdict
        return status, answer, headers

    return reply


def edited(text: str) -> str:
    return json.dumps({"edited": text})


def rows_of(folder: Path) -> dict[str, PreferenceRow]:
    _, *rows = load_jsonl(folder / FOLDER / "preferences.jsonl", PreferenceRow)
    return {row.messages[0].content: row for row in rows}


def test_an_edit_ranks_above_the_chosen_one(peer: Peer, tmp_path: Path) -> None:
    peer.reply = judge_and_edit({1: edited("An elm, or an oak."), 5: edited("An oak, an elm.\n")})
    counts = ran(tmp_path, editing(peer.url)).counts
    assert (counts["judged"], counts["annotated"], counts["edited"]) == (4, 2, 2)
    assert [counts[f"edits_{fault}"] for fault in ("unreadable", "empty", "repeated")] == [0, 0, 0]
    rows = rows_of(tmp_path)
    assert [text.text for text in rows["Question 1?"].ranked] == ["An elm, or an oak.", "It is an elm.", "An oak."]
    assert [text.text for text in rows["Question 5?"].ranked] == ["An oak, an elm.", "It is an oak.", "An elm."]
    assert {row.strength for row in rows.values()} == {"slightly_better", "significantly_better"}
    for row in rows.values():
        assert (row.annotator, row.compared_by, row.chosen_reward) == ("m", "judge", None)
        assert row.ranked[0].token_ids is None  # nobody sampled it
        assert not is_peoples(row, strengths=("significantly_better", "better"))  # nor did a person write it
    verdicts = {row.id.partition("/")[0]: row for row in load_jsonl(tmp_path / FOLDER / "verdicts.jsonl", VerdictRow)}
    assert verdicts["q1"].edit_answers == [edited("An elm, or an oak.")]
    assert [verdicts[f"q{n}"].edit_answers for n in (2, 3)] == [[], []]  # a tie, and an unreadable one: nothing chosen
    assert '"edit_dropped"' not in (tmp_path / FOLDER / "verdicts.jsonl").read_text()


def test_the_editor_sees_both_answers_and_the_criticism(peer: Peer, tmp_path: Path) -> None:
    peer.reply = judge_and_edit({1: edited("Elms."), 5: edited("Oaks.")})
    ran(tmp_path, editing(peer.url))
    asked = {question(body): body for body in peer.bodies if is_edit(body)}
    assert sorted(asked) == [1, 5]
    assert asked[1]["response_format"]["json_schema"]["schema"]["required"] == ["edited"]
    text = asked[1]["messages"][-1]["content"]
    shown = re.findall(r"\[(?:first|second) answer, [AB] #(\w+)\]\n(.*)", text)
    assert {answer for _, answer in shown} == {"An oak.", "It is an elm."}
    assert len({mark for mark, _ in shown}) == 1
    place = "first" if shown[0][1] == "It is an elm." else "second"
    assert f"The {place} answer was found better." in text
    assert f"[criticism #{shown[0][0]}]\n{REASON}\n" in text


@pytest.mark.parametrize(
    ("reply", "dropped"),
    [
        (edited("It is an elm."), "repeated: it is the chosen answer again"),
        (edited(" An oak.\n"), "repeated: it is the rejected answer again"),
        (edited("  \n"), "empty: it holds no answer"),
        (edited("<think>\nhm\n</think>\n\n"), "empty: it holds no answer"),
        ("An elm, or an oak.", "unreadable: the answer holds no JSON object at its end or in one fenced block"),
        ('{"edited": ["An elm."]}', "unreadable: the answer is not of the prompt's schema: edited"),
        ('{"edited": "An elm.", "why": "-"}', "unreadable: the answer is not of the prompt's schema"),
    ],
)
def test_an_edit_that_improves_nothing_is_dropped_with_a_reason(
    peer: Peer, tmp_path: Path, reply: str, dropped: str
) -> None:
    peer.reply = judge_and_edit({1: reply, 5: edited("Oaks.")})
    counts = ran(tmp_path, editing(peer.url)).counts
    fault = dropped.partition(":")[0]
    assert (counts["annotated"], counts["edited"], counts[f"edits_{fault}"]) == (2, 1, 1)
    assert sum(counts[f"edits_{each}"] for each in ("unreadable", "empty", "repeated")) == 1
    row = rows_of(tmp_path)["Question 1?"]
    assert (row.chosen, row.edited, row.strength) == ("It is an elm.", None, "slightly_better")
    assert row.chosen_reward is not None  # what has a reward is what trains
    verdicts = {row.id.partition("/")[0]: row for row in load_jsonl(tmp_path / FOLDER / "verdicts.jsonl", VerdictRow)}
    found = verdicts["q1"]
    assert found.edit_dropped is not None
    assert found.edit_dropped.startswith(dropped)
    # What cannot be read is asked for again (max_retries is 1), and all that was said is kept.
    assert found.edit_answers == [reply] * (2 if fault == "unreadable" else 1)


def test_an_edit_keeps_the_reasoning_of_the_chosen_one(peer: Peer, tmp_path: Path) -> None:
    thought = "<think>\nA tree.\n</think>\n\n"
    peer.reply = judge_and_edit({1: edited("It is an elm, I think.")})
    rows = [candidate(1, 0, "An oak."), candidate(1, 1, f"{thought}It is an elm.")]
    ran(tmp_path, editing(peer.url), candidates=rows)
    assert rows_of(tmp_path)["Question 1?"].edited == f"{thought}It is an elm, I think."


def test_a_judge_that_edits_nothing_readable_stops_the_run(peer: Peer, tmp_path: Path) -> None:
    peer.reply = judge_and_edit({1: "no", 5: "no"})
    with pytest.raises(UserError, match=r"judge m: none of its 2 edits can be read\. The first: the answer holds no"):
        ran(tmp_path, editing(peer.url))
    before = len(peer.bodies)
    peer.reply = judge_and_edit({1: edited("Elms."), 5: edited("Oaks.")})
    assert ran(tmp_path, editing(peer.url)).counts["edited"] == 2
    assert all(is_edit(body) for body in peer.bodies[before:])  # what was compared is not asked again


def test_a_broken_run_goes_on_with_the_edits_that_are_left(peer: Peer, tmp_path: Path) -> None:
    whole = judge_and_edit({1: edited("Elms."), 5: edited("Oaks.")})
    peer.reply = whole
    unbroken = ran(tmp_path / "unbroken", editing(peer.url))
    edits = iter(range(9))
    peer.reply = lambda body, n: whole(body, n) if not is_edit(body) or next(edits) < 1 else (500, "gone", {})
    with pytest.raises(EngineError, match=r"1 of 2 edits are finished and kept in"):
        ran(tmp_path / "broken", editing(peer.url, concurrency=1))
    before, peer.reply = len(peer.bodies), whole
    assert ran(tmp_path / "broken", editing(peer.url)).outputs == unbroken.outputs
    assert [is_edit(body) for body in peer.bodies[before:]] == [True]
    assert not (tmp_path / "broken" / FOLDER / "judge").exists()


def test_without_edits_nothing_is_asked_twice_and_no_byte_is_another(peer: Peer, tmp_path: Path) -> None:
    peer.reply = judge_and_edit({})
    manifest = ran(tmp_path, config(peer.url))
    assert "edited" not in manifest.counts
    assert "edit" not in (tmp_path / FOLDER / "verdicts.jsonl").read_text()
    assert not {"edits", "edits_source", "policies"} & set(manifest.config)


def problems(url: str, edits: str, **judge: Any) -> Findings:
    recipe = config(url, **judge)
    recipe = recipe.model_copy(update={"collect": recipe.collect.model_copy(update={"edits": edits})})
    findings = Findings()
    collect.check(Facts(recipe, findings))
    return findings


def test_prompts_that_cannot_ask_for_an_edit_are_named_at_once(peer: Peer, tmp_path: Path) -> None:
    peer.models = (200, {"data": [{"id": "m"}]}, {})
    assert problems(peer.url, "edit", max_tokens=1024) == Findings()
    (note,) = problems(peer.url, "edit", max_tokens=512).notes
    assert "an edit may be as long as an answer (sample.max_tokens 1024)" in note
    (found,) = problems(peer.url, "difficulty").problems
    assert found == "collect.edits: difficulty asks for no better text; take `edit`, or a prompt of that kind"
    mute = tmp_path / "mute.yaml"
    bundled = (Path(collect.__file__).parents[1] / "judging/prompts/pairwise.yaml").read_text()
    mute.write_text(bundled.replace("\nreason: reason", ""))
    (found,) = problems(peer.url, "edit", prompt=str(mute)).problems
    assert "goes by the judge's reason ({criticism}), and judge.prompt asks for none" in found


@pytest.mark.parametrize(
    ("annotator", "why"), [("human", "people may always write one"), ("simulated", "it compares, and writes nothing")]
)
def test_other_annotators_write_no_edit_on_demand(annotator: str, why: str) -> None:
    from alignloop.config import load_recipe

    values = {"preferences": "quickstart", "collect": {"annotator": annotator, "num_annotations": 4, "edits": "edit"}}
    with pytest.raises(RecipeError, match=f"collect.edits is for a judge, and collect.annotator is {annotator}: {why}"):
        load_recipe(values)


MISTAKES = {
    "kind": (("kind: edit", "kind: edits"), r"kind: 'edits' - write pairwise, points, texts or edit"),
    "nothing to edit": (("{better}", "first"), r"edit prompt must hold \{completion\} or \{better\}"),
    "half of the two": (("  {first}", "  -"), r"\{better\} is the place of one of two completions"),
    "field": (("{field: edited}", "{field: text}"), r"with the property 'text', listed in `required`"),
    "placeholder": (("{criticism}", "{critique}"), r"unknown placeholder \{critique\}: it may hold .*\{criticism\}"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_in_an_edit_prompt_are_named(tmp_path: Path, name: str) -> None:
    (old, new), words = MISTAKES[name]
    bundled = (Path(collect.__file__).parents[1] / "judging/prompts/edit.yaml").read_text()
    assert old in bundled
    (tmp_path / "mine.yaml").write_text(bundled.replace(old, new))
    with pytest.raises(UserError, match=words):
        load_prompt(str(tmp_path / "mine.yaml"))


def test_the_bundled_prompt_wants_a_criticism() -> None:
    prompt = load_prompt("edit")
    assert isinstance(prompt, EditPrompt)
    assert prompt.wants_criticism
