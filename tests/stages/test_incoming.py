"""Incoming rows: what holds a benchmark's question is left out with its reason; a round's own file; people's
answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from stage_case import candidate, context, preference, write, written

from alignloop.artifacts import Artifact
from alignloop.config import load_recipe
from alignloop.config.bundled import QUICKSTART
from alignloop.config.data import DataConfig
from alignloop.config.recipe import Recipe
from alignloop.data.jsonl import load_jsonl
from alignloop.errors import DataError, PeopleNeeded
from alignloop.evaluation.tasks import load_tasks
from alignloop.loop.check import check
from alignloop.loop.plan import make_plan
from alignloop.loop.plan_text import opening_lines, plan_text
from alignloop.progress import PlainProgress
from alignloop.pruning.decontaminate import local_texts, task_texts
from alignloop.records import DroppedRow, Message, PreferenceRow, PromptRow, Source, ToAnnotateRow
from alignloop.stages import collect, ingest
from alignloop.stages.facts import ProblemsError
from alignloop.stages.incoming import read_batch

QUESTION = "Farmers keep nine brown hens and two grey geese behind the old stone barn near Ghent."
CHANGED = QUESTION.replace("geese", "ducks")
"""One word of sixteen is another: 11 of 14 sequences of three are left."""


def pair(name: str, prompt: str, chosen: str = "Yes.", rejected: str = "No.", **more: Any) -> dict[str, Any]:
    return {"id": name, "prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


PAIRS = [
    pair("asked", CHANGED + " How many birds?"),
    pair("plain", "Name a colour."),
    pair("chosen", "Name a bird.", chosen=CHANGED),
    pair("rejected", "Name a barn.", rejected=CHANGED),
    pair("edited", "Name a town.", edited=CHANGED),
    pair("other", "Name a tree."),
    pair("third", "Name a river."),
]
PROMPTS = [{"id": "p", "prompt": "Sing."}, {"id": "q", "prompt": f"Tell me. {CHANGED}"}, {"id": "r"}]


def recipe_of(folder: Path, *overrides: str) -> Recipe:
    """Of preferences and prompts in `folder`, with one benchmark of one question."""
    row = {"key": 1, "prompt": QUESTION, "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    benchmark = write(folder / "bench.jsonl", row)
    return load_recipe(
        {"preferences": [str(write(folder / "pairs.jsonl", *PAIRS))], "evaluate": {"tasks": [f"ifeval={benchmark}"]}},
        overrides=["data.max_bad_fraction=0.5", "engine.max_model_len=1024", "sample.max_tokens=512", *overrides],
    )


def ingested(recipe: Recipe, out: Path, *, prompts: tuple[Artifact, ...] = ()) -> ingest.Outputs:
    files = tuple(Artifact.of(Path(file)) for file in recipe.preferences)
    given = ingest.inputs(recipe, preferences=files, prompts=prompts)
    return ingest.run(ingest.settings(recipe), given, context(out, number=0, progress=PlainProgress()))


def of_round(recipe: Recipe, first: ingest.Outputs, file: Artifact) -> collect.Inputs:
    files = collect.RoundFiles(file=file)
    return collect.inputs(recipe, first.preferences, None, files=files, heldout=first.heldout, prompts=first.prompts)


def drops(files: Sequence[Artifact]) -> list[DroppedRow]:
    return [row for file in files for row in load_jsonl(file.path, DroppedRow)]


def test_ingest_leaves_out_preferences_and_prompts_that_hold_a_question(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    prompts = (Artifact.of(write(tmp_path / "prompts.jsonl", *PROMPTS)),)
    outputs = ingested(recipe, tmp_path / "out", prompts=prompts)
    kept = [row.id for file in (outputs.preferences, outputs.heldout) for row in load_jsonl(file.path, PreferenceRow)]
    assert sorted(kept) == ["other", "plain", "third"]
    assert [row.id for row in load_jsonl(outputs.prompts.path, PromptRow)] == ["p"]
    dropped = drops(outputs.dropped)
    assert [(row.id, row.stage, row.rule, row.twin) for row in dropped] == [
        (name, "ingest", "decontaminate", "ifeval 0") for name in ("asked", "chosen", "rejected", "edited")
    ]
    assert dropped[0].reason.startswith("holds 79% of ifeval 0, the longest piece 'farmers keep nine brown hens")
    assert [(row.id, row.rule) for row in drops(outputs.dropped_prompts)] == [("q", "decontaminate")]
    counts = outputs.counts
    assert counts["in"] == 7 == counts["kept"] + counts["dropped"]
    assert counts["dropped_by_decontaminate"] == counts["dropped"] == 4
    # One prompt holds the question, and one has none at all.
    assert counts["prompts_in"] == 3 == counts["prompts"] + counts["prompts_dropped"]
    assert counts["prompts_dropped"] == 2


def test_without_a_file_of_prompts_none_of_the_prompts_holds_a_question(tmp_path: Path) -> None:
    outputs = ingested(recipe_of(tmp_path, "data.heldout_fraction=0"), tmp_path / "out")
    prompts = [row.messages[0].content for row in load_jsonl(outputs.prompts.path, PromptRow)]
    assert prompts == ["Name a colour.", "Name a tree.", "Name a river."]
    off = recipe_of(tmp_path, "prune.decontaminate.enabled=false")
    assert ingest.keep_out_of(off) is None
    assert ingested(off, tmp_path / "off").counts["dropped"] == 0


def test_a_rounds_own_file_passes_it_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = recipe_of(tmp_path, "data.batches=files")
    first = ingested(recipe, tmp_path / "ingest")
    file = Artifact.of(write(tmp_path / "second.jsonl", pair("s1", CHANGED), pair("s2", "Name a lake.")))
    config = collect.settings(recipe)
    given = of_round(recipe, first, file)
    assert [artifact.path.name for artifact in given.benchmarks] == ["bench.jsonl"]
    capsys.readouterr()
    outputs = collect.run(config, given, context(tmp_path / "collect", number=2, progress=PlainProgress()))
    assert "decontaminate: 1 of 2 rows of the round holds a question" in capsys.readouterr().out
    assert [row.id for row in load_jsonl(outputs.preferences.path, PreferenceRow)] == ["s2"]
    assert [(row.id, row.stage, row.rule) for row in drops(outputs.dropped)] == [("s1", "collect", "decontaminate")]
    assert outputs.counts["in"] == 2 == outputs.counts["kept"] + outputs.counts["dropped"]
    sampled_for = [row.messages[0].content for row in load_jsonl(outputs.prompts[0].path, PromptRow)]
    assert "Name a lake." in sampled_for
    assert CHANGED not in sampled_for


def test_a_rounds_file_of_which_no_row_is_left_is_named(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "data.batches=files")
    first = ingested(recipe, tmp_path / "ingest")
    file = write(tmp_path / "second.jsonl", pair("s1", CHANGED), pair("s2", "Name a lake.", chosen=CHANGED))
    given = of_round(recipe, first, Artifact.of(file))
    said = (
        r"second\.jsonl: is the file of round 2, .*: 2 hold a question .*, 0 have the prompt .*: take other data, name"
    )
    with pytest.raises(DataError, match=said):
        collect.run(collect.settings(recipe), given, context(tmp_path / "collect", number=2, progress=PlainProgress()))
    files = [*recipe.preferences, str(file)]
    with pytest.raises(ProblemsError, match=said):
        check(recipe.model_copy(update={"preferences": files}))
    check(recipe.model_copy(update={"preferences": files, "rounds": 1}))  # no round takes it


def test_prompts_of_which_none_is_left_are_an_error_where_they_come_in(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "data.heldout_fraction=0.4")
    prompts = (Artifact.of(write(tmp_path / "prompts.jsonl", *PROMPTS[1:2])),)
    with pytest.raises(
        DataError, match=r"1 of 1 prompts holds a question .*\nNothing is left to sample for: take other"
    ):
        ingested(recipe, tmp_path / "held", prompts=prompts)
    heldout = load_jsonl(ingested(recipe, tmp_path / "own").heldout.path, PreferenceRow)
    same = [{"prompt": row.messages[0].content} for row in heldout]
    prompts = (Artifact.of(write(tmp_path / "same.jsonl", *same)),)
    with pytest.raises(DataError, match="none is left to sample for once those of the held-out preferences"):
        ingested(recipe, tmp_path / "same", prompts=prompts)


def test_a_plan_says_what_will_be_left_out_and_what_it_cannot_compare(tmp_path: Path) -> None:
    plan = make_plan(recipe_of(tmp_path), run_dir=tmp_path / "run")
    checked = plan.checked
    assert len(checked.rows.train) + len(checked.rows.heldout) == 3
    assert checked.num_read == 7
    (said,) = checked.left_out
    assert "decontaminate: 4 of 7" in plan_text(plan)
    opening = opening_lines(checked, recipe=plan.recipe, run_dir=plan.run_dir)
    assert "decontaminate" not in "".join(opening), "a run says it in `ingest`, once"
    assert said.startswith(
        "decontaminate: 4 of 7 preferences hold a question of the run's benchmarks and are left out; the first: asked "
        "(pairs.jsonl, line 1) holds 79% of ifeval 0"
    )
    named = f"evaluate.tasks=[ifeval={tmp_path / 'bench.jsonl'}, arc_easy]"
    notes = check(recipe_of(tmp_path, named)).notes
    assert any("arc_easy: lm-eval fetches the questions" in note for note in notes)


def test_where_every_row_holds_a_question_plan_and_ingest_say_so(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    write(tmp_path / "pairs.jsonl", *PAIRS[:1])
    with pytest.raises(ProblemsError, match=r"1 of 1 preferences holds a question .* take other data"):
        check(recipe)
    with pytest.raises(DataError, match="Nothing is left to train on"):
        ingested(recipe, tmp_path / "out")


def test_local_questions_are_those_of_lm_evals_tasks() -> None:
    """Read without lm-eval, whose import takes seconds, the bundled benchmarks and a generative form are the same."""
    data = QUICKSTART / "data" / "mmlu"
    for names, include_path in ((("ifeval", "mmlu"), "quickstart"), ((f"mmlu_generative={data}",), None)):
        loaded = load_tasks(names, include_path=include_path).tasks
        wanted = [text for name, task in loaded.items() for text in task_texts(name, task)]
        assert sorted(local_texts(names, include_path), key=str) == sorted(wanted, key=str)
        assert len(wanted) > 100


def read(path: Path, earlier: list[PreferenceRow], **more: Any) -> Any:
    options: dict[str, Any] = {"heldout": [], "prompts": None, "config": DataConfig(max_bad_fraction=0.5)} | more
    return read_batch(path, earlier=earlier, **options)


def test_ids_of_files_numbered_from_0_stay_apart(tmp_path: Path) -> None:
    first = read(write(tmp_path / "1.jsonl", pair("0", "A"), pair("1", "B")), []).rows
    second = read(write(tmp_path / "2.jsonl", pair("0", "C"), pair("1", "B"), pair("0~2", "D")), first).rows
    # 0 is another row now, 1 is the same row again (it trains once), 0~2 is the file's own.
    assert [(row.id, row.messages[0].content) for row in second] == [("0~3", "C"), ("1", "B"), ("0~2", "D")]
    again = read(tmp_path / "2.jsonl", [*first, *second]).rows
    assert again == second  # a file that is seen once more keeps its rows' ids


def test_every_row_of_a_rounds_file_is_accounted_for(tmp_path: Path) -> None:
    heldout = read(write(tmp_path / "1.jsonl", pair("h", "Held out")), []).rows
    file = write(tmp_path / "2.jsonl", pair("a", "A"), pair("b", " held OUT"), {"id": "c", "prompt": "C"})
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
    human = written(folder / "p.jsonl", [preference("h", chosen="Ash.")])
    scored = written(folder / "scored.jsonl", CANDIDATES)
    files = collect.RoundFiles(answers=None if answers is None else Artifact.of(answers))
    return recipe, collect.inputs(recipe, human, scored, files=files)


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
    # What is done does not depend on it.
    assert collect.settings(enough).model_dump() == collect.settings(recipe).model_dump()
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
    alone = collect.inputs(recipe, inputs.preferences, written(tmp_path / "scored.jsonl", CANDIDATES[-2:]))
    assert collect.run(collect.settings(recipe), alone, context(tmp_path / "b", number=2)).counts["asked"] == 0
