"""A round's own file, people who are asked, and what the reward model and DPO see of a round's rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from stage_case import ASK, candidate, context, write

from alignloop.artifacts import Artifact
from alignloop.config.data import DataConfig
from alignloop.config.recipe import Recipe
from alignloop.data.jsonl import dump_jsonl, load_jsonl
from alignloop.errors import PeopleNeeded
from alignloop.records import Message, PreferenceRow, PromptRow, Source, ToAnnotateRow
from alignloop.stages import collect
from alignloop.stages.incoming import read_batch


def raw(row_id: str, prompt: str, chosen: str = "Yes.") -> dict[str, str]:
    return {"id": row_id, "prompt": prompt, "chosen": chosen, "rejected": "No."}


def read(path: Path, earlier: list[PreferenceRow], **more: Any) -> Any:
    options: dict[str, Any] = {"heldout": [], "prompts": None, "config": DataConfig(max_bad_fraction=0.5)} | more
    return read_batch(path, earlier=earlier, **options)


def test_ids_of_files_numbered_from_0_stay_apart(tmp_path: Path) -> None:
    first = read(write(tmp_path / "1.jsonl", raw("0", "A"), raw("1", "B")), []).rows
    second = read(write(tmp_path / "2.jsonl", raw("0", "C"), raw("1", "B"), raw("0~2", "D")), first).rows
    # 0 is another row now, 1 is the same row again (it trains once), 0~2 is the file's own.
    assert [(row.id, row.messages[0].content) for row in second] == [("0~3", "C"), ("1", "B"), ("0~2", "D")]
    again = read(tmp_path / "2.jsonl", [*first, *second]).rows
    assert again == second  # a file that is seen once more keeps its rows' ids


def test_every_row_of_a_rounds_file_is_accounted_for(tmp_path: Path) -> None:
    heldout = read(write(tmp_path / "1.jsonl", raw("h", "Held out")), []).rows
    file = write(tmp_path / "2.jsonl", raw("a", "A"), raw("b", " held OUT"), {"id": "c", "prompt": "C"})
    known = [PromptRow(id="p", messages=[Message(role="user", content="a")], source=Source(file="f"))]
    batch = read(file, [], heldout=heldout, prompts=known)
    assert [row.id for row in batch.rows] == ["a"]
    assert [(row.id, row.rule) for row in batch.dropped] == [("b", "heldout_prompt")]
    assert [(row.line, row.field) for row in batch.rejected] == [(3, "chosen")]
    assert batch.counts == {"in": 3, "kept": 1, "dropped": 2}
    assert batch.prompts == known  # `A` is sampled for already
    assert [row.messages[0].content for row in read(file, [], prompts=[]).prompts] == ["A", " held OUT"]


CANDIDATES = [
    candidate("p", 0, "An oak.", 3.0),
    candidate("p", 1, "An elm.", 2.0),
    candidate("q", 0, "A fir.", 1.0),
    candidate("q", 1, "A yew.", 0.5),
    candidate("q", 2, "A yew as tall as", 9.0, finish_reason="length"),  # cut off: never shown
    candidate("r", 0, "A box.", 1.0),
    candidate("r", 1, " ", 5.0),  # empty: never shown, and nothing is left to compare with
]


def people(folder: Path, answers: Path | None, **more: Any) -> tuple[Recipe, collect.Inputs]:
    values = {"preferences": ("quickstart",), "collect": {"annotator": "human", "num_annotations": 5, **more}}
    recipe = Recipe.model_validate(values)
    human = PreferenceRow(id="h", messages=ASK, chosen="Ash.", rejected="No.", source=Source(file="f", line=1))
    dump_jsonl(folder / "p.jsonl", [human])
    dump_jsonl(folder / "scored.jsonl", CANDIDATES)
    files = collect.RoundFiles(answers=None if answers is None else Artifact.of(answers))
    scored = Artifact.of(folder / "scored.jsonl")
    return recipe, collect.inputs(recipe, Artifact.of(folder / "p.jsonl"), scored, files=files)


def test_a_round_stops_for_people_and_goes_on_with_their_answers(tmp_path: Path) -> None:
    recipe, inputs = people(tmp_path, None)
    with pytest.raises(PeopleNeeded) as wait:
        collect.run(collect.settings(recipe), inputs, context(tmp_path / "a", number=2))
    assert (wait.value.num_asked, wait.value.num_answered, wait.value.num_needed) == (2, 0, 2)
    asked = list(load_jsonl(wait.value.questions, ToAnnotateRow))
    assert sorted(sorted((row.first, row.second)) for row in asked) == [["A fir.", "A yew."], ["An elm.", "An oak."]]
    assert "reward" not in wait.value.questions.read_text()

    answers = write(tmp_path / "answers.jsonl", {"id": asked[0].id, "choice": "first"})
    recipe, inputs = people(tmp_path, answers)
    with pytest.raises(PeopleNeeded, match="1 of 2 pairs of completions have no answer yet"):
        collect.run(collect.settings(recipe), inputs, context(tmp_path / "a", number=2))
    enough, _ = people(tmp_path, answers, min_annotated=1)
    assert (
        collect.settings(enough).model_dump() == collect.settings(recipe).model_dump()
    )  # what is done does not depend on it
    outputs = collect.run(collect.settings(enough), inputs, context(tmp_path / "b", number=2))
    assert outputs.counts == {
        "preferences": 1,
        "asked": 2,
        "annotated": 1,
        "ties": 0,
        "unanswered": 1,
        "prompts_without_pair": 1,
        "truncated_candidates": 1,
        "empty_candidates": 1,
    }
    rows = list(load_jsonl(outputs.preferences.path, PreferenceRow))
    assert [(row.id == "h", row.chosen) for row in rows] == [(True, "Ash."), (False, asked[0].first)]


def test_nobody_is_asked_in_the_first_round_or_where_nothing_differs(tmp_path: Path) -> None:
    recipe, inputs = people(tmp_path, None)
    first = collect.inputs(recipe, inputs.preferences, None)
    assert collect.run(collect.settings(recipe), first, context(tmp_path / "a", number=1)).counts["preferences"] == 1
    dump_jsonl(tmp_path / "scored.jsonl", CANDIDATES[-2:])
    alone = collect.inputs(recipe, inputs.preferences, Artifact.of(tmp_path / "scored.jsonl"))
    assert collect.run(collect.settings(recipe), alone, context(tmp_path / "b", number=2)).counts["asked"] == 0
