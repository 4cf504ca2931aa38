"""Verifiable rewards in a round's stages: as annotator, as gate, and for the pass rate that difficulty goes by."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from stage_case import ASK, Listening, ScriptedEngine, candidate, context, preference, written

from alignloop.artifacts import Artifact
from alignloop.config.bundled import QUICKSTART
from alignloop.config.load import load_recipe
from alignloop.config.recipe import Recipe
from alignloop.config.sampling import PairsConfig, RewardFunction, SelectConfig
from alignloop.data.jsonl import load_jsonl
from alignloop.errors import DataError, RecipeError, UserError
from alignloop.evaluation.measures import Figures
from alignloop.records import CandidateRow, DroppedRow, PreferenceRow, PromptRow, SelectedRow, SftRow, Source
from alignloop.stages import collect, prune, score, select
from alignloop.stages.build_pairs import pair_candidates
from alignloop.stages.facts import Facts, Findings
from alignloop.stages.measured_truth import JudgedCandidate, add_picks

EXACT = "alignloop.rewards:exact_match"
BLUE = {"answer": "Blue"}


def facts_of(recipe: Recipe, *metas: dict[str, Any]) -> Facts:
    prompts = [PromptRow(id=f"p{n}", messages=ASK, source=Source(file="f"), meta=meta) for n, meta in enumerate(metas)]
    facts: Any = SimpleNamespace(
        recipe=recipe,
        findings=Findings(),
        rows=SimpleNamespace(prompts=prompts),
        is_published=lambda name, **how: False,
    )
    return facts


def recipe_of(**sections: Any) -> Recipe:
    return Recipe.model_validate({"preferences": ["quickstart"], "base": "quickstart", **sections})


def gated(gate: float = 1.0, **more: Any) -> RewardFunction:
    return RewardFunction.model_validate({"function": EXACT, "gate": gate, **more})


def rewarded(rows: list[CandidateRow], *functions: RewardFunction) -> list[CandidateRow]:
    """As `score` does with the reward that each row has."""
    values = {entry.function: score.function_values(entry.function, [rows]) for entry in functions}
    score.check_gates([rows], values, functions)
    return [score.scored_row(row, row.reward or 0.0, values, functions) for row in rows]


@pytest.fixture
def own(module_folder: Path) -> str:
    """A module with functions that go wrong, each in its own way."""
    name = "verifiers_of_test"
    (module_folder / f"{name}.py").write_text(
        "def raises(completions, **columns):\n    raise KeyError('tests')\n"
        "def short(completions, **columns):\n    return [1.0]\n"
        "def infinite(completions, **columns):\n    return [float('inf')] * len(completions)\n"
        "def nothing(completions, **columns):\n    return None\n"
        "def some(completions, **columns):\n    return [None, *[1.0] * (len(completions) - 1)]\n"
    )
    return name


def collected(folder: Path, rows: list[CandidateRow], **config: Any) -> tuple[collect.Outputs, list[PreferenceRow]]:
    recipe = recipe_of(collect={"num_annotations": 9, **config})
    inputs = collect.inputs(recipe, written(folder / "people.jsonl", []), written(folder / "scored.jsonl", rows))
    outputs = collect.run(collect.settings(recipe), inputs, context(folder / "a", number=2))
    return outputs, list(load_jsonl(outputs.preferences.path, PreferenceRow))


def test_collect_has_a_function_annotate(tmp_path: Path) -> None:
    rows = [
        *(candidate("p", k, text, float(k), meta=BLUE) for k, text in enumerate(("Blue.", "Red."))),
        *(candidate("tie", k, text, float(k), meta=BLUE) for k, text in enumerate(("Red.", "Green."))),
        *(candidate("unasked", k, text, float(k)) for k, text in enumerate(("Blue.", "Red."))),
    ]
    outputs, made = collected(tmp_path, rows, annotator=EXACT)
    assert [(row.chosen, row.rejected, row.strength, row.compared_by) for row in made] == [
        ("Blue.", "Red.", "significantly_better", "function")
    ]
    assert {name: outputs.counts[name] for name in ("annotated", "ties", "inapplicable")} == {
        "annotated": 1,
        "ties": 1,
        "inapplicable": 1,
    }
    # A gap of 1 is no more than `better` where two are asked for.
    _, made = collected(tmp_path, rows, annotator=EXACT, strength_gaps=[2.0, 1.0, 0.5])
    assert [row.strength for row in made] == ["better"]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("raises", "raised KeyError: 'tests'"),
        ("short", "returned 1 values for 2 completions"),
        ("infinite", "gives candidate p/1/[01] .(first|second) of pair 0. the value inf"),
        ("nothing", "returned None: a list of 2 numbers"),
    ],
)
def test_a_function_that_goes_wrong_is_named(tmp_path: Path, own: str, function: str, message: str) -> None:
    rows = [candidate("p", k, text, float(k)) for k, text in enumerate(("Blue.", "Red."))]
    with pytest.raises(UserError, match=f"reward function {own}:{function} {message}"):
        collected(tmp_path, rows, annotator=f"{own}:{function}")


def test_a_column_that_no_prompt_has_is_found_before_the_run_begins() -> None:
    sections = {
        "collect": {"annotator": EXACT, "num_annotations": 4},
        "score": {"reward_functions": [{"function": EXACT, "gate": 1.0}]},
    }
    facts = facts_of(recipe_of(**sections), {"topic": "colour"}, {"topic": "sky", "answer": None})
    collect.check(facts)
    score.check(facts)
    assert facts.findings.problems == [
        f"{place}reward function {EXACT} wants answer, which is no column of the prompts (columns: topic) - add it "
        "to them"
        for place in ("collect.annotator: ", "")
    ]
    facts = facts_of(recipe_of(**sections), {"topic": "colour"}, BLUE)
    collect.check(facts)
    score.check(facts)
    assert facts.findings.problems == []
    unread = facts_of(recipe_of(**sections), BLUE, {"answer": {"text": "Blue"}})
    score.check(unread)
    assert "prompt 'Name a colour.': column answer: {'text': 'Blue'}" in unread.findings.problems[0]


def test_what_fails_a_gate_is_passed_over_and_what_none_passes_trains_nothing(tmp_path: Path) -> None:
    asked = [
        candidate("p", 0, "Red.", 9.0, meta=BLUE),
        candidate("p", 1, "Blue.", 1.0, meta=BLUE),
        candidate("p", 2, "blue", 2.0, meta=BLUE),
        candidate("none", 0, "Red.", 9.0, meta=BLUE),
        candidate("none", 1, "Green.", 1.0, meta=BLUE),
        candidate("free", 0, "Red.", 3.0),
        candidate("free", 1, "Blue.", 1.0),
    ]
    by_name = {name: [row for row in asked if row.prompt_id == name] for name in ("p", "none", "free")}
    rows = [row for group in by_name.values() for row in rewarded(group, gated())]
    assert [row.total_reward for row in rows] == [row.reward for row in asked]  # a gate weighs nothing
    assert [len(row.failed_gates) for row in rows] == [1, 0, 0, 1, 1, 0, 0]
    heard = Listening()
    scored = written(tmp_path / "scored.jsonl", rows)
    picked = select.run(SelectConfig(), select.Inputs(scored), context(tmp_path / "s", progress=heard))
    found = {row.prompt_id: row for row in load_jsonl(picked.selected.path, SelectedRow)}
    assert {name: row.id for name, row in found.items()} == {"p": "p/1/2", "none": "none/1/0", "free": "free/1/0"}
    assert {name: row.failed_gates for name, row in found.items()} == {"p": [], "none": [EXACT], "free": []}
    # The median of all rewards is 2: of p only the third passes it and the gate, of none nothing does.
    assert {name: row.pass_rate for name, row in found.items()} == {"p": 1 / 3, "none": 0.0, "free": 0.5}
    assert picked.metrics["none_passes_gates"] == pytest.approx(1 / 3)
    assert "1 of 3 prompts have no candidate that passes the gates" in heard.lines[0]
    paired = pair_candidates(
        {name: [r for r in rows if r.prompt_id == name] for name in by_name}, PairsConfig(), seed=1
    )
    assert [(pair.prompt_id, pair.chosen, pair.rejected) for pair in paired.pairs] == [("p", 2, 0), ("free", 0, 1)]
    assert [drop.prompt_id for drop in paired.dropped] == ["none"]
    pairs = collect.pairs_to_annotate([row for row in rows if row.prompt_id == "p"], seed=1)
    assert "p/1/2" in {pairs[0][1].id, pairs[0][2].id}  # the best against another
    batch = [
        preference("judged", compared_by="judge", chosen_reward=5.0, chosen_failed_gates=[EXACT]),
        preference("people", strength="better"),
    ]
    kept, drops, outputs = pruned(tmp_path / "prune", picked.selected, batch)
    assert set(kept) == {"p/1/2", "free/1/0", "people"}
    assert {row.id: (row.rule, row.reason) for row in drops} == dict.fromkeys(
        ("none/1/0", "judged"), ("gates", f"fails the gate of {EXACT}")
    )
    assert outputs.counts["dropped_by_gates"] == 2


def pruned(
    folder: Path, selected: Artifact, batch: list[PreferenceRow], *settings: str
) -> tuple[dict[str, SftRow], list[DroppedRow], prune.Outputs]:
    folder.mkdir()
    off = [f"prune.{step}.enabled=false" for step in ("clean", "quality", "semantic_dedup", "decontaminate")]
    recipe = load_recipe("quickstart", overrides=[*off, *settings])
    people = written(folder / "batch.jsonl", batch)
    inputs = prune.inputs(recipe, selected=selected, preferences=people, policy=Artifact.of(QUICKSTART / "base"))
    outputs = prune.run(prune.settings(recipe), inputs, context(folder / "out", engine=ScriptedEngine()))
    assert outputs.counts["in"] == outputs.counts["kept"] + outputs.counts["dropped"]
    rows = {row.id: row for row in load_jsonl(outputs.rows.path, SftRow)}
    return rows, list(load_jsonl(outputs.dropped.path, DroppedRow)), outputs


def test_a_round_in_which_nothing_passes_is_an_error(tmp_path: Path) -> None:
    rows = rewarded([candidate("p", k, text, 1.0, meta=BLUE) for k, text in enumerate(("Red.", "Green."))], gated())
    picked = select.run(
        SelectConfig(), select.Inputs(written(tmp_path / "scored.jsonl", rows)), context(tmp_path / "s")
    )
    with pytest.raises(DataError, match=rf"all 1 fail a gate .*p/1/0: fails the gate of {EXACT}; lower the gate"):
        pruned(tmp_path / "prune", picked.selected, [])


def test_a_gate_must_know_all_candidates_of_a_prompt(own: str) -> None:
    rows = [candidate("p", k, text, 1.0) for k, text in enumerate(("Red.", "Green."))]
    gate = RewardFunction.model_validate({"function": f"{own}:some", "gate": 0.5})
    with pytest.raises(UserError, match=rf"{own}:some returned None for candidate p/1/0 .*\(1 of 2 have none\)"):
        rewarded(rows, gate)
    weighed = RewardFunction(function=f"{own}:some")
    assert [row.total_reward for row in rewarded(rows, weighed)] == [1.0, 2.0]


def test_a_gate_weighs_only_what_it_is_told_to() -> None:
    assert (gated().weight, gated(weight=2.0).weight, RewardFunction(function=EXACT).weight) == (0.0, 2.0, 1.0)
    (row,) = rewarded([candidate("p", 0, "Blue.", 1.0, meta=BLUE)], gated(weight=2.0))
    assert (row.total_reward, row.failed_gates, row.extra_rewards) == (3.0, [], {EXACT: 1.0})
    # Written down and read again, it is the same.
    assert RewardFunction.model_validate(gated().model_dump()) == gated()


def test_rows_without_a_failed_gate_are_written_as_without_gates() -> None:
    (passes,) = rewarded([candidate("p", 0, "Blue.", 1.0, meta=BLUE)], gated())
    (fails,) = rewarded([candidate("p", 0, "Red.", 1.0, meta=BLUE)], gated())
    assert "failed_gates" not in passes.model_dump_json()
    assert CandidateRow.model_validate_json(fails.model_dump_json()).failed_gates == [EXACT]


def test_the_truth_of_a_pick_goes_by_gates_too() -> None:
    """The right one passes and has the lower reward: it is what is picked, alone and above the wrong one."""
    figures = Figures()
    add_picks(figures, [[JudgedCandidate(9.0, False, failed=1), JudgedCandidate(1.0, True)]])
    assert (figures.values["truth/pick"], figures.values["truth/random"]) == (1.0, 1.0)


def test_difficulty_goes_by_what_a_verifier_passes(tmp_path: Path) -> None:
    """Of `easy` all are right, of `hard` one of four is, by whatever reward; nothing is known of `free`."""
    texts = {"easy": ("Blue.", "blue", "Blue", "BLUE"), "hard": ("Red.", "Green.", "Blue.", "Pink."), "free": ("Red.",)}
    only_recorded = RewardFunction(function=EXACT, weight=0.0)
    rows = []
    for name, said in texts.items():
        meta = {} if name == "free" else BLUE
        given = [candidate(name, k, text, float(k), meta=meta) for k, text in enumerate(said)]
        rows += rewarded(given, only_recorded)
    config = SelectConfig(pass_by=EXACT)
    outputs = select.run(config, select.Inputs(written(tmp_path / "scored.jsonl", rows)), context(tmp_path / "s"))
    rates = {row.prompt_id: row.pass_rate for row in load_jsonl(outputs.selected.path, SelectedRow)}
    assert rates == {"easy": 1.0, "hard": 0.25, "free": None}
    assert outputs.metrics["pass_threshold"] == 1.0
    kept, drops, _ = pruned(tmp_path / "prune", outputs.selected, [], "prune.difficulty.max_pass_rate=0.9")
    assert {row.prompt_id: row.difficulty_score for row in kept.values()} == {"hard": 0.75, "free": None}
    assert [(row.rule, row.reason) for row in drops] == [("difficulty", "pass rate 1 is over 0.9 (too easy)")]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("select.pass_by=alignloop.rewards:exact_match", "none of score.reward_functions"),
        ("collect.annotator=juge", "none, simulated, judge, human, or a function"),
        ("collect={annotator: simulated, num_annotations: 4, strength_gaps: [1, 1, 1]}", "are for a function"),
        (f"collect={{annotator: '{EXACT}', strength_gaps: [0.25, 0.5, 0.75]}}", "write the widest gap first"),
        (f"score.reward_functions=[{{function: '{EXACT}', gate: .inf}}]", "finite"),
    ],
)
def test_settings_that_make_no_sense(settings: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe("quickstart", overrides=[settings])
